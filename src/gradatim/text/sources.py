"""Where text comes from: files, folders, tables, Hugging Face data sets and the embedded corpora, as a stream of documents.

What is odd about a text is mended the same way everywhere, and counted, never passed over in silence: bytes that are not UTF-8
become U+FFFD, a byte-order mark is dropped, CRLF becomes LF, documents without a visible character are dropped; NUL stays.
"""

from __future__ import annotations

import gzip
import importlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gradatim.config.settings import DataConfig
from gradatim.errors import DataError, LaunchError, Problem
from gradatim.text import embedded

NAMED = {"small-english": "gradatim.text.grammar"}
"""Corpora made by a module's ``corpus() -> {split: [text, …]}``."""


@dataclass(slots=True)
class Tally:
    """What was read, and what was mended on the way."""

    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of the mended text, line ends included."""
    dropped: Counter[str] = field(default_factory=Counter)


def brings_its_own_splits(names: tuple[str, ...]) -> bool:
    """Whether all of the names are corpora with validation and test parts of their own."""
    return bool(names) and all(name in embedded.CORPORA or name in NAMED for name in names)


def read_documents(names: tuple[str, ...], split: str, config: DataConfig, tally: Tally) -> Iterator[str]:
    """The documents of several sources, one after the other.

    Raises:
        DataError: a file that is missing or not of the form its name promises.
        LaunchError: a package that this kind of source needs is not installed.
    """
    for name in names:
        for text in _source(name, split, config, tally):
            mended = _mend(text, tally)
            if mended.strip("\n\r\t \ufeff"):
                tally.documents += 1
                yield mended
            else:
                tally.dropped["empty documents"] += 1


def _source(name: str, split: str, config: DataConfig, tally: Tally) -> Iterator[str]:
    if name in embedded.CORPORA:
        texts = list(embedded.corpus(name, Path(config.cache))[split].values())
        tally.bytes += sum(len(text.encode()) for text in texts)
        yield from texts
    elif name in NAMED:
        sentences: list[str] = importlib.import_module(NAMED[name]).corpus()[split]
        tally.bytes += sum(len(text.encode()) + 1 for text in sentences)
        yield from sentences
    elif name.startswith("hf:"):
        yield from _counted(_hugging_face(name, split, config), tally)
    else:
        path = Path(name)
        if path.is_dir():
            for inner in sorted(path.rglob("*.txt")):
                yield from _plain(inner, config, tally)
        elif not path.is_file():
            known = ", ".join([*embedded.CORPORA, *NAMED])
            raise DataError(Problem(where=f"data.{split}", what="there is no such file or corpus", got=name,
                                    allowed=f"a file, a folder, hf:NAME, {known}", attempt="check the path"))  # fmt: skip
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            yield from _counted(_json_lines(path, config.column), tally)
        elif path.suffix == ".parquet":
            yield from _counted(_parquet(path, config.column), tally)
        else:
            yield from _plain(path, config, tally)


def _counted(texts: Iterator[str], tally: Tally) -> Iterator[str]:
    """Count the bytes of texts that come out of a table, where nothing separates them."""
    for text in texts:
        tally.bytes += len(text.encode("utf-8", "replace"))
        yield text


def _mend(text: str, tally: Tally) -> str:
    if "\ufeff" in text[:1]:
        tally.dropped["byte-order marks"] += 1
        text = text[1:]
    if "\r\n" in text:
        tally.dropped["carriage returns"] += text.count("\r\n")
        text = text.replace("\r\n", "\n")
    if "\x00" in text:
        tally.dropped["NUL characters kept"] += text.count("\x00")
    return text


def _decode(raw: bytes, tally: Tally) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        tally.dropped["invalid bytes replaced"] += text.count("\ufffd") - raw.count("\ufffd".encode())
        return text


def _plain(path: Path, config: DataConfig, tally: Tally) -> Iterator[str]:
    """A text file; a line or paragraph at a time, so that its size does not matter, unless the file is the document."""
    with path.open("rb") as file:
        if config.document == "file":
            text = _decode(file.read(), tally)
            tally.bytes += len(text.lstrip("\ufeff").replace("\r\n", "\n").encode())
            yield text
            return
        paragraph: list[str] = []
        for raw in file:
            line = _decode(raw, tally).removesuffix("\n")
            tally.bytes += len(line.lstrip("\ufeff").removesuffix("\r").encode()) + raw.endswith(b"\n")
            if config.document == "line":
                if line.endswith("\r"):
                    tally.dropped["carriage returns"] += 1
                    line = line[:-1]
                if line or not raw.endswith(b"\n"):
                    yield line
                else:
                    tally.dropped["empty documents"] += 1
            elif line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "\n".join(paragraph)
                paragraph = []
        if paragraph:
            yield "\n".join(paragraph)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    stream: IO[Any] = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    with stream as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
                yield _cell(row, column, f"{path}:{number}")
            except (ValueError, RecursionError) as error:
                raise DataError(Problem(where=f"{path}:{number}", what=f"this line is not JSON: {error}",
                                        attempt="one JSON object a line")) from None  # fmt: skip


def _cell(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        have = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(Problem(where=where, what=f"there is no text in column {column!r}", got=have,
                                attempt="--data.column NAME"))  # fmt: skip
    text: str = row[column]
    return text


def _parquet(path: Path, column: str) -> Iterator[str]:
    parquet = _package("pyarrow.parquet", "hf")
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has a family of its own
        raise DataError(Problem(where=str(path), what=f"this is not a parquet file: {error}")) from None
    if column not in file.schema_arrow.names:
        raise DataError(Problem(where=str(path), what=f"there is no column {column!r}",
                                got=", ".join(file.schema_arrow.names), attempt="--data.column NAME"))  # fmt: skip
    for batch in file.iter_batches(columns=[column]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _hugging_face(name: str, split: str, config: DataConfig) -> Iterator[str]:
    """``hf:NAME``, ``hf:NAME:CONFIG`` or ``hf:NAME:CONFIG:SPLIT``."""
    datasets = _package("datasets", "hf")
    parts = name.removeprefix("hf:").split(":")
    own = {"train": "train", "valid": "validation", "test": "test"}[split]
    chosen = parts[2] if len(parts) > 2 else own
    try:
        rows = datasets.load_dataset(parts[0], parts[1] or None if len(parts) > 1 else None, split=chosen)
    except Exception as error:
        raise DataError(Problem(where=name, what=f"the data set cannot be loaded: {error}")) from None
    for row in rows:
        yield _cell(row, config.column, name)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise LaunchError(Problem(where=name, what="this package is not installed",
                                  attempt=f"pip install 'gradatim[{extra}]'")) from None  # fmt: skip
