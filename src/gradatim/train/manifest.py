"""The manifest of a checkpoint: which tensors there are, and in which files their pieces lie.

    {"format": "gradatim-checkpoint", "version": 1, "step": 500, "tokens": …, "samples": …,
     "config_hash": …, "data_fingerprint": …, "tokenizer_fingerprint": …, "layout": {…}, "counters": {…},
     "files":   [{"name": "rank0.safetensors", "bytes": …, "crc32": …}],
     "tensors": {"model/embed.weight": {"dtype": "F32", "shape": [v, d],
                 "pieces": [{"file": "rank0.safetensors", "key": …, "offset": [0, 0], "shape": [v, d]}]}}}

A tensor is the disjoint union of rectangular pieces, so that every rank can write what it holds and any
other layout can read it by intersecting slices. A manifest is input like any other: it may be torn,
edited or hostile, so everything is checked before a byte of a tensor is read, and in bounded memory.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.errors import CheckpointError, Problem

FORMAT, VERSION = "gradatim-checkpoint", 1
MANIFEST_NAME = "manifest.json"
MOST_MANIFEST_BYTES = 64 << 20
"""A 175-billion-parameter model on a thousand ranks stays well below this."""
MOST_PIECES = 1 << 14
"""Pieces of one tensor; more than any number of ranks that would share one."""
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\Z")


def refuse(where: str | Path, what: str, *, got: object = "", allowed: str = "", attempt: str = "") -> CheckpointError:
    """The error for one thing that is wrong in a checkpoint; the caller raises it."""
    attempt = attempt or "restore the file from a copy, or resume from another checkpoint"
    shown = str(got)
    shown = shown if len(shown) <= 200 else shown[:200] + "…"
    return CheckpointError(Problem(where=str(where), what=what, got=shown, allowed=allowed, attempt=attempt))


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One rectangle of a tensor: ``tensor[offset : offset + shape]`` is ``key`` in ``file``."""

    file: str
    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A tensor as a whole: safetensors' name of its dtype, its global shape, and its pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file beside the manifest, with its size in bytes and the CRC-32 of its content."""

    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything a checkpoint says about itself."""

    step: int
    """Updates done (skipped ones included); the next step is ``step + 1``."""
    tokens: int
    """Tokens learned from so far."""
    samples: int
    """Sequences drawn so far."""
    config_hash: str
    """Fingerprint of the settings that a resumed run must share."""
    data_fingerprint: str
    """Fingerprint of the training tokens."""
    tokenizer_fingerprint: str
    """Fingerprint of the tokenizer."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """The layout it was saved under, to tell people; it is read alike under any other. Older manifests have none."""
    counters: Mapping[str, Any] = field(default_factory=dict)
    """The loop's small state, plain JSON: best validation loss, skipped updates, seconds, the last metrics row."""
    files: tuple[FileEntry, ...] = ()
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def valid_loss(self) -> float | None:
        """Validation loss in nats per token measured at this very step, if it was measured."""
        value = self.counters.get("valid_loss")
        return value if isinstance(value, float) and math.isfinite(value) else None

    def to_json(self) -> str:
        """The manifest's text. Floats keep their exact value (shortest round-trip form)."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, allow_nan=False)


def read_manifest(folder: Path) -> Manifest:
    """Parse ``folder/manifest.json`` and check all that can be checked without opening the other files.

    Raises:
        CheckpointError: naming what is wrong: unreadable, of another format, a field missing or of the wrong
            type, a path that leaves the folder, pieces that leave gaps, overlap or overrun.
    """
    path = folder / MANIFEST_NAME
    try:
        data = read_regular_file(path, MOST_MANIFEST_BYTES)
        raw = json.loads(data)
    except OSError as error:
        raise refuse(path, f"cannot read the manifest ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise refuse(path, "the manifest is not JSON", got=error) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
        found = (raw.get("format"), raw.get("version")) if isinstance(raw, dict) else type(raw).__name__
        raise refuse(path, "not a manifest this version reads", got=found, allowed=f"{FORMAT} version {VERSION}")
    try:
        manifest = _decode(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise refuse(path, "the manifest lacks a field or has one of the wrong type", got=repr(error)) from None
    _check(path, manifest)
    return manifest


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """Content of a regular file no longer than ``most_bytes``; links, FIFOs and devices are refused unopened."""
    with open(path, "rb", opener=open_regular) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise refuse(path, "the file is too large to be what it should be", allowed=f"at most {most_bytes} bytes")
    return data


def open_regular(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open` that follows no link and never blocks on a FIFO."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refuse(path, "not a regular file", allowed="a regular file (no link, FIFO or device)")
    return descriptor


def _decode(raw: Mapping[str, Any]) -> Manifest:
    return Manifest(
        step=_count(raw["step"]),
        tokens=_count(raw["tokens"]),
        samples=_count(raw["samples"]),
        config_hash=_text(raw["config_hash"]),
        data_fingerprint=_text(raw["data_fingerprint"]),
        tokenizer_fingerprint=_text(raw["tokenizer_fingerprint"]),
        layout=_mapping(raw.get("layout", {})),
        counters=_mapping(raw["counters"]),
        files=tuple(
            FileEntry(name=_text(file["name"]), bytes=_count(file["bytes"]), crc32=_count(file["crc32"]))
            for file in _list(raw["files"])
        ),
        tensors={
            _text(name): TensorEntry(
                dtype=_text(entry["dtype"]),
                shape=_sizes(entry["shape"]),
                pieces=tuple(
                    Piece(
                        file=_text(piece["file"]),
                        key=_text(piece["key"]),
                        offset=_sizes(piece["offset"]),
                        shape=_sizes(piece["shape"]),
                    )
                    for piece in _list(entry["pieces"])
                ),
            )
            for name, entry in _mapping(raw["tensors"]).items()
        },
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:  # `True` is an int too, and is refused
        raise ValueError(f"{value!r} is not a whole number from 0 to 2^63 - 1")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:60]} is not a list")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:60]} is not a mapping")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(_count(item) for item in _list(value))


def _check(path: Path, manifest: Manifest) -> None:
    names = [file.name for file in manifest.files]
    for name in names:
        if not _PLAIN_NAME.match(name) or name == MANIFEST_NAME:
            raise refuse(path, "a file is not named plainly", got=repr(name), allowed="a bare file name")
    if len(set(names)) != len(names):
        raise refuse(path, "a file is listed twice", got=names)
    known = set(names)
    for name, entry in manifest.tensors.items():
        where = f"{path}: tensor {name[:100]!r}"
        if entry.dtype not in DTYPES:
            raise refuse(where, "unknown dtype", got=entry.dtype, allowed=", ".join(sorted(DTYPES)))
        if stray := {piece.file for piece in entry.pieces} - known:
            raise refuse(where, "a piece lies in a file that is not listed", got=sorted(stray)[0])
        check_cover(where, entry)


def check_cover(where: str, entry: TensorEntry) -> None:
    """Hold that the pieces cover each element of the tensor exactly once.

    Pieces inside the tensor that are pairwise disjoint and together as large as it leave no gap.
    """
    rank = len(entry.shape)
    if len(entry.pieces) > MOST_PIECES:
        raise refuse(where, "too many pieces", got=len(entry.pieces), allowed=f"at most {MOST_PIECES}")
    for piece in entry.pieces:
        inside = len(piece.offset) == len(piece.shape) == rank and all(
            start + size <= whole for start, size, whole in zip(piece.offset, piece.shape, entry.shape)
        )
        if not inside:
            got = f"offset {list(piece.offset)}, shape {list(piece.shape)}"
            raise refuse(where, "a piece overruns the tensor", got=got, allowed=f"within {list(entry.shape)}")
    covered, whole = sum(math.prod(piece.shape) for piece in entry.pieces), math.prod(entry.shape)
    if covered != whole or not entry.pieces:
        raise refuse(where, "the pieces do not cover the tensor exactly once", got=covered, allowed=f"{whole} elements")
    if len(entry.pieces) == 1 or whole == 0:
        return
    # Two rectangles are disjoint if in some dimension one ends before the other starts. One row of the
    # comparison at a time keeps memory linear in the number of pieces.
    start = np.array([piece.offset for piece in entry.pieces], dtype=np.int64)
    end = start + np.array([piece.shape for piece in entry.pieces], dtype=np.int64)
    for row in range(len(start) - 1):
        overlaps = (np.maximum(start[row], start[row + 1 :]) < np.minimum(end[row], end[row + 1 :])).all(axis=1)
        if overlaps.any():
            raise refuse(where, "two pieces overlap", got=f"offset {entry.pieces[row].offset}")
