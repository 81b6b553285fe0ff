"""Translation, rung by rung, on Multi30k's test_2016 (and fra-eng split by component).

    python benchmarks/translation.py --runs DIR                        # all that are not yet measured, in turn
    python benchmarks/translation.py --runs DIR attention-de-en        # one of them, again if need be
    python benchmarks/translation.py --report                          # the page of what is there

Each rung is trained by its recipe in ``benchmarks/recipes/``, judged with five beams on the mean of its newest
checkpoints, and its figures are kept at once in ``results/translation.json``, with the day; a run that was interrupted
goes on, and its minutes are then those of all its steps, without evaluations. English and French are the lower-cased,
tokenised text that published figures use, and BLEU is over that text's own tokens. German is the raw text, lower-cased
here, and BLEU is over the tokens that sacreBLEU's 13a finds in lower-cased text.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Rung:
    """A translator to train."""

    title: str
    recipe: str
    source: str
    target: str
    asked: float | None
    """Tokenised BLEU."""
    average: int = 1
    """Checkpoints whose mean is judged."""


RUNGS = {
    "one-lm-de-en": Rung("one language model (LSTM)", "multi30k_one_lm.yaml", "de", "en", None),
    "one-lm-gpt-de-en": Rung("one language model (Transformer)", "multi30k_one_lm_gpt.yaml", "de", "en", None),
    "seq2seq-de-en": Rung("encoder-decoder", "multi30k_seq2seq.yaml", "de", "en", 20.6),
    "attention-de-en": Rung("+ attention", "multi30k_attention.yaml", "de", "en", 28.3),
    "transformer-de-en": Rung("Transformer", "multi30k_transformer.yaml", "de", "en", 33.0, average=5),
    "transformer-en-fr": Rung("Transformer-Tiny", "multi30k_transformer.yaml", "en", "fr", 55.0, average=5),
    "transformer-en-fr-full": Rung(
        "Transformer-Tiny, 8,000 updates", "multi30k_transformer_full.yaml", "en", "fr", None, average=10
    ),
    "attention-fr-en": Rung("+ attention", "multi30k_attention.yaml", "fr", "en", 45.0),
    "fra-eng": Rung("Transformer-Tiny, fra-eng", "fra_eng_transformer.yaml", "en", "fr", None, average=5),
}
"""Language pairs with German read ``multi30k``, others ``multi30k-tok-lc``."""


def pairs_of(rung: Rung, data: Path, folder: Path) -> list[str]:
    """The options that name a rung's text."""
    options = [f"--data.source_language={rung.source}", f"--data.target_language={rung.target}"]
    if rung.recipe.startswith("fra_eng"):
        return [*options, f"--data.train={data / 'fra-eng' / 'fra.txt'}"]
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
        for side, language in (("source", rung.source), ("target", rung.target)):
            if "de" in (rung.source, rung.target):
                text = (data / "multi30k" / f"{name}.{language}").read_text(encoding="utf-8")
                path = folder / f"{name}.{language}"
                path.write_text(text.lower(), encoding="utf-8")
            else:
                path = data / "multi30k-tok-lc" / f"{name}.lc.norm.tok.{language}"
            options.append(f"--data.{split}_{side}={path}")
    return [*options, f"--data.tokenised={'false' if 'de' in (rung.source, rung.target) else 'true'}"]


