"""Where text comes from: files, folders, tables, Hugging Face data sets, embedded corpora; as streams of documents.

What is odd about a text is mended the same way everywhere, and counted, never passed over in silence: bytes that
are not UTF-8 become U+FFFD, a byte-order mark that opens a file is dropped, CRLF becomes LF, documents without a
visible character are dropped; NUL stays. A file that is odd all over is no text, and refused.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import importlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gradatim.config.settings import DataConfig
from gradatim.errors import DataError, LaunchError, Problem
from gradatim.text import embedded
from gradatim.text.plain import SAMPLE, refuse_noise
from gradatim.text.tokenfile import is_token_file

NAMED = {"small-english": "gradatim.text.grammar"}
"""Corpora made by a module's ``corpus() -> {split: [text, …]}``."""
UNSEEN = "\ufeff\u200b\u200c\u200d\u2060"
"""Characters besides white space that nobody sees."""
INVALID = "invalid bytes replaced"
"""What is counted where bytes are not UTF-8."""
EMPTY = "empty documents"
"""What is counted where a document has no text."""
HINTS = {
    INVALID: "\n    try: iconv -f LATIN1 -t UTF-8, if the text is in another encoding",
    EMPTY: ", left out, and not among the bytes that are judged",
}
"""What follows such a count."""


