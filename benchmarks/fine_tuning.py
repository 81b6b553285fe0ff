"""Does pretraining help? SST-2 (positive or negative sentences) by a pretrained net and by the same net from scratch.

Each of BERT and GPT is pretrained on movie reviews, fine-tuned on the training sentences, and judged on the test
sentences under several seeds; beside it stands the same net (shape, tokenizer, batch) that begins with drawn weights.
Either way the learning rate, the number of steps, the dropout and the weight of the words' loss are those of
``--rates``, ``--steps``, ``--dropouts`` and ``--words``, and the pooling of a row those of ``--poolings``, with the
best accuracy on the validation sentences: each is tried under one seed, the best three under two more, none of which
is among the others, and the best mean of three is taken. Two intervals of 95 % are given
for the difference, both paired: over seeds (Student's t of the differences), and over test sentences (bootstrap of each
sentence's difference, seeds averaged). Each kind of net has a page of its own.

    python benchmarks/fine_tuning.py --out runs/tuning                  # both; kept, and goes on where it stopped
    python benchmarks/fine_tuning.py --out runs/tuning --models bert --bert runs/reviews/seed-0

SST-2 is split as treebanks are (``do n't``, ``-lrb-``, two backquotes), the reviews are not (``don't``, ``(``, ``"``);
so that words are those that pretraining met, both nets read the sentences as the reviews would have them.

``--bert`` and ``--gpt`` name pretrained runs that are there already, such as one of ``bert_pretrain.py --run``.
Eight of the 1,821 test sentences also stand in the reviews, without a label.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common

RECIPES = Path(__file__).parent / "recipes"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t, 97.5 %, by the number of differences."""
TRIAL_SEEDS = (1000, 1001, 1002)
"""Of the runs that choose the settings: the first of all, the others of the finalists, for one run's accuracy on the
validation sentences (872 of them) is off by a point and more."""
FINALISTS = 3
RESAMPLES = 10_000
LAST = ("--checkpoint", "last")
"""What is judged: the loss of validation rows is least long before their accuracy is best, as a net grows too sure."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is chosen on the validation sentences."""

    rate: float
    steps: int
    dropout: float
    words: float
    """Weight of next tokens (GPT) or blanks (BERT) beside the task."""
    pooling: str
    """What a row's vector is."""

    @property
    def cells(self) -> list[str]:
        """For a table."""
        return [f"{self.rate:g}", str(self.steps), f"{self.dropout:g}", f"{self.words:g}", self.pooling]

    def __str__(self) -> str:
        return "rate {}, {} steps, dropout {}, words {}, pooling {}".format(*self.cells)


FIELDS = tuple(field.name for field in dataclasses.fields(Choice))
WORDS = {"bert": [0.0], "gpt": [0.5]}
"""Weights of the words' loss where none are given: those of the recipes."""


NOT = {"ca": "can't", "wo": "won't", "sha": "shan't"}
"""Verbs that lose letters before n't."""


def as_written(sentence: str) -> str:
    """A sentence of the treebank as the reviews would have it."""
    sentence = re.sub(rf"\b({'|'.join(NOT)}) n't\b", lambda found: NOT[found[1]], sentence).replace(" n't", "n't")
    for mark, sign in (("-lrb-", "("), ("-rrb-", ")"), ("``", '"'), ("''", '"')):
        sentence = sentence.replace(mark, sign)
    return sentence


