"""BERT-Tiny pretrained on movie reviews: blanks and next sentences of held-out documents, beside two baselines.

Blanks: nats per blank beside the entropy of the words there by their frequency. Pairs: accuracy beside tf-idf, which
says that B follows A where the cosine of their word vectors is above a threshold (inverse document frequencies of the
training documents; the threshold that is best on the validation pairs). Some 800 pairs of one draw say little of an
accuracy, so the test documents are cut and paired several times, and every judge reads the same pairs: tf-idf whole
texts, the net both those and texts with blanks, as it was trained. The error given is of documents: the standard
deviation of their means over bootstrap samples of them, a document's pairs of all draws staying together.

    python benchmarks/bert_pretrain.py                          # 40 minutes on two cores with AVX-512
    python benchmarks/bert_pretrain.py --run runs/reviews --seeds 0 1 2      # kept as runs/reviews/seed-0 …
    python benchmarks/bert_pretrain.py --set precision=fp32 layout.dp=2      # on a CPU that is slow in bf16

With ``--set`` the page is ``results/bert_pretrain_other.md``: it is another recipe.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import common
from gradatim.config.settings import RunConfig
from gradatim.models.bert import BERT
from gradatim.text.batches import IGNORE, Batch
from gradatim.text.feed import masked_rows
from gradatim.text.masked_rows import FOLLOWS, MaskedRows
from gradatim.text.prepare import Prepared, prepare
from gradatim.train import Run

RECIPE = Path(__file__).parent / "recipes" / "movie_reviews_bert.yaml"
DRAWS = 10
"""Times that the held-out documents are cut and paired."""
RESAMPLES = 2000


def without_blanks(batch: Batch) -> torch.Tensor:
    """The rows as the texts have them."""
    assert batch.positions is not None
    ids, known = batch.ids.clone(), batch.targets != IGNORE
    row = torch.arange(len(ids))[:, None].expand_as(known)
    ids[row[known], batch.positions[known]] = batch.targets[known]
    return ids


def follows(batches: list[Batch]) -> NDArray[np.bool_]:
    """Of each pair, whether B continues A."""
    return np.concatenate([batch.labels.numpy() == FOLLOWS for batch in batches if batch.labels is not None])


# ------------------------------------------------------------------ judges


def document_frequencies(prepared: Prepared) -> NDArray[np.float64]:
    """log(documents / documents with the word), of every id."""
    counts = np.zeros(prepared.tokenizer.vocab_size)
    for number in range(len(prepared.train)):
        counts[np.unique(prepared.train.document(number))] += 1
    inverse: NDArray[np.float64] = np.log(len(prepared.train) / np.maximum(counts, 1))
    return inverse


def cosines(batch: Batch, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of A and B of each row, without blanks; marks and padding weigh nothing."""
    assert batch.segments is not None and batch.lengths is not None
    found = []
    rows = zip(without_blanks(batch).numpy(), batch.segments.numpy(), batch.lengths.tolist(), strict=True)
    for tokens, segments, length in rows:
        a, b = (
            np.bincount(tokens[:length][segments[:length] == part], minlength=len(weights)) * weights for part in (0, 1)
        )
        norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
        found.append(float(a @ b) / max(norms, 1e-12))
    return np.array(found)


def tf_idf(config: RunConfig, prepared: Prepared) -> tuple[list[NDArray[np.bool_]], float]:
    """Which test pairs of each draw it judges rightly, and the threshold that was best on the validation pairs."""
    weights = document_frequencies(prepared)
    marks = prepared.tokenizer.marks
    assert marks is not None
    weights[[marks.begin, marks.end, marks.pad, marks.blank]] = 0.0
    scores, labels = {}, {}
    for split in ("valid", "test"):
        drawn = [masked_rows(config, prepared, split).every(draw=draw) for draw in range(DRAWS)]
        scores[split] = [np.concatenate([cosines(batch, weights) for batch in batches]) for batches in drawn]
        labels[split] = [follows(batches) for batches in drawn]
    # The best threshold: those above it that follow, and those below that do not, are the most.
    order = np.argsort(np.concatenate(scores["valid"]))
    rising, right = np.concatenate(scores["valid"])[order], np.concatenate(labels["valid"])[order]
    gained = np.concatenate([[0], np.cumsum(np.where(right, -1, 1))])[:-1]
    threshold = float(rising[int(np.argmax(gained))])
    return [
        (score >= threshold) == label for score, label in zip(scores["test"], labels["test"], strict=True)
    ], threshold


@torch.no_grad()
def by_net(model: BERT, rows: MaskedRows, blanks: bool) -> list[NDArray[np.bool_]]:
    """Which pairs of each draw a net judges rightly, with blanks in the rows or without."""
    found = []
    for draw in range(DRAWS):
        batches = rows.every(draw=draw)
        said = []
        for batch in batches:
            hidden = model.hidden(batch.ids if blanks else without_blanks(batch), batch.segments, batch.lengths)
            said.append(model.head.pair_logits(model.head.whole(hidden)).argmax(1).numpy() == FOLLOWS)
        found.append(np.concatenate(said) == follows(batches))
    return found


