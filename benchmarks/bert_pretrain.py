"""BERT-Tiny pretrained on movie reviews: blanks and next sentences of held-out documents, beside two baselines.

Blanks: nats per blank beside the entropy of the words there by their frequency. Pairs: accuracy beside tf-idf, which
says that B follows A where the cosine of their word vectors is above a threshold (inverse document frequencies of the
training documents; the threshold that is best on the validation pairs). Both judge the same pairs of test documents.

    python benchmarks/bert_pretrain.py                          # 40 minutes on two cores with AVX-512
    python benchmarks/bert_pretrain.py --run runs/reviews       # in pieces: the run is kept, and goes on
    python benchmarks/bert_pretrain.py --set precision=fp32 layout.dp=2    # on a CPU that is slow in bf16

With ``--set`` the page is ``results/bert_pretrain_other.md``: it is another recipe.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import common
from gradatim.config.settings import RunConfig
from gradatim.text.batches import IGNORE, Batch
from gradatim.text.feed import masked_rows
from gradatim.text.masked_rows import FOLLOWS
from gradatim.text.prepare import Prepared, prepare
from gradatim.train import Run

RECIPE = Path(__file__).parent / "recipes" / "movie_reviews_bert.yaml"


def document_frequencies(prepared: Prepared) -> NDArray[np.float64]:
    """log(documents / documents with the word), of every id."""
    counts = np.zeros(prepared.tokenizer.vocab_size)
    for number in range(len(prepared.train)):
        counts[np.unique(prepared.train.document(number))] += 1
    inverse: NDArray[np.float64] = np.log(len(prepared.train) / np.maximum(counts, 1))
    return inverse


def cosines(batch: Batch, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of A and B of each row, as they were before blanks; marks and padding weigh nothing."""
    assert batch.positions is not None and batch.segments is not None and batch.lengths is not None
    ids = batch.ids.numpy().copy()
    known = batch.targets.numpy() != IGNORE
    row = np.broadcast_to(np.arange(len(ids))[:, None], known.shape)
    ids[row[known], batch.positions.numpy()[known]] = batch.targets.numpy()[known]
    found = []
    for tokens, segments, length in zip(ids, batch.segments.numpy(), batch.lengths.tolist(), strict=True):
        a, b = (
            np.bincount(tokens[:length][segments[:length] == part], minlength=len(weights)) * weights for part in (0, 1)
        )
        norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
        found.append(float(a @ b) / max(norms, 1e-12))
    return np.array(found)


def tf_idf_accuracy(config: RunConfig, prepared: Prepared) -> tuple[float, float]:
    """On the test pairs, and the threshold that was best on the validation pairs."""
    weights = document_frequencies(prepared)
    marks = prepared.tokenizer.marks
    assert marks is not None
    weights[[marks.begin, marks.end, marks.pad, marks.blank]] = 0.0
    scores, follows = {}, {}
    for split in ("valid", "test"):
        batches = masked_rows(config, prepared, split).every()
        scores[split] = np.concatenate([cosines(batch, weights) for batch in batches])
        labels = [batch.labels.numpy() for batch in batches if batch.labels is not None]
        follows[split] = np.concatenate(labels) == FOLLOWS
    candidates = np.unique(scores["valid"])
    right = [float(np.mean((scores["valid"] >= c) == follows["valid"])) for c in candidates]
    threshold = float(candidates[int(np.argmax(right))])
    return float(np.mean((scores["test"] >= threshold) == follows["test"])), threshold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/movie_reviews"))
    parser.add_argument("--run", type=Path, help="keep the run here, or go on with the one that is here")
    parser.add_argument("--steps", type=int, help="fewer or more than the recipe's")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="other settings than the recipe's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or Path(folder) / "run"
        data = [f"--data.{split}={options.data / split}.txt" for split in ("train", "valid", "test")]
        steps = ["--steps", options.steps] if options.steps else []
        trained = common.gradatim("train", RECIPE, "--run", run, "--resume", *data, *steps,
                                  *(f"--{setting}" for setting in options.set))  # fmt: skip
        test = common.gradatim("evaluate", run)
        config = Run.open(run).config
        prepared = prepare(config.data)
        baseline, threshold = tf_idf_accuracy(config, prepared)
    rows: list[list[object]] = [
        ["nats per blank", test["nats_per_blank"], f"{test['unigram_nats']:.3f} (frequencies of the words there)"],
        ["accuracy of blanks", test["accuracy"], None],
        ["accuracy of pairs", test["pair_accuracy"], f"{baseline:.3f} (tf-idf, cosine ≥ {threshold:.3f})"],
    ]
    told = f" (here with {', '.join(options.set)})" if options.set else ""
    body = common.table(["held-out documents", "BERT-Tiny", "baseline"], rows)
    body += (
        f"\n\n{trained['parameters']:,} parameters, {trained['step']:,} steps, {trained['tokens']:,} tokens read in "
        f"{trained['seconds'] / 60:.1f} minutes of training ({trained['tokens_per_second']:,.0f} tokens/s); "
        f"{test['blanks']:,} blanks and {test['pairs']:,} pairs of the test documents at context {config.context}. "
        f"The recipe{told}:\n\n```yaml\n{RECIPE.read_text().strip()}\n```"
    )
    common.write_result(
        "bert_pretrain_other" if options.set else "bert_pretrain", "BERT-Tiny pretrained on movie reviews", body
    )


if __name__ == "__main__":
    main()
