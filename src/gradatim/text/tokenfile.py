"""Token files: Megatron's ``.bin/.idx`` pair, and a ``.meta.json`` that says what the numbers mean.

``PREFIX.bin`` holds all tokens end to end, without a header. ``PREFIX.idx`` is, little-endian: nine magic bytes,
uint64 version 1, uint8 dtype code, uint64 number of sequences S, uint64 number of document marks D, then int32[S]
lengths in tokens, int64[S] byte offsets into ``.bin``, and int64[D] document marks (indices of sequences, the first
0, the last S). We write one sequence a document, each ending with the boundary token. ``PREFIX.meta.json`` adds
what Megatron leaves out: tokenizer fingerprint, vocabulary, text bytes and a checksum. All of it is verified when a
file is opened, so a truncated or swapped file is an error then and never a wrong token later.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradatim.errors import DataError, Problem

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16,
}  # fmt: skip
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
UINT16_VOCABULARY = 65_500
"""Largest vocabulary stored in two bytes, about where Megatron changes over; a file says which it uses."""
LONGEST = 2**31 - 1
"""Most tokens in a document: its length is an int32."""
BUFFER = 1 << 20  # documents joined per write: small enough to stay in the cache of a core


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMeta:
    """What a pair of files holds."""

    format: str = "gradatim-tokens-1"
    """Name and version of this description."""
    dtype: str
    """NumPy name of the stored integers."""
    documents: int
    """Documents, each closed by the boundary token."""
    tokens: int
    """Tokens, boundaries included."""
    bytes: int
    """UTF-8 bytes of the text, line ends between documents of one line included."""
    unknown: int
    """Tokens that stand for words or characters outside the vocabulary."""
    vocab_size: int
    """Number of ids; every token is below."""
    boundary: int
    """The id that closes every document."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    checksum: int
    """crc32 of ``.bin``."""
    index_checksum: int
    """crc32 of ``.idx``."""


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Two bytes where the vocabulary fits them, four otherwise."""
    return np.dtype(np.uint16 if vocab_size <= UINT16_VOCABULARY else np.int32)


def paths(prefix: Path) -> tuple[Path, Path, Path]:
    """The three files of a prefix: ``.bin``, ``.idx``, ``.meta.json``."""
    return tuple(prefix.with_name(prefix.name + end) for end in (".bin", ".idx", ".meta.json"))  # type: ignore[return-value]


def is_token_file(path: Path) -> bool:
    """Whether a path is the index of a token file, or the ``.bin`` of one."""
    if path.suffix not in (".bin", ".idx"):
        return False
    try:
        with path.with_suffix(".idx").open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False


DESCRIBED = ("checksum", "documents", "tokens", "bytes", "unknown")
"""What a report says of each part's token file, so that files of several parts or folders cannot change places."""