@dataclass(slots=True)
class Tally:
    """What was read, and what was mended on the way."""

    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of the mended text that is read, line ends included. Blank lines between documents are not: nobody
    predicts them, so counting them would flatter bits per byte."""
    dropped: Counter[str] = field(default_factory=Counter)

    def tell(self, say: Callable[[str], None], where: str = "") -> None:
        """Say how often each thing was mended, in the text called ``where``."""
        for what, count in self.dropped.items():
            hint = HINTS.get(what, "")
            say(f"{where and where + ': '}{what}: {count:,}{hint if count else ''}")


def brings_its_own_splits(names: tuple[str, ...]) -> bool:
    """Whether all of the names are corpora with validation and test parts of their own."""
    return bool(names) and all(name in embedded.CORPORA or name in NAMED for name in names)


def is_corpus(name: str) -> bool:
    """Whether the name is a corpus, whose parts are told apart by the split that is asked for, and no file."""
    return name in embedded.CORPORA or name in NAMED or name.startswith("hf:")


def named(name: str) -> dict[str, list[str]]:
    """The parts of a corpus of ``NAMED``."""
    parts: dict[str, list[str]] = importlib.import_module(NAMED[name]).corpus()
    return parts


def files_of(name: str) -> list[Path]:
    """The files that a name stands for: itself, the .txt files below a folder, or those that a pattern matches.

    Raises:
        DataError: one may not be read.
    """
    if not name:  # an unset variable of a shell script must not stand for the folder one happens to be in
        return []
    path = Path(name)
    if path.is_dir():
        found = sorted(path.rglob("*.txt"))
    elif not path.exists() and any(mark in name for mark in "*?["):
        found = [Path(each) for each in sorted(glob.glob(name, recursive=True)) if Path(each).is_file()]  # noqa: PTH207 - may be absolute
    else:
        found = [path] if path.is_file() else []
    for each in found:
        if not os.access(each, os.R_OK):
            linked = each.exists()
            what = "the text may not be read (Permission denied)" if linked else "this link leads nowhere"
            attempt = "change its permissions, or name another" if linked else "remove it, or name files"
            raise DataError(Problem(where=str(each), what=what, attempt=attempt))
    return found


def require_files(named: Mapping[str, Sequence[str]]) -> None:
    """Look for the files of all sources before any is read, which may take long.

    Args:
        named: sources, by the field that names them.

    Raises:
        DataError: with all that are missing or may not be read.
    """
    problems: list[Problem] = []
    for where, names in named.items():
        for name in dict.fromkeys(names):
            if is_corpus(name):
                continue
            try:
                if not files_of(name):
                    raise _no_text(name, where)
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(*dict.fromkeys(problems))


def read_documents(
    names: tuple[str, ...], split: str, config: DataConfig, tally: Tally, where: str = ""
) -> Iterator[str]:
    """The documents of several sources, one after the other; ``where`` they were named, if not in ``data.SPLIT``.

    Raises:
        DataError: a file that is missing or not of the form its name promises.
        LaunchError: a package that this kind of source needs is not installed.
    """
    for name in names:
        for text, size in _source(name, split, config, tally, where or f"data.{split}"):
            if text.strip().strip(UNSEEN):
                tally.documents += 1
                tally.bytes += size
                yield text
            else:
                tally.dropped[EMPTY] += 1


def _source(name: str, split: str, config: DataConfig, tally: Tally, where: str) -> Iterator[tuple[str, int]]:
    """Documents, and the bytes that each stands for, its line end included."""
    if name in embedded.CORPORA:
        for text in embedded.corpus(name, Path(config.cache))[split].values():
            yield from _cut(io.StringIO(text, newline="\n"), config.document)
    elif name in NAMED:
        for sentence in named(name)[split]:
            yield sentence, len(sentence.encode()) + 1
    elif name.startswith("hf:"):
        yield from _cells(_hugging_face(name, split, config), tally)
    else:
        files = files_of(name)
        if not files:
            raise _no_text(name, where)
        for path in files:
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                yield from _cells(_json_lines(path, config.column, tally), tally)
            elif path.suffix == ".parquet":
                yield from _cells(_parquet(path, config.column), tally)
            else:
                with path.open("rb") as file:
                    refuse_binary(path, file)
                    yield from _cut(lines_of(file, tally), config.document)


def _no_text(name: str, where: str) -> DataError:
    """What a name stands for that no text was found under."""
    folder = Path(name)
    prepared = sorted(folder.glob("*.idx")) if folder.is_dir() else []
    if prepared or is_token_file(Path(f"{name}.idx")):
        return _tokens(name, folder if prepared else folder.parent)
    what, attempt = "there is no such file or corpus", f"check the path, which is read from {Path.cwd()}"
    if folder.is_dir():
        what, attempt = "there is no .txt file in this folder", f"files of other names by a pattern: '{folder}/*'"
    known = ", ".join([*embedded.CORPORA, *NAMED])
    allowed = f"a file, a folder of .txt, hf:NAME, {known}"
    return DataError(Problem(where=where, what=what, got=name, allowed=allowed, attempt=attempt))


def _tokens(name: str, folder: Path) -> DataError:
    """The refusal of ``prepare``'s output where text is wanted."""
    attempt = "name the text itself"
    if (tokenizer := folder / "tokenizer.json").is_file():
        attempt += f"; --data.tokenizer.path {tokenizer} gives it the same ids"
    return DataError(Problem(where=name, what="these are tokens, prepared from text, and not text", attempt=attempt))


def refuse_binary(path: Path, file: IO[bytes]) -> None:
    """Raise DataError for token files, archives, pictures and the like: reading them as text would be all noise.

    The file is judged by its beginning, and is at its beginning afterwards.
    """
    if is_token_file(path):
        raise _tokens(str(path), path.parent)
    sample = file.read(SAMPLE)
    file.seek(0)
    refuse_noise(str(path), sample)


def _cut(lines: Iterable[str], document: str) -> Iterator[tuple[str, int]]:
    """Documents out of lines that keep their line end; a document of its own lines has none after the last."""
    if document == "file":
        text = "".join(lines)
        yield text, len(text.encode())
    elif document == "line":
        for line in lines:
            yield line.removesuffix("\n"), len(line.encode())
    else:
        paragraph: list[str] = []
        for line in lines:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield _paragraph(paragraph)
                paragraph = []
        if paragraph:
            yield _paragraph(paragraph)


def _paragraph(lines: list[str]) -> tuple[str, int]:
    text = "".join(lines)
    return text.removesuffix("\n"), len(text.encode())


def lines_of(file: IO[bytes], tally: Tally) -> Iterator[str]:
    """The mended lines of a text file."""
    for number, raw in enumerate(file):
        line = _decode(raw, tally)
        if number == 0 and line.startswith("\ufeff"):
            tally.dropped["byte-order marks"] += 1
            line = line[1:]
        yield mend(line, tally)


