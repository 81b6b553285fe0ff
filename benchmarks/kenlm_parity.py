"""Modified Kneser-Ney against KenLM: the same perplexities, and how long they take.

Every cell of the table is computed by us and, with ``--kenlm``, by KenLM's lmplz and query in the same run, from
the same words; beside them stands the published figure. Then both count and smooth 1.34 million words at order 5,
as whole processes in turn, from the text to a saved model; and both score its test text (KenLM through its own
Python module, ``--kenlm-python``).

    python benchmarks/kenlm_parity.py --kenlm BUILD/bin --kenlm-python PYTHON_WITH_KENLM
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from math import exp
from pathlib import Path

import numpy as np

import common

PUBLISHED = {
    ("multi30k en", "test_2016"): {2: 46.082, 3: 37.030, 4: 35.757, 5: 35.800},
    ("multi30k en", "val"): {2: 46.783, 3: 37.427, 4: 36.021, 5: 36.121},
    ("multi30k fr", "test_2016"): {2: 33.789, 3: 23.380, 4: 22.319, 5: 22.294},
    ("movie_reviews", "test"): {2: 177.66, 3: 145.76, 4: 139.72, 5: 138.84},
    ("tinyshakespeare characters", "valid"): {
        order: exp(nats) for order, nats in {2: 2.4835, 3: 2.0382, 4: 1.7191, 5: 1.5613, 6: 1.5227}.items()
    },
}  # fmt: skip
SPACES = {" ": "<sp>", "\n": "<nl>"}


def texts(data: Path) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """Lines of words to learn from and to be judged on, for each row of the table."""
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for language in ("en", "fr"):
        folder = data / "multi30k-tok-lc"
        train = lines(folder / f"train.lc.norm.tok.{language}")
        for name, file in (("test_2016", "test_2016_flickr"), ("val", "val")):
            found[(f"multi30k {language}", name)] = train, lines(folder / f"{file}.lc.norm.tok.{language}")
    train, test = (lines(data / "movie_reviews" / f"{split}.txt") for split in ("train", "test"))
    counts = Counter(word for line in train for word in line.split())
    keep = [
        [" ".join(w if counts[w] >= 3 else "<rare>" for w in line.split()) for line in part] for part in (train, test)
    ]
    found[("movie_reviews", "test")] = keep[0], keep[1]
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    spelled = [" ".join(SPACES.get(c, c) for c in part) for part in (text[:cut], text[cut:])]
    found[("tinyshakespeare characters", "valid")] = [spelled[0]], [spelled[1]]
    return found


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def fit(train: list[str], order: int):
    """Tokenizer and model of lines of words."""
    from gradatim.config.settings import NgramConfig, TokenizerConfig
    from gradatim.models.ngram import fit_ngram
    from gradatim.text.vocabulary import train_tokenizer

    tokenizer = train_tokenizer(TokenizerConfig(kind="word", vocab_size=None), train)
    tokens = encode(tokenizer, train)
    return tokenizer, fit_ngram(
        NgramConfig(order=order, discount_fallback=True), tokens, tokenizer.vocab_size, tokenizer.boundary
    )


def encode(tokenizer, part: list[str]) -> np.ndarray:
    end = np.array([tokenizer.boundary])
    return np.concatenate([piece for ids in tokenizer.encode_batch(part) for piece in (ids, end)])


def our_perplexity(train: list[str], test: list[str], order: int) -> float:
    from gradatim.evaluate.likelihood import log_probs

    tokenizer, model = fit(train, order)
    return exp(-log_probs(model, encode(tokenizer, test), tokenizer.boundary).mean())


def kenlm_perplexity(binaries: Path, folder: Path, train: list[str], test: list[str], order: int) -> float:
    arpa = folder / "model.arpa"
    command = [
        str(binaries / "lmplz"),
        "-o",
        str(order),
        "-S",
        "1G",
        "-T",
        str(folder),
        "--discount_fallback",
        "--arpa",
        str(arpa),
    ]
    subprocess.run(
        command,
        input="\n".join(train) + "\n",
        text=True,
        check=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    answer = subprocess.run(
        [str(binaries / "query"), "-v", "summary", str(arpa)],
        input="\n".join(test) + "\n", text=True, check=True, capture_output=True,
    )  # fmt: skip
    return float(re.search(r"including OOVs:\s*([\d.e+]+)", answer.stdout)[1])  # type: ignore[index]


def worker(train_path: Path, test_path: Path) -> None:
    """Count, smooth and save one model, then score: what the timing runs as a process of its own."""
    from gradatim.evaluate.likelihood import log_probs
    from gradatim.train.checkpoint import write_safetensors

    train, test = lines(train_path), lines(test_path)
    started = time.perf_counter()
    tokenizer, model = fit(train, 5)
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder) / "model.safetensors", model.tensors())
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tokens = encode(tokenizer, test)
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        log_probs(model, tokens, tokenizer.boundary)
        rates.append(len(tokens) / (time.perf_counter() - started))
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "tokens_per_second": max(rates)}))


KENLM_SCORING = """
import sys, time, kenlm
model = kenlm.Model(sys.argv[1]); lines = open(sys.argv[2], encoding="utf-8").read().split("\\n")[:-1]
tokens = sum(len(line.split()) + 1 for line in lines); best = 0
for _ in range(5):
    started = time.perf_counter()
    for line in lines: model.score(line)
    best = max(best, tokens / (time.perf_counter() - started))
