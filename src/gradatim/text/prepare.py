"""From a data section to token files: read, mend, learn the tokenizer from the training part, encode, keep.

The result lies in ``data.cache`` under a fingerprint of the settings and of the text itself, so the same text is
prepared once and a changed file is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.config.origin import SOURCE_TOKENIZER
from gradatim.config.rules_pairs import is_pairs
from gradatim.config.settings import DataConfig
from gradatim.errors import DataError, Problem
from gradatim.text import embedded, pairs
from gradatim.text.prepare_pairs import SPLITS, make_pairs, not_aligned
from gradatim.text.sources import (
    NAMED,
    Tally,
    brings_its_own_splits,
    files_of,
    is_corpus,
    named,
    read_documents,
    require_files,
)
from gradatim.text.tokenfile import DESCRIBED, TokenFile
from gradatim.text.tokenizer import Ids, Tokenizer, load_tokenizer
from gradatim.text.vocabulary import train_tokenizer

FORMAT = 5  # part of the fingerprint: raise it when preparing changes its result
ENCODE_TOGETHER = 1024


@dataclass(frozen=True, slots=True)
class Prepared:
    """Text ready for training."""

    tokenizer: Tokenizer
    train: TokenFile
    valid: TokenFile | None
    test: TokenFile | None
    report: dict[str, Any]
    """Counts by split, what was dropped or mended, leaks, sha256 of embedded corpora."""
    fingerprint: str
    """Of the settings and the text."""
    sources: dict[str, TokenFile] = field(default_factory=dict)
    """Of pairs: by split, the source sentences of the targets that ``train``, ``valid`` and ``test`` hold."""
    source_tokenizer: Tokenizer | None = None
    """Of pairs: what the source's ids stand for; ``tokenizer`` itself where both languages share it."""


def quiet(_: str) -> None:
    """Say nothing."""


