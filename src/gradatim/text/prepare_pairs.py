"""From sentence pairs to token files: two a split, ``train.source`` and ``train``, pair i being document i of both.

``tokenizer.json`` is the target's, or both languages' where they share one; ``source-tokenizer.json`` is the source's
where they do not. Pairs of validation and test whose source or target also stands in training are counted: that is
how a translator comes to be flattered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.config.origin import SOURCE_TOKENIZER
from gradatim.config.settings import DataConfig
from gradatim.errors import DataError, Problem
from gradatim.text.pairs import brings_its_own_parts, read_splits
from gradatim.text.sources import Tally
from gradatim.text.tokenfile import TokenFile
from gradatim.text.tokenizer import Tokenizer, load_tokenizer
from gradatim.text.vocabulary import train_tokenizer
from gradatim.text.words import split_words

SPLITS = ("train", "valid", "test")
FREQUENT = 200
"""Words of each language that a run remembers, to notice text in the wrong one."""
MANY_UNKNOWN = 0.05
"""Share of unknown words from which a split into pieces would do better."""


def make_pairs(config: DataConfig, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write tokenizers and token files of a data section of pairs into a folder; the report.

    Raises:
        DataError: there are no pairs, or a file of them cannot be used.
    """
    tallies = {split: Tally() for split in SPLITS}
    wanted = [split for split in SPLITS if split == "train" or _is_named(config, split)]
    pairs = read_splits(config, wanted, tallies)
    for split in wanted:
        if not pairs[split] and (split == "train" or config.split == "given"):
            raise DataError(Problem(where=f"data.{split}", what="there are no pairs",
                                    attempt="name files with a sentence on both sides of a line"))  # fmt: skip
    columns = [[pair[side] for pair in pairs["train"]] for side in (0, 1)]
    named = config.tokenizer
    target = _learn(config, named.path, columns[0] + columns[1] if config.joint else columns[1], say)
    source = target if config.joint else _learn(config, named.source_path, columns[0], say)
    target.save(folder / "tokenizer.json")
    if not config.joint:
        source.save(folder / SOURCE_TOKENIZER)
    splits: dict[str, Any] = {}
    described: dict[str, Any] = {}
    known = [set(column) for column in columns]
    words = {side: frequent_words(column) for side, column in zip(("source", "target"), columns, strict=True)}
    for split, found in pairs.items():
        if not found:
            say(f"{split}: too few pairs to hold any out, so there is no such part")
            continue
        say(f"encoding {split}")
        tally = tallies[split]
        sides = [[pair[side] for pair in found] for side in (0, 1)]
        size = sum(len(text.encode()) + 1 for text in sides[0])
        sources = _write(folder / f"{split}.source", source, sides[0], size)
        targets = _write(folder / split, target, sides[1], sum(len(text.encode()) + 1 for text in sides[1]))
        tally.tell(say, split)
        if _crossed(sides, words):
            say(f"WARNING: {split}: its sources look like train's targets, its targets like train's sources; the two "
                "files may have changed places")  # fmt: skip
        leaks = [sum(text in known[side] for text in sides[side]) if split != "train" else 0 for side in (0, 1)]
        if leaks[0] or leaks[1]:
            say(f"{split}: {leaks[0]:,} sources and {leaks[1]:,} targets of {len(found):,} pairs are also in train")
        splits[split] = {
            **targets.facts(), "source tokens": sources.meta.tokens,
            "source unknown": sources.meta.unknown, "dropped": dict(tally.dropped),
            "also in train": leaks[1], "sources also in train": leaks[0],
        }  # fmt: skip
        described[f"{split}.source"] = sources.facts()
    return {
        "documents": sum(part["documents"] for part in splits.values()),
        "tokens": sum(part["tokens"] for part in splits.values()),
        "bytes": sum(part["bytes"] for part in splits.values()),
        "vocabulary": target.vocab_size,
        "source vocabulary": source.vocab_size,
        "dropped": dict(sum((Counter(part["dropped"]) for part in splits.values()), Counter())),
        "splits": splits,
        "sources": described,
        "tokenizer": target.fingerprint,
        "languages": {str(config.source_language): words["source"], str(config.target_language): words["target"]},
        "sha256": {},
    }  # fmt: skip