print(best)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kenlm", type=Path, help="the folder that holds lmplz and query")
    parser.add_argument("--kenlm-python", help="a Python that has KenLM's module")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    rows: list[list[object]] = []
    found = texts(options.data)
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, (train, test) in found.items():
            for order, published in PUBLISHED.get(key, {}).items():
                ours = our_perplexity(train, test, order)
                theirs = kenlm_perplexity(options.kenlm, folder, train, test, order) if options.kenlm else published
                worst = max(worst, abs(ours / theirs - 1))
                rows.append(
                    [
                        *key,
                        order,
                        f"{ours:.4f}",
                        f"{theirs:.4f}" if options.kenlm else None,
                        f"{published:.4f}",
                        f"{ours / theirs - 1:+.4%}",
                    ]
                )
        body = common.table(
            ["corpus", "test", "order", "ours", "KenLM, this run", "published", "ours / KenLM - 1"], rows
        )
        body += f"\n\nLargest difference: {worst:.4%}."
        body += timing(options, folder, *found[("movie_reviews", "test")])
    common.write_result("kenlm_parity", "Modified Kneser-Ney against KenLM", body)


def timing(options: argparse.Namespace, folder: Path, train: list[str], test: list[str]) -> str:
    """Counting and smoothing order 5 as processes in turn, and the rate of scoring."""
    train_path, test_path, arpa = folder / "train.txt", folder / "test.txt", folder / "timed.arpa"
    train_path.write_text("\n".join(train) + "\n", encoding="utf-8")
    test_path.write_text("\n".join(test) + "\n", encoding="utf-8")
    ours, theirs, facts = [], [], {}
    for _ in range(options.runs):
        started = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, __file__, "--worker", str(train_path), str(test_path)],
            check=True,
            capture_output=True,
            text=True,
        )
        facts = json.loads(answer.stdout)
        ours.append(facts["seconds"])
        if options.kenlm:
            command = [str(options.kenlm / "lmplz"), "-o", "5", "-S", "1G", "-T", str(folder), "--arpa", str(arpa)]
            started = time.perf_counter()
            with train_path.open("rb") as file:
                subprocess.run(command, stdin=file, check=True, stderr=subprocess.DEVNULL)
            theirs.append(time.perf_counter() - started)
    words = sum(len(line.split()) for line in train)
    text = f"\n\nMovie reviews, {words:,} words, order 5, from text to saved model: ours {common.spread(ours)} s"
    text += f" (imports not counted), peak {facts['peak_gib']:.2f} GiB"
    if theirs:
        ratios = [a / b for a, b in zip(ours, theirs)]
        text += f"; lmplz {common.spread(theirs)} s; ours / lmplz, paired: {common.spread(ratios)}"
    text += f". Scoring: ours {facts['tokens_per_second']:,.0f} tokens/s"
    if options.kenlm_python and options.kenlm:
        answer = subprocess.run(
            [options.kenlm_python, "-c", KENLM_SCORING, str(arpa), str(test_path)],
            check=True,
            capture_output=True,
            text=True,
        )
        rate = float(answer.stdout)
        text += f"; KenLM's Python module {rate:,.0f} tokens/s; ours / KenLM {facts['tokens_per_second'] / rate:.2f}"
    return text + "."


if __name__ == "__main__":
    main()