def leaks(name: str, options: argparse.Namespace) -> list[int]:
    """How many pairs to be judged on have a source, and how many a target, that also stands in training."""
    rung, out = RUNGS[name], options.runs / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    prepared = common.gradatim(
        "prepare", RECIPES / rung.recipe, *pairs_of(rung, options.data, options.runs / "text"), "--out", out,
        f"--data.cache={options.runs / 'cache'}",
    )  # fmt: skip
    test = prepared["splits"]["test"]
    return [test["sources also in train"], test["also in train"]]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one rung."""
    rung = RUNGS[name]
    text = options.runs / "text"
    text.mkdir(parents=True, exist_ok=True)
    run = options.runs / name
    whole = not run.exists()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    trained = common.gradatim(
        "train", RECIPES / rung.recipe, *pairs_of(rung, options.data, text), "--run", run,
        f"--data.cache={options.runs / 'cache'}", *([] if whole else ["--resume"]),
    )  # fmt: skip
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    judged = common.gradatim("evaluate", run, "--average", rung.average)
    greedy = common.gradatim("evaluate", run, "--average", rung.average, "--beams", 1)
    wanted = (
        "bleu", "chrf", "signature", "bleu_tokenised", "bleu_tokenised_by", "nats_per_token", "sentences",
        "sentences_per_second", "by_source_length",
    )  # fmt: skip
    return {
        "name": name, "date": time.strftime("%Y-%m-%d"), "machine": common.machine(), "whole": whole,
        "wall": wall if whole else trained["seconds"], "processor": processor if whole else None,
        **{key: judged[key] for key in wanted}, "leaks": leaks(name, options),
        "greedy": greedy["bleu_tokenised"], "greedy_sentences_per_second": greedy["sentences_per_second"],
    }  # fmt: skip


def minutes(row: dict[str, Any]) -> str:
    """Of training, and of its processors; of the steps alone, where a run went on; of what came since, in old rows."""
    if row["processor"] is None:
        return f"{row['wall'] / 60:.0f} (steps alone)"
    return f"{'' if row['whole'] else '> '}{row['wall'] / 60:.0f} ({row['processor'] / 60:.0f})"


def report(rows: list[dict[str, Any]]) -> None:
    """Write the page."""
    order = {name: place for place, name in enumerate(RUNGS)}
    rows = sorted(rows, key=lambda row: order[row["name"]])
    table = [
        [
            f"{RUNGS[row['name']].source}→{RUNGS[row['name']].target}", RUNGS[row["name"]].title,
            minutes(row),
            f"{row['bleu_tokenised']:.1f}",
            RUNGS[row["name"]].asked, f"{row['greedy']:.1f}", f"{row['bleu']:.1f}", f"{row['chrf']:.1f}",
            f"{row['sentences_per_second']:.0f} ({row['greedy_sentences_per_second']:.0f})",
            row["sentences"], "{}, {}".format(*row["leaks"]), row["date"], row["machine"],
        ]
        for row in rows
    ]  # fmt: skip
    columns = [
        "pair", "rung", "training: minutes (of processors)", "tokenised BLEU, beam 5", "asked", "greedy",
        "sacreBLEU", "chrF", "sentences/s, beam 5 (greedy)",
        "test pairs", "their sources, targets also in training", "measured", "on",
    ]  # fmt: skip
    parts = [common.table(columns, table), "## BLEU by words of the source"]
    spans = list(dict.fromkeys(part["words"] for row in rows for part in row["by_source_length"]))
    lengths = [
        [
            f"{RUNGS[row['name']].source}→{RUNGS[row['name']].target}",
            RUNGS[row["name"]].title,
            *(
                next((f"{part['bleu']:.1f}" for part in row["by_source_length"] if part["words"] == words), None)
                for words in spans
            ),
        ]
        for row in rows
    ]
    parts.append(common.table(["pair", "rung", *spans], lengths))
    signatures = sorted({f"{row['signature']}; tokenised: {row['bleu_tokenised_by']}" for row in rows})
    parts.append("Signatures: " + "; ".join(f"`{one}`" for one in signatures) + ".")
    for recipe in dict.fromkeys(RUNGS[row["name"]].recipe for row in rows):
        parts.append(f"`{recipe}`:\n\n```yaml\n{(RECIPES / recipe).read_text(encoding='utf-8').strip()}\n```")
    common.write_result("translation", "Translation, rung by rung", "\n\n".join(parts), "sacrebleu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rungs", nargs="*", metavar="RUNG", help=f"Of {', '.join(RUNGS)} [all].")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, help="Where the run directories are kept.")
    parser.add_argument("--keep", type=Path, default=common.RESULTS / "translation.json",
                        help="Where each rung's figures are kept.")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="Train nothing.")
    options = parser.parse_args()
    unknown = [name for name in options.rungs if name not in RUNGS]
    if unknown:
        parser.error(f"no rung {', '.join(unknown)}; there are {', '.join(RUNGS)}")
    if not options.report and options.runs is None:
        parser.error("--runs: say where the run directories are kept")
    kept = common.Kept(options.keep)
    if not options.report:
        there = {row["name"] for row in kept.rows}
        for name in options.rungs or [rung for rung in RUNGS if rung not in there]:
            row = measure(name, options)
            kept = common.Kept(options.keep)  # read again: another process may have measured one meanwhile
            kept.rows = [other for other in kept.rows if other["name"] != name]
            kept.add(**row)
    report(kept.rows)


if __name__ == "__main__":
    main()