class TokenFile:
    """A verified, memory-mapped token file."""

    def __init__(
        self, prefix: Path, tokens: NDArray[Any], lengths: NDArray[Any], starts: NDArray[Any], meta: TokenMeta | None
    ) -> None:
        self.prefix = prefix
        self.tokens = tokens
        """All tokens end to end, a read-only memory map."""
        self.lengths = lengths
        """int32[documents]: tokens of each."""
        self.document_starts = starts
        """int64[documents + 1]: where each document starts in ``tokens``; the last entry is their number."""
        self._plain = tokens.view(np.ndarray)  # slicing a memmap costs several times slicing an array
        self._meta = meta

    @property
    def meta(self) -> TokenMeta:
        """The description; files written by other programs have none."""
        if self._meta is None:
            raise DataError(Problem(where=str(paths(self.prefix)[2]), what="this token file has no description",
                                    attempt="prepare the text again with gradatim prepare"))  # fmt: skip
        return self._meta

    def facts(self) -> dict[str, Any]:
        """The facts of ``DESCRIBED``; raises where the file has no description."""
        meta = self.meta
        return {
            "documents": meta.documents, "tokens": meta.tokens, "bytes": meta.bytes, "unknown": meta.unknown,
            "checksum": f"{meta.checksum:08x}-{meta.index_checksum:08x}",
        }  # fmt: skip

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def document(self, index: int) -> NDArray[Any]:
        """The tokens of one document, its boundary included."""
        return self._plain[self.document_starts[index] : self.document_starts[index + 1]]

    # ------------------------------------------------------------------ writing

    @staticmethod
    def write(
        prefix: Path,
        documents: Iterable[NDArray[Any]],
        *,
        vocab_size: int,
        boundary: int,
        tokenizer: str,
        text_bytes: int | Callable[[], int],
        unknown: int | None = None,
        dtype: str | None = None,
    ) -> TokenFile:
        """Write documents (arrays of ids ending with ``boundary``), each file whole or not at all; open the result.

        ``text_bytes`` may be a function, called after the last document; ``dtype`` is chosen by the vocabulary if
        not given.

        Raises:
            DataError: an id outside 0 … vocab_size - 1, a vocabulary beyond the dtype, or nothing to write.
        """
        names = paths(prefix)
        kind = dtype_for(vocab_size) if dtype is None else np.dtype(dtype)
        largest = np.iinfo(kind).max if kind in CODES else -1
        if vocab_size - 1 > largest:
            fitting = ", ".join(str(k) for k in CODES if np.iinfo(k).max >= vocab_size - 1)
            raise DataError(
                Problem(
                    where=str(names[0]),
                    what=f"the vocabulary does not fit the dtype {kind}",
                    got=f"{vocab_size:,} ids",
                    allowed=fitting,
                    attempt="a smaller vocabulary or another dtype",
                )
            )
        temporary = [name.with_name(name.name + ".partial") for name in names]
        prefix.parent.mkdir(parents=True, exist_ok=True)
        lengths: list[int] = []
        checksum = unknowns = 0
        with temporary[0].open("wb") as file:
            for block in _blocks(documents):
                joined = np.concatenate(block)
                _verify_range(names[0], joined, vocab_size)
                if max(map(len, block)) > LONGEST:
                    raise DataError(
                        Problem(
                            where=str(names[0]),
                            what="a document is too long for the format",
                            got=f"{max(map(len, block)):,} tokens",
                            allowed=f"{LONGEST:,}",
                            attempt="--data.document line or blank-line",
                        )
                    )
                if unknown is not None:
                    unknowns += int(np.count_nonzero(joined == unknown))
                raw = joined.astype(kind, copy=False).data.cast("B")
                checksum = zlib.crc32(raw, checksum)
                file.write(raw)
                lengths += map(len, block)
            _sync(file)
        if not lengths:
            raise DataError(
                Problem(
                    where=str(prefix), what="there is no document to write", attempt="name a text that is not empty"
                )
            )
        sizes = np.asarray(lengths, np.int32)
        offsets = np.zeros(len(sizes), np.int64)
        np.cumsum(sizes[:-1], dtype=np.int64, out=offsets[1:])
        with temporary[1].open("wb") as file:
            arrays = (sizes, offsets * kind.itemsize, np.arange(len(sizes) + 1, dtype=np.int64))
            header = HEADER.pack(MAGIC, VERSION, CODES[kind], len(sizes), len(sizes) + 1)
            index = b"".join([header, *(array.tobytes() for array in arrays)])
            file.write(index)
            _sync(file)
        meta = TokenMeta(
            dtype=kind.name, documents=len(sizes), tokens=int(sizes.sum(dtype=np.int64)),
            bytes=text_bytes() if callable(text_bytes) else text_bytes, unknown=unknowns,
            vocab_size=vocab_size, boundary=boundary, tokenizer=tokenizer,
            checksum=checksum, index_checksum=zlib.crc32(index),
        )  # fmt: skip
        with temporary[2].open("wb") as file:
            file.write(json.dumps(asdict(meta), indent=1).encode())
            _sync(file)
        for source, name in zip(temporary, names, strict=True):
            source.replace(name)
        return TokenFile.open(prefix, tokenizer=tokenizer, verify=False)  # its checksum was taken a moment ago

    # ------------------------------------------------------------------ reading

    @staticmethod
    def open(
        prefix: Path, *, tokenizer: str | None = None, vocab_size: int | None = None, verify: bool = True
    ) -> TokenFile:
        """Open and verify; ``tokenizer`` is the fingerprint the caller is going to decode with.

        A pair without ``.meta.json``, as Megatron writes it, opens too; its structure can be verified, and that its
        ids lie below ``vocab_size`` where the caller names it.

        Raises:
            DataError: a missing, truncated, swapped or foreign file.
        """
        binary, index, description = paths(prefix)
        for path in (binary, index):
            if not path.is_file():
                raise DataError(
                    Problem(where=str(path), what="there is no such token file", attempt="gradatim prepare")
                )
        dtype, lengths, marks, offsets, index_sum = _read_index(index)
        tokens_expected = int(lengths.sum(dtype=np.int64))
        expected, found = tokens_expected * dtype.itemsize, binary.stat().st_size
        if expected != found:
            raise _broken(binary, "its size does not agree with its index", f"{found:,} bytes", f"{expected:,} bytes")
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, dtype=np.int64, out=starts[1:])
        if not np.array_equal(offsets, starts[:-1] * dtype.itemsize):
            raise _broken(index, "the offsets do not follow from the lengths", "other offsets", "documents end to end")
        tokens = np.memmap(binary, dtype=dtype, mode="r") if found else np.zeros(0, dtype)
        meta = _read_meta(description) if description.is_file() else None
        if meta is not None:
            facts = {"dtype": dtype.name, "documents": len(marks) - 1, "tokens": tokens_expected}
            for name, value in facts.items():
                if getattr(meta, name) != value:
                    raise _broken(
                        description, f"{name} does not agree with the index", str(getattr(meta, name)), str(value)
                    )
            if index_sum != meta.index_checksum:
                raise _broken(index, "the checksum does not agree", f"{index_sum:08x}", f"{meta.index_checksum:08x}")
            if tokenizer is not None and meta.tokenizer != tokenizer:
                raise _broken(
                    description, "the tokens were made by another tokenizer", meta.tokenizer[:16], tokenizer[:16]
                )
            if verify and (found_sum := _checksum(tokens)) != meta.checksum:
                raise _broken(binary, "the checksum does not agree", f"{found_sum:08x}", f"{meta.checksum:08x}")
        largest = vocab_size if meta is None else meta.vocab_size
        if largest is not None and verify:  # with a checksum too: it says that ids are those written, not that they fit
            for first in range(0, len(tokens), BUFFER):
                _verify_range(binary, tokens[first : first + BUFFER], largest)
        if meta is not None and vocab_size not in (None, meta.vocab_size):
            raise _broken(description, "the vocabulary is of another size", f"{meta.vocab_size:,}", f"{vocab_size:,}")
        # Document marks may join several sequences (Megatron's sentence splitting); documents are what we read.
        return TokenFile(prefix, tokens, np.diff(starts[marks]), starts[marks], meta)