def tell_unknown(report: dict[str, Any], kind: str, config: DataConfig, say: Callable[[str], None]) -> None:
    """Say so where many words of the validation part are unknown: what the model writes of them is one word."""
    part = report["splits"].get("valid")
    if part is None:
        return
    sides = {"sources": (part["source unknown"], part["source tokens"]), "targets": (part["unknown"], part["tokens"])}
    noun = "characters" if kind == "char" else "words"
    hint = "" if config.tokenizer.path else "; try: --data.tokenizer.kind bpe --data.tokenizer.vocab_size 4000"
    for side, (unknown, tokens) in sides.items():
        words = tokens - part["documents"]  # the end of each sentence is none
        if unknown > MANY_UNKNOWN * words:
            share = f"{100 * unknown / words:.0f} %"
            say(f"{unknown:,} of {words:,} {noun} of valid's {side} are unknown ({share}){hint}")


def _is_named(config: DataConfig, split: str) -> bool:
    held = dict(zip(("valid", "test"), config.held_out))
    named = bool(getattr(config, split) or getattr(config, f"{split}_source"))
    return named or brings_its_own_parts(config) or (config.split == "component" and held[split] > 0)


def _learn(config: DataConfig, path: str | None, texts: Sequence[str], say: Callable[[str], None]) -> Tokenizer:
    """The one that the config names, or one learned from the training pairs."""
    if path is not None:
        say(f"taking the vocabulary of {path}")
        return load_tokenizer(Path(path))
    say(f"learning a {config.tokenizer.kind} vocabulary from {len(texts):,} sentences")
    return train_tokenizer(config.tokenizer, texts)


def _write(prefix: Path, tokenizer: Tokenizer, texts: Sequence[str], text_bytes: int) -> TokenFile:
    end = np.array([tokenizer.boundary], np.int64)
    return TokenFile.write(
        prefix,
        (np.concatenate([ids, end]) for ids in tokenizer.encode_batch(texts)),
        vocab_size=tokenizer.vocab_size,
        boundary=tokenizer.boundary,
        tokenizer=tokenizer.fingerprint,
        text_bytes=text_bytes,
        unknown=tokenizer.unknown,
    )


def _crossed(sides: Sequence[Sequence[str]], words: dict[str, list[str]]) -> bool:
    """Whether each side of a split looks like the other one of training."""
    seen = [looks_like(" ".join(side[:FREQUENT]), words) for side in sides]
    return seen == ["target", "source"]


def frequent_words(texts: Sequence[str]) -> list[str]:
    """The commonest words of a language, lower-cased."""
    counts = Counter(word for text in texts for word in split_words(text, lowercase=True))
    return sorted(counts, key=lambda word: (-counts[word], word))[:FREQUENT]


def looks_like(text: str, languages: dict[str, list[str]]) -> str | None:
    """The language most of whose very own frequent words a text holds; None where there are few or it is even."""
    words = split_words(text, lowercase=True)
    own = {name: set(found).difference(*(rest for other, rest in languages.items() if other != name))
           for name, found in languages.items()}  # fmt: skip
    hits = {name: sum(word in found for word in words) for name, found in own.items()}
    best = max(hits, key=lambda name: hits[name])
    others = sum(count for name, count in hits.items() if name != best)
    return best if hits[best] >= 2 + 2 * others else None


def not_aligned(folder: Path, sources: dict[str, TokenFile], targets: dict[str, TokenFile | None]) -> None:
    """Raise DataError where the two files of a split do not hold equally many sentences."""
    for split, file in sources.items():
        other = targets[split]
        if other is None or len(file) != len(other):
            raise DataError(Problem(where=str(folder / split), what="source and target are not of one text",
                                    got=f"{len(file):,} and {0 if other is None else len(other):,} sentences",
                                    attempt="remove the folder, and prepare again"))  # fmt: skip