def _cells(texts: Iterator[str], tally: Tally) -> Iterator[tuple[str, int]]:
    """The mended texts of a table; nothing separates them."""
    for text in texts:
        mended = mend(text, tally)
        yield mended, len(mended.encode())


def mend(text: str, tally: Tally) -> str:
    """A text with line ends LF and no surrogates; what was found is counted."""
    if "\r\n" in text:
        mended = _LINE_END.sub("\n", text)
        tally.dropped["carriage returns"] += len(text) - len(mended)
        text = mended
    if "\x00" in text:
        tally.dropped["NUL characters kept"] += text.count("\x00")
    if not text.isascii() and _SURROGATE.search(text):  # JSON can spell them, UTF-8 cannot
        text, count = _SURROGATE.subn("\ufffd", text)
        tally.dropped[INVALID] += count
    return text


_LINE_END = re.compile("\r+\n")
"""Of Windows; with two CR where a file was converted twice."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def _decode(raw: bytes, tally: Tally) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        tally.dropped[INVALID] += text.count("\ufffd") - raw.count("\ufffd".encode())
        return text


def _json_lines(path: Path, column: str, tally: Tally) -> Iterator[str]:
    return (_cell(row, column, where) for where, row in json_rows(path, tally))


def json_rows(path: Path, tally: Tally) -> Iterator[tuple[str, Any]]:
    """The rows of a .jsonl file, each with its place."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(path.open("rb"))
        file: IO[bytes] = gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain  # type: ignore[assignment]
        number = 0
        try:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                line = _decode(raw, tally)
                yield f"{path}:{number}", json.loads(line.removeprefix("\ufeff") if number == 1 else line)
        except (ValueError, RecursionError) as error:
            raise DataError(Problem(where=f"{path}:{number}", what=f"this line is not JSON: {error}",
                                    attempt="one JSON object a line")) from None  # fmt: skip
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(Problem(where=f"{path}:{number}", what=f"the file cannot be read further: {error}",
                                    attempt="gzip --test, and fetch the file again")) from None  # fmt: skip


def _cell(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        have = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(Problem(where=where, what=f"there is no text in column {column!r}", got=have,
                                attempt="--data.column NAME"))  # fmt: skip
    text: str = row[column]
    return text


def _parquet(path: Path, column: str) -> Iterator[str]:
    parquet = package("pyarrow.parquet", "hf")
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has a family of its own
        raise DataError(Problem(where=str(path), what=f"this is not a parquet file: {error}",
                                attempt="fetch the file again, or name a text .txt")) from None  # fmt: skip
    if column not in file.schema_arrow.names:
        raise DataError(Problem(where=str(path), what=f"there is no column {column!r}",
                                got=", ".join(file.schema_arrow.names), attempt="--data.column NAME"))  # fmt: skip
    for batch in file.iter_batches(columns=[column]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _hugging_face(name: str, split: str, config: DataConfig) -> Iterator[str]:
    """``hf:NAME``, ``hf:NAME:CONFIG`` or ``hf:NAME:CONFIG:SPLIT``."""
    datasets = package("datasets", "hf")
    parts = name.removeprefix("hf:").split(":")
    own = {"train": "train", "valid": "validation", "test": "test"}[split]
    chosen = parts[2] if len(parts) > 2 else own
    try:
        rows = datasets.load_dataset(parts[0], parts[1] or None if len(parts) > 1 else None, split=chosen)
    except Exception as error:
        raise DataError(Problem(where=name, what=f"the data set cannot be loaded: {error}",
                                attempt="check its name and the network, or name files")) from None  # fmt: skip
    for row in rows:
        yield _cell(row, config.column, name)


def package(name: str, extra: str) -> Any:
    """A module of an optional package, or LaunchError with the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise LaunchError(Problem(where=name, what="this package is not installed",
                                  attempt=f"pip install 'gradatim[{extra}]'")) from None  # fmt: skip