def _verify_range(path: Path, ids: NDArray[Any], vocab_size: int) -> None:
    if not ids.size:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise DataError(
            Problem(
                where=str(path),
                what="a token id is outside the vocabulary",
                got=str(low if low < 0 else high),
                allowed=f"0 to {vocab_size - 1}",
                attempt="the tokenizer that made the ids",
            )
        )


def _blocks(documents: Iterable[NDArray[Any]]) -> Iterable[list[NDArray[Any]]]:
    """Documents in lists of a few megabytes, so that writing is a few large writes."""
    block: list[NDArray[Any]] = []
    size = 0
    for document in documents:
        block.append(np.asarray(document))
        size += block[-1].nbytes
        if size >= BUFFER:
            yield block
            block, size = [], 0
    if block:
        yield block


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _broken(path: Path, what: str, got: str, allowed: str) -> DataError:
    return DataError(
        Problem(
            where=str(path), what=what, got=got, allowed=allowed, attempt="prepare the text again with gradatim prepare"
        )
    )


def _read_index(path: Path) -> tuple[np.dtype[Any], NDArray[Any], NDArray[Any], NDArray[Any], int]:
    raw = path.read_bytes()
    if len(raw) < HEADER.size or raw[:9] != MAGIC:
        raise _broken(path, "this is not a token index", repr(raw[:9]), repr(MAGIC))
    _, version, code, sequences, marks = HEADER.unpack_from(raw)
    if version != VERSION or code not in DTYPES:
        raise _broken(
            path,
            "unknown version or dtype code",
            f"version {version}, code {code}",
            f"version 1, code in {sorted(DTYPES)}",
        )
    expected = HEADER.size + 12 * sequences + 8 * marks
    if len(raw) != expected:
        raise _broken(path, "its size does not agree with its header", f"{len(raw):,} bytes", f"{expected:,} bytes")
    lengths = np.frombuffer(raw, np.int32, sequences, HEADER.size)
    offsets = np.frombuffer(raw, np.int64, sequences, HEADER.size + 4 * sequences)
    documents = np.frombuffer(raw, np.int64, marks, HEADER.size + 12 * sequences)
    ordered = marks > 0 and documents[0] == 0 and documents[-1] == sequences and bool((np.diff(documents) >= 0).all())
    if not ordered or (sequences and lengths.min() < 0):
        raise _broken(
            path,
            "document marks or lengths are out of order",
            "broken index",
            "marks from 0 to the number of sequences",
        )
    return np.dtype(DTYPES[code]), lengths, documents, offsets, zlib.crc32(raw)


def _read_meta(path: Path) -> TokenMeta:
    try:
        meta = TokenMeta(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _broken(path, f"the description cannot be read ({error})", "broken JSON", TokenMeta.__name__) from error
    return meta


def _checksum(tokens: NDArray[Any]) -> int:
    value = 0
    for first in range(0, len(tokens), BUFFER):
        value = zlib.crc32(np.ascontiguousarray(tokens[first : first + BUFFER]).data.cast("B"), value)
    return value
