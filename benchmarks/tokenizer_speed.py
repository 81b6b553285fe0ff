"""Byte-pair encoding of long documents on one core: gradatim, ``tokenizers``, plain ``tiktoken``; one tokenizer.json.

One vocabulary is trained on the file; then its documents (blank-line separated) are encoded one by one by each, runs
alternating. Every id of every document is compared before anything is timed.

    python benchmarks/tokenizer_speed.py [FILE]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken
import tokenizers

import common
from gradatim.config.settings import DataConfig, TokenizerConfig
from gradatim.text.sources import Tally, read_documents
from gradatim.text.tokenizer import GPT2_PATTERN, BpeTokenizer
from gradatim.text.vocabulary import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", default="../shared/data/movie_reviews/train.txt")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--document", choices=["file", "blank-line", "line"], default="blank-line")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    data = DataConfig(train=(options.file,), document=options.document)
    texts = list(read_documents(data.train, "train", data, Tally()))
    size = sum(len(text.encode()) for text in texts) / 1e6
    ours = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=options.vocab_size), texts)
    assert isinstance(ours, BpeTokenizer)
    library = tokenizers.Tokenizer.from_str(ours.engine.to_str())
    ranks = {raw: number for number, raw in enumerate(ours.bytes) if raw}
    plain = tiktoken.Encoding("plain", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})

    arrays = ours.encode_batch(texts)
    tokens = sum(map(len, arrays))
    for text, ids in zip(texts, arrays, strict=True):
        expected = library.encode(text, add_special_tokens=False).ids
        assert ids.tolist() == expected == plain.encode_ordinary(text), "the ids differ"

    engines: dict[str, Callable[[], object]] = {
        "gradatim, arrays": lambda: ours.encode_batch(texts),
        "gradatim, lists": lambda: [ours.encode(text) for text in texts],
        "tiktoken": lambda: [plain.encode_ordinary(text) for text in texts],
        "tokenizers": lambda: [library.encode(text, add_special_tokens=False).ids for text in texts],
        "tokenizers, batch": lambda: [e.ids for e in library.encode_batch_fast(texts, add_special_tokens=False)],
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.runs):
        for name, encode in engines.items():
            started = time.perf_counter()
            encode()
            rates[name].append(size / (time.perf_counter() - started))
    fastest = [max(pair) for pair in zip(rates["tokenizers"], rates["tokenizers, batch"])]
    rows = [
        [name, common.spread(speed), common.spread([a / b for a, b in zip(speed, fastest)])]
        for name, speed in rates.items()
    ]
    body = f"{Path(options.file).name}: {size:.2f} MB in {len(texts):,} documents, {tokens:,} tokens, vocabulary "
    body += f"{ours.vocab_size:,}; one core, {options.runs} alternating runs, median (range). All ids equal.\n\n"
    body += common.table(["engine", "MB/s", "ratio to the faster `tokenizers` call of the same run"], rows)
    common.write_result("tokenizer_speed", "Byte-pair encoding on one core", body, "tokenizers", "tiktoken")


if __name__ == "__main__":
    main()
