"""Movie reviews, words: an LSTM against modified Kneser-Ney on equal terms.

Both rungs read the same token files: words that occur at least 3 times in training, the rest one unknown word, a
document per line, its end predicted. The n-gram starts afresh at each line; the LSTM carries its state across them,
which is part of what a recurrent model buys. Recipe: ``benchmarks/recipes/movie_reviews_lstm.yaml``.

    python benchmarks/movie_reviews.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common

RECIPE = Path(__file__).parent / "recipes" / "movie_reviews_lstm.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/movie_reviews"))
    parser.add_argument("--orders", type=int, nargs="*", default=[2, 3, 5])
    options = parser.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = [f"--data.{split}={options.data / split}.txt" for split in ("train", "valid", "test")]
        data += [f"--data.cache={root / 'cache'}"]
        words = ["--data.document=line", "--data.tokenizer.kind=word", "--data.tokenizer.min_count=3",
                 "--data.tokenizer.vocab_size=null"]  # fmt: skip
        jobs: list[tuple[str, list[object]]] = [
            (f"Kneser-Ney {order}-gram", ["ngram", f"--model.order={order}", *words]) for order in options.orders
        ]
        for name, arguments in [*jobs, ("LSTM 512", list[object]([RECIPE]))]:
            run = root / name.replace(" ", "-")
            trained = common.gradatim("train", *arguments, "--run", run, *data)
            test = common.gradatim("evaluate", run, "--text", options.data / "test.txt")
            rows.append(
                [
                    name,
                    trained["wall_seconds"],
                    test["tokens"],
                    test["perplexity"],
                    test["perplexity_without_unknown"],
                ]
            )
    body = common.table(["rung", "training, wall seconds", "test tokens", "test perplexity", "without unknown"], rows)
    body += f"\n\nThe LSTM's recipe:\n\n```yaml\n{RECIPE.read_text().strip()}\n```"
    common.write_result("movie_reviews", "Movie reviews: LSTM and Kneser-Ney", body)


if __name__ == "__main__":
    main()