def prepare(config: DataConfig, directory: Path | None = None, say: Callable[[str], None] = quiet) -> Prepared:
    """Make, or find, the token files of a data section; in ``directory`` if given, else in the cache.

    Raises:
        DataError: missing or empty text, or a tokenizer that cannot be used.
    """
    if brings_its_own_splits(config.train) and not config.valid and not config.test:
        config = replace(config, valid=config.train, test=config.train)
    fingerprint = _fingerprint(config)
    folder = directory or Path(config.cache) / fingerprint[:16]
    if (folder / "report.json").is_file():
        try:
            found = open_prepared(folder)
            if found.fingerprint != fingerprint:
                raise DataError(
                    Problem(
                        where=str(folder),
                        what="this folder holds another text or tokenizer",
                        got=found.fingerprint[:16],
                        allowed=fingerprint[:16],
                        attempt="another folder",
                    )
                )
        except DataError:
            if directory is not None:
                raise
            say(f"{folder} is damaged, preparing again")
            shutil.rmtree(folder)
        else:
            return found
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    fresh.mkdir(parents=True, exist_ok=True)
    try:
        report = make_pairs(config, fresh, say) if is_pairs(config) else _make(config, fresh, say)
        report["fingerprint"] = fingerprint
        (fresh / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        _publish(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return open_prepared(folder)


def open_prepared(folder: Path) -> Prepared:
    """Open and verify what ``prepare`` left in a folder: each part as the report describes it, and no other.

    Raises:
        DataError: a file that is missing, damaged, or of another part or text.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        fingerprint = str(report["fingerprint"])
        parts = {**report["splits"], **report.get("sources", {})}
        described = {name: {fact: part[fact] for fact in DESCRIBED} for name, part in parts.items()}
        if "train" not in described:
            raise KeyError("train")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(Problem(where=str(folder), what=f"this is not prepared text ({error})",
                                attempt="remove the folder, or gradatim prepare … --out DIR")) from None  # fmt: skip
    tokenizer = load_tokenizer(folder / "tokenizer.json")

    def opened(name: str, made_by: Tokenizer) -> TokenFile:
        file = TokenFile.open(folder / name, tokenizer=made_by.fingerprint)
        found, expected = file.facts(), described[name]
        wrong = [fact for fact in DESCRIBED if found[fact] != expected[fact]]
        if wrong:  # whole in themselves, but not what was prepared under this name
            raise DataError(Problem(where=str(file.prefix), what="these are the tokens of another part or text",
                                    got=f"{wrong[0]} {found[wrong[0]]}", allowed=f"{wrong[0]} {expected[wrong[0]]}",
                                    attempt="prepare the text again with gradatim prepare"))  # fmt: skip
        return file

    learned = opened("train", tokenizer)
    valid, test = (opened(name, tokenizer) if name in described else None for name in ("valid", "test"))
    if "train.source" not in described:
        return Prepared(tokenizer, learned, valid, test, report, fingerprint)
    source = load_tokenizer(folder / SOURCE_TOKENIZER) if (folder / SOURCE_TOKENIZER).exists() else tokenizer
    sources = {split: opened(f"{split}.source", source) for split in SPLITS if split in described}
    not_aligned(folder, sources, {"train": learned, "valid": valid, "test": test})
    return Prepared(tokenizer, learned, valid, test, report, fingerprint, sources, source)


def _fingerprint(config: DataConfig) -> str:
    facts = asdict(config)
    del facts["cache"], facts["packing"]
    if config.tokenizer.source_path is None:  # text prepared before there was this setting is found, and its runs go on
        del facts["tokenizer"]["source_path"]
    sources = [name for split in ("train", "valid", "test") for end in ("", "_source", "_target")
               for name in getattr(config, split + end)]  # fmt: skip
    if is_pairs(config) and any(name.endswith(".tsv") for name in sources):
        facts["names in the first line"] = True  # which was a pair before
    state = hashlib.sha256(json.dumps([FORMAT, facts]).encode())
    for name in dict.fromkeys(sources):
        if name in embedded.CORPORA:
            state.update(embedded.digest(embedded.corpus(name, Path(config.cache))).encode())
        elif name in NAMED:
            state.update(json.dumps(named(name)).encode())
        elif name in pairs.MODULES:
            state.update(json.dumps(pairs.embedded_pairs(name)).encode())
    texts = [name for name in sources if not is_corpus(name) and name not in pairs.MODULES]
    files = [path for name in texts for path in files_of(name)]
    vocabularies = [Path(name) for name in (config.tokenizer.path, config.tokenizer.source_path) if name]
    for path in [*files, *vocabularies]:
        if path.is_file():
            with path.open("rb") as file:
                state.update(str(path).encode() + hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()


def _make(config: DataConfig, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    splits_named = {"train": config.train, "valid": config.valid, "test": config.test}
    require_files({f"data.{split}": names for split, names in splits_named.items()})
    if config.tokenizer.path is not None:
        say(f"taking the vocabulary of {config.tokenizer.path}")
        tokenizer = load_tokenizer(Path(config.tokenizer.path))
    else:
        say(f"learning a {config.tokenizer.kind} vocabulary from {', '.join(config.train)}")
        learned = Tally()
        tokenizer = train_tokenizer(config.tokenizer, read_documents(config.train, "train", config, learned))
        if not learned.documents:
            raise _no_text("train", config.train)
    tokenizer.save(folder / "tokenizer.json")
    splits: dict[str, Any] = {}
    seen: set[bytes] = set()
    for split, names in splits_named.items():
        if not names:
            continue
        say(f"encoding {split}")
        tally, leaked = Tally(), [0]
        documents = _watched(read_documents(names, split, config, tally), seen, split, leaked)
        if (first := next(documents, None)) is None:
            raise _no_text(split, names)
        file = TokenFile.write(
            folder / split,
            _encode(tokenizer, chain([first], documents)),
            vocab_size=tokenizer.vocab_size,
            boundary=tokenizer.boundary,
            tokenizer=tokenizer.fingerprint,
            text_bytes=partial(getattr, tally, "bytes"),
            unknown=tokenizer.unknown,
        )
        tally.tell(say, split)
        splits[split] = {**file.facts(), "dropped": dict(tally.dropped), "also in train": leaked[0]}
    corpora = sorted({name for name in config.train if name in embedded.CORPORA})
    return {
        "documents": sum(part["documents"] for part in splits.values()),
        "tokens": sum(part["tokens"] for part in splits.values()),
        "bytes": sum(part["bytes"] for part in splits.values()),
        "vocabulary": tokenizer.vocab_size,
        "dropped": _sum([part["dropped"] for part in splits.values()]),
        "splits": splits,
        "tokenizer": tokenizer.fingerprint,
        "sha256": {name: embedded.digest(embedded.corpus(name, Path(config.cache))) for name in corpora},
    }


def _no_text(split: str, names: tuple[str, ...]) -> DataError:
    return DataError(Problem(where=f"data.{split}", what="there is no text", got=", ".join(names) or "nothing",
                             attempt="name a file that holds more than white space"))  # fmt: skip


def _watched(documents: Iterator[str], seen: set[bytes], split: str, leaked: list[int]) -> Iterator[str]:
    """Pass documents on; remember those of training, count those of other parts that were among them."""
    for text in documents:
        key = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).digest()
        if split == "train":
            seen.add(key)
        elif key in seen:
            leaked[0] += 1
        yield text


def _encode(tokenizer: Tokenizer, documents: Iterator[str]) -> Iterator[Ids]:
    end = np.array([tokenizer.boundary], np.int64)
    together: list[str] = []
    for text in documents:
        together.append(text)
        if len(together) == ENCODE_TOGETHER:
            yield from (np.concatenate([ids, end]) for ids in tokenizer.encode_batch(together))
            together = []
    yield from (np.concatenate([ids, end]) for ids in tokenizer.encode_batch(together))


def _publish(fresh: Path, folder: Path) -> None:
    if not folder.is_dir():
        with contextlib.suppress(OSError):  # another process has just made it
            fresh.rename(folder)
            return
    # An earlier, unfinished folder or a user's own: put our files into it, the report last.
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == "report.json"):
        path.replace(folder / path.name)


def _sum(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return total