def write_tables(source: Path, folder: Path) -> None:
    """SST-2 as it is read here."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in ("train.tsv", "dev.tsv", "test.tsv"):
        lines = (source / table).read_text(encoding="utf-8").split("\n")
        rows = [line.split("\t", 1) for line in lines if line.strip()]
        written = "".join(f"{label}\t{as_written(sentence)}\n" for label, sentence in rows)
        (folder / table).write_text(written, encoding="utf-8")


def pretrained(kind: str, options: argparse.Namespace) -> Path:
    """The run to start from, trained (further) where need be."""
    given: Path | None = getattr(options, kind)
    if given is not None:
        return given
    run = options.out / f"{kind}-pretrained"
    reviews = options.data / "movie_reviews"
    texts = [f"--data.{split}={reviews / split}.txt" for split in ("train", "valid", "test")]
    steps = [f"--steps={options.pretraining_steps}"] if options.pretraining_steps else []
    common.gradatim("train", RECIPES / f"movie_reviews_{kind}.yaml", "--run", run, "--resume", *texts, *steps)
    return run


def settings(kind: str, start: Path, arm: str, choice: Choice, options: argparse.Namespace) -> list[object]:
    """What a fine-tuning run is told besides its recipe and seed."""
    model = {name: value for name, value in shape_of(start).items() if name != "kind"} | {"dropout": choice.dropout}
    told: list[object] = [f"{kind}-classify", f"--steps={choice.steps}", f"--optimizer.lr={choice.rate}"]
    told += [f"--optimizer.warmup={choice.steps // 10}", "--data.columns=label,text", "--evaluation.every=100"]
    told += [f"--task.lm_weight={choice.words:g}", f"--task.pooling={choice.pooling}"]
    told += [f"--data.{split}={options.out / 'sst2' / name}.tsv" for split, name in
             (("train", "train"), ("valid", "dev"), ("test", "test"))]  # fmt: skip
    told += [f"--model.{name}={value}" for name, value in model.items()]
    told.append(f"--data.tokenizer.path={start / 'tokenizer.json'}")
    return told + ([f"--init_from={start}"] if arm == "pretrained" else [])


def shape_of(run: Path) -> dict[str, str]:
    """The fields of a run's model that its weights prescribe."""
    from gradatim.cli.starting import source_model

    return source_model(str(run))


def right_answers(run: Path, table: Path) -> list[bool]:
    """Whether the label of each row of a table is found."""
    lines = table.read_text(encoding="utf-8").split("\n")
    truth = [line.split("\t")[0] for line in lines if line.strip()]
    command = [sys.executable, "-m", "gradatim", "predict", str(run), str(table), *LAST, "--json"]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return [answer["label"] == label for answer, label in zip(said, truth, strict=True)]