def error_of_documents(right: NDArray[np.float64], rows: MaskedRows) -> float:
    """Standard error of a mean over pairs ``[draws, pairs]``, documents drawn anew with all their pairs."""
    document = np.searchsorted(rows.documents, rows.sentences[rows.starts], side="right") - 1
    sums = np.bincount(document, right.mean(0), minlength=len(rows.documents) - 1)
    sizes = np.bincount(document, minlength=len(sums))
    random = np.random.default_rng(0)
    drawn = random.integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return float(means.std())


# ------------------------------------------------------------------ runs


def trained(run: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A run of the recipe, trained or gone on with, and what ``gradatim evaluate`` says of it."""
    data = [f"--data.{split}={options.data / split}.txt" for split in ("train", "valid", "test")]
    steps = ["--steps", options.steps] if options.steps else []
    answer = common.gradatim("train", RECIPE, "--run", run, "--resume", f"--seed={seed}", *data, *steps,
                             *(f"--{setting}" for setting in options.set))  # fmt: skip
    return answer | {"test": common.gradatim("evaluate", run)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/movie_reviews"))
    parser.add_argument("--run", type=Path, help="keep the runs in this folder, or go on with those that are there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="fewer or more than the recipe's")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="other settings than the recipe's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        body = measured(options.run or Path(folder), options)
    common.write_result(
        "bert_pretrain_other" if options.set else "bert_pretrain", "BERT-Tiny pretrained on movie reviews", body
    )


def measured(folder: Path, options: argparse.Namespace) -> str:
    """Train and judge every seed; the page."""
    answers, seeds, runs = [], options.seeds, [folder / f"seed-{seed}" for seed in options.seeds]
    with_blanks, whole = [], []
    for seed, run in zip(seeds, runs, strict=True):
        answers.append(trained(run, seed, options))
        opened = Run.open(run)
        prepared = prepare(opened.config.data)
        rows, model = masked_rows(opened.config, prepared, "test"), opened.network()
        assert isinstance(model, BERT)
        with_blanks.append(np.array(by_net(model, rows, blanks=True), float))
        whole.append(np.array(by_net(model, rows, blanks=False), float))
    baseline, threshold = tf_idf(opened.config, prepared)
    tests = [answer["test"] for answer in answers]
    pairs = f"{DRAWS} x {rows.samples:,} pairs"

    def judged(name: str, right: list[NDArray[np.float64]], beside: object) -> list[object]:
        every = np.mean(right, 0)
        seen = [one.mean() for one in right]
        return [name, f"{every.mean():.4f} ± {error_of_documents(every, rows):.4f}", *_each(seen), beside]

    compared = np.array(baseline, float)
    told = f"{compared.mean():.4f} ± {error_of_documents(compared, rows):.4f} (tf-idf, cosine ≥ {threshold:.3f})"
    frequencies = f"{np.mean([test['unigram_nats'] for test in tests]):.3f} (frequencies of the words there)"
    blanks = [[test[name] for test in tests] for name in ("nats_per_blank", "accuracy")]
    table: list[list[object]] = [
        ["nats per blank", float(np.mean(blanks[0])), *_each(blanks[0]), frequencies],
        ["accuracy of blanks", float(np.mean(blanks[1])), *_each(blanks[1]), None],
        judged(f"accuracy of {pairs}, whole texts", whole, told),
        judged(f"accuracy of {pairs}, with blanks", with_blanks, None),
    ]
    several = [f"seed {seed}" for seed in seeds] if len(seeds) > 1 else []
    head = ["held-out documents", "BERT-Tiny" + (f", mean of {len(seeds)} seeds" if several else ""), *several]
    config, first = opened.config, answers[0]
    here = f" (here with {', '.join(options.set)})" if options.set else ""
    minutes = ", ".join(f"{answer['seconds'] / 60:.1f}" for answer in answers)
    speed = ", ".join(f"{answer['tokens_per_second']:,.0f}" for answer in answers)
    return common.table([*head, "baseline"], table) + (
        f"\n\n{first['parameters']:,} parameters, {first['step']:,} steps, {first['tokens']:,} tokens read in "
        f"{minutes} minutes of training ({speed} tokens/s); {tests[0]['blanks']:,} blanks of the test documents, "
        f"context {config.context}; ± is the standard error over documents, and draws of one net differ by "
        f"{float(np.mean([right.mean(1).std() for right in whole])):.3f} (standard deviation). "
        f"The recipe{here}:\n\n```yaml\n{RECIPE.read_text().strip()}\n```"
    )


def _each(values: list[float]) -> list[float]:
    """A column of each seed, where there are several."""
    return values if len(values) > 1 else []


if __name__ == "__main__":
    main()