class Experiment:
    """Runs in one folder; what is measured is kept in ``measured.json``, and nothing is measured twice."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        write_tables(options.data / "sst2", options.out / "sst2")
        self.kept = common.Kept(options.out / "measured.json")

    def run(self, kind: str, arm: str, start: Path, choice: Choice, seed: int) -> dict[str, Any]:
        """One fine-tuning run: accuracy on validation rows, and which test rows are right."""
        facts = {"kind": kind, "arm": arm, "seed": seed, **dataclasses.asdict(choice)}
        for row in self.kept.rows:
            if all(row.get(name) == value for name, value in facts.items()):
                return row
        run = self.options.out / "-".join((kind, arm, *choice.cells, f"seed-{seed}"))
        told = settings(kind, start, arm, choice, self.options)
        threads = 1 if self.options.jobs > 1 else None
        trained = common.gradatim("train", *told, f"--seed={seed}", "--run", run, "--resume", threads=threads)
        sst2 = self.options.out / "sst2"
        valid = common.gradatim("evaluate", run, "--text", sst2 / "dev.tsv", *LAST, threads=threads)
        measured = {
            **facts, "valid": valid["accuracy"], "right": right_answers(run, sst2 / "test.tsv"),
            "seconds": trained["seconds"],
        }  # fmt: skip
        self.kept.add(**measured)
        print(f"{kind} {arm}, {choice}, seed {seed}: {np.mean(measured['right']):.4f} of test, "
              f"{measured['valid']:.4f} of validation rows", file=sys.stderr)  # fmt: skip
        return measured

    def arm(self, kind: str, arm: str, start: Path) -> list[dict[str, Any]]:
        """A run of each seed, with the settings that suit the validation rows best."""
        options = self.options
        words = options.words or WORDS[kind]
        grid = itertools.product(options.rates, options.steps, options.dropouts, words, options.poolings)
        choices = [Choice(*values) for values in grid]
        with ThreadPoolExecutor(options.jobs) as pool:

            def valid(tried: list[Choice], seed: int) -> list[float]:
                runs = pool.map(lambda choice: self.run(kind, arm, start, choice, seed), tried)
                return [run["valid"] for run in runs]

            first = valid(choices, TRIAL_SEEDS[0])
            finalists = sorted(range(len(choices)), key=lambda at: -first[at])[:FINALISTS]
            tried = [choices[at] for at in finalists]
            found = [[first[at] for at in finalists], *(valid(tried, seed) for seed in TRIAL_SEEDS[1:])]
            means = [statistics.fmean(column) for column in zip(*found, strict=True)]
            best = tried[means.index(max(means))]
            return list(pool.map(lambda seed: self.run(kind, arm, start, best, seed), options.seeds))


def intervals(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float, tuple[float, float]]:
    """Mean difference of accuracy, half its interval over seeds, its interval over sentences; ``[seed, row]``."""
    by_seed = (ours - theirs).mean(1)
    half = T_95[len(by_seed)] * statistics.stdev(by_seed.tolist()) / len(by_seed) ** 0.5
    by_row = (ours - theirs).mean(0)
    draw = np.random.default_rng(0)
    means = [by_row[draw.integers(0, len(by_row), len(by_row))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(by_seed.mean()), float(half), (float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True, help="where runs and measurements are kept")
    parser.add_argument("--models", nargs="+", choices=["bert", "gpt"], default=["bert", "gpt"])
    parser.add_argument("--bert", type=Path, help="a pretrained run")
    parser.add_argument("--gpt", type=Path, help="a pretrained run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--steps", type=int, nargs="+", default=[650, 1300], help="of 32 sentences: epochs times 216")
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--words", type=float, nargs="+", help="weights of the words' loss, else the recipe's")
    parser.add_argument("--poolings", nargs="+", choices=["own", "mean"], default=["own", "mean"])
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other; several have one thread each")
    parser.add_argument("--pretraining-steps", type=int, help="fewer than the recipes'")
    options = parser.parse_args()
    if not 2 <= len(options.seeds) <= 10:
        parser.error("--seeds: 2 to 10 of them, for an interval")
    experiment = Experiment(options)
    for kind in options.models:
        rows: list[list[object]] = []
        start = pretrained(kind, options)
        found = {arm: experiment.arm(kind, arm, start) for arm in ("pretrained", "scratch")}
        right = {arm: np.array([run["right"] for run in runs], float) for arm, runs in found.items()}
        difference, half, (low, high) = intervals(right["pretrained"], right["scratch"])
        for arm, runs in found.items():
            accuracies = (100 * right[arm].mean(1)).tolist()
            seconds = statistics.median(run["seconds"] for run in runs)
            told = f"{statistics.fmean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
            rows.append([arm, *Choice(**{name: runs[0][name] for name in FIELDS}).cells, told,
                         " ".join(f"{accuracy:.2f}" for accuracy in accuracies), f"{seconds:.0f}"])  # fmt: skip
        rows.append(["difference", None, None, None, None, None, f"{100 * difference:.2f}",
                     f"{100 * (difference - half):.2f} to {100 * (difference + half):.2f} over seeds; "
                     f"{100 * low:.2f} to {100 * high:.2f} over sentences", None])  # fmt: skip
        write_page(kind, rows, options)


def write_page(kind: str, rows: list[list[object]], options: argparse.Namespace) -> None:
    """The results of one kind of net."""
    columns = ["weights", *FIELDS, "test accuracy, mean ± deviation", "each seed; 95 % intervals", "seconds a run"]
    body = common.table(columns, rows)
    grid = {"rates": options.rates, "steps": options.steps, "dropouts": options.dropouts,
            "weights of the words' loss": options.words or WORDS[kind]}  # fmt: skip
    tried = [f"{name} {', '.join(f'{value:g}' for value in values)}" for name, values in grid.items()]
    body += (
        f"\n\n{len(options.seeds)} seeds, 32 sentences a step; tried on the validation sentences (seed "
        f"{TRIAL_SEEDS[0]}, the best {FINALISTS} also under {', '.join(map(str, TRIAL_SEEDS[1:]))}): "
        f"{'; '.join(tried)}; pooling {', '.join(options.poolings)}. Recipe: `{kind}-classify`; pretraining: "
        f"`benchmarks/recipes/movie_reviews_{kind}.yaml`."
    )
    title = f"SST-2 by a pretrained {kind.upper()} and by the same net from scratch"
    common.write_result(f"fine_tuning_{kind}", title, body)


if __name__ == "__main__":
    main()
