"""Checkpoints: safetensors files and one JSON manifest, published all or not at all, read without trust.

Saving  ``step-00000500.tmp-<pid>/`` → every file written, checksummed and fsynced → the manifest last →
        one rename to ``step-00000500/`` → fsync of the parent. Only then may older ones be pruned.
        Killed at any moment, the newest published checkpoint is whole (``publish.py``).
Loading The manifest is checked first (``manifest.py``), then each file's size and CRC-32, then that every
        piece is in its file with the shape and dtype promised. A flipped bit in a weight loads silently
        in safetensors itself, hence the checksums. Nothing is ever unpickled.

A checkpoint holds parameters, optimizer moments, the carried hidden state of truncated back-propagation,
and counters. It holds no random state: learning rate, data order and dropout are functions of
(config, seed, step).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradatim.errors import CheckpointError, Problem
from gradatim.train.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Piece,
    TensorEntry,
    check_cover,
    open_regular,
    read_manifest,
    refuse,
)
from gradatim.train.publish import list_checkpoints, new_temporary, publish, step_folder, step_of, write_durably

_DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
_BLOCK = 1 << 20


# --------------------------------------------------------------------------- writing


def save_checkpoint(checkpoints: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Path:
    """Write and publish one checkpoint; afterwards it either exists whole or not at all.

    Args:
        checkpoints: the folder of all checkpoints of the run.
        manifest: step, counters and fingerprints; its ``files`` and ``tensors`` are filled in here.
        tensors: what to store, by global name.

    Returns: the published folder.

    Raises:
        OSError: the disk is full, read-only, …; nothing was published and older checkpoints are untouched.
    """
    temporary = new_temporary(checkpoints, manifest.step)
    try:
        held = [Held(name, tuple(tensor.shape), [((0,) * tensor.dim(), tensor)]) for name, tensor in tensors.items()]
        return complete(temporary, manifest, [write_part(temporary, 0, held)])
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@dataclass(frozen=True, slots=True)
class Held:
    """What one process is to write of a tensor."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    pieces: Sequence[tuple[tuple[int, ...], Tensor]]
    """Rectangles of it, each with the place where it begins."""


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """What one process has written, for the manifest."""

    file: FileEntry
    tensors: Mapping[str, TensorEntry]


def write_part(temporary: Path, rank: int, held: Sequence[Held]) -> WrittenPart:
    """Write what one process holds, durably, to ``rankN.safetensors``."""
    name = f"rank{rank}.safetensors"
    tensors, entries = {}, {}
    for whole in held:
        pieces = []
        for number, (offset, tensor) in enumerate(whole.pieces):
            key = f"{whole.name}#{number}" if number else whole.name
            tensors[key] = tensor
            pieces.append(Piece(file=name, key=key, offset=offset, shape=tuple(tensor.shape)))
        dtype = _DTYPE_NAMES[whole.pieces[0][1].dtype]
        entries[whole.name] = TensorEntry(dtype=dtype, shape=whole.shape, pieces=tuple(pieces))
    return WrittenPart(write_safetensors(temporary / name, tensors), entries)


def complete(temporary: Path, manifest: Manifest, parts: Sequence[WrittenPart]) -> Path:
    """Write the manifest of what all processes have written, and publish; the published folder."""
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        for name, entry in part.tensors.items():
            if (known := tensors.get(name)) is not None:
                assert (known.dtype, known.shape) == (entry.dtype, entry.shape), f"{name}: processes disagree"
                entry = replace(entry, pieces=known.pieces + entry.pieces)
            tensors[name] = entry
    for name, entry in tensors.items():
        check_cover(f"{temporary}: tensor {name!r}", entry)
    whole = replace(manifest, files=tuple(part.file for part in parts), tensors=tensors)
    write_durably(temporary / MANIFEST_NAME, whole.to_json().encode())
    target = step_folder(temporary.parent, manifest.step)
    publish(temporary, target)
    return target


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write a .safetensors file, durably, with the checksum taken of what was meant to be written.

    The format is eight bytes of header length, a JSON header, and the tensors' little-endian bytes. Writing
    it here rather than through ``safetensors.torch.save_file`` costs these lines and saves a second pass
    over the file for the checksum, which would moreover be one of what the disk gave back.
    """
    # Wide dtypes first keeps every tensor aligned to its item size, as the reference writer does.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    crc = size = 0
    with path.open("xb") as file:
        start = struct.pack("<Q", len(text)) + text
        for block in itertools.chain([memoryview(start)], *(_bytes_of(tensors[name]) for name in names)):
            crc, size = zlib.crc32(block, crc), size + file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(name=path.name, bytes=size, crc32=crc)


def _bytes_of(tensor: Tensor) -> Iterator[memoryview[int]]:
    """The tensor's bytes in blocks, copied off an accelerator one tensor at a time."""
    if tensor.numel() == 0:
        return
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), 16 * _BLOCK):
        yield flat[start : start + 16 * _BLOCK].numpy().data


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint that has been verified; tensors are read when asked for."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Updates done when it was saved."""
        return self.manifest.step

    def names(self, prefix: str = "") -> list[str]:
        """Names of the tensors that start with ``prefix``."""
        return [name for name in self.manifest.tensors if name.startswith(prefix)]

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors below ``prefix``, whole, on the CPU, by their name without it."""
        return {name.removeprefix(prefix): self.read(name) for name in self.names(prefix)}

    def read(self, name: str, offset: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> Tensor:
        """The rectangle ``[offset : offset + shape]`` of a tensor (default: all of it), however it was cut when saved.

        Raises:
            CheckpointError: there is no such tensor, or the file cannot be read any more.
        """
        entry = self.manifest.tensors.get(name)
        if entry is None:
            raise refuse(self.folder, f"the checkpoint has no tensor {name!r}", got=f"{len(self.names())} others")
        offset = tuple(offset) if offset is not None else (0,) * len(entry.shape)
        shape = tuple(shape) if shape is not None else entry.shape
        # A fresh tensor rather than a view of the file: its alignment, and so the kernels' summation order,
        # is that of a tensor that was never saved.
        result = torch.empty(shape, dtype=_DTYPES[entry.dtype])
        for piece in entry.pieces:
            start = [max(a, b) for a, b in zip(offset, piece.offset)]
            end = [min(a + m, b + n) for a, m, b, n in zip(offset, shape, piece.offset, piece.shape)]
            if any(low >= high for low, high in zip(start, end)):
                continue
            here = tuple(slice(low - a, high - a) for low, high, a in zip(start, end, offset))
            there = tuple(slice(low - b, high - b) for low, high, b in zip(start, end, piece.offset))
            with _safetensors(self.folder / piece.file) as file:
                whole = file.get_slice(piece.key)  # type: ignore[no-untyped-call]
                result[here] = whole[there] if there else file.get_tensor(piece.key)  # type: ignore[no-untyped-call]
        return result


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise refuse(path, "not a readable safetensors file", got=error) from None


def open_checkpoint(folder: Path, share: slice = slice(None)) -> Checkpoint:
    """Verify one checkpoint completely and open it.

    Args:
        folder: where it lies.
        share: the files to verify, by their place in the manifest; ranks that verify together take different ones.

    Raises:
        CheckpointError: saying which file or tensor is wrong, with expected and actual value.
    """
    if not folder.is_dir():
        there = [step_of(each) for each in list_checkpoints(folder.parent)]
        steps = f"one of {', '.join(map(str, sorted(there)))}" if there else ""
        raise refuse(folder, "there is no such checkpoint", allowed=steps, attempt="--checkpoint last")
    manifest = read_manifest(folder)
    for file in manifest.files[share]:
        _verify_file(folder / file.name, file)
    for file in manifest.files[share]:
        pieces = [
            (entry.dtype, piece)
            for entry in manifest.tensors.values()
            for piece in entry.pieces
            if piece.file == file.name
        ]
        _verify_pieces(folder / file.name, pieces)
    return Checkpoint(folder=folder, manifest=manifest)


def _verify_file(path: Path, expected: FileEntry) -> None:
    try:
        with open(path, "rb", opener=open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.bytes:
                raise refuse(path, "wrong size", got=f"{size} bytes", allowed=f"{expected.bytes} bytes")
            crc = 0
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError as error:
        raise refuse(path, f"cannot read the file ({error.strerror or error})") from None
    if crc != expected.crc32:
        raise refuse(path, "wrong checksum: the content has changed", got=f"{crc:08x}", allowed=f"{expected.crc32:08x}")


def _verify_pieces(path: Path, pieces: list[tuple[str, Piece]]) -> None:
    with _safetensors(path) as file:
        held = set(file.keys())  # type: ignore[no-untyped-call]
        for dtype, piece in pieces:
            if piece.key not in held:
                raise refuse(path, f"the file has no {piece.key!r}")
            there = file.get_slice(piece.key)  # type: ignore[no-untyped-call]
            found = (there.get_dtype(), tuple(there.get_shape()))
            if found != (dtype, piece.shape):
                raise refuse(
                    path, f"{piece.key!r} is not what the manifest says", got=found, allowed=f"{dtype} {piece.shape}"
                )


def newest_valid(checkpoints: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that verifies completely, and why each newer one was rejected."""
    rejected: list[CheckpointError] = []
    for folder in list_checkpoints(checkpoints):
        try:
            return open_checkpoint(folder), rejected
        except CheckpointError as error:
            rejected.append(error)
    return None, rejected


def best_valid(checkpoints: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The checkpoint of lowest validation loss that verifies (earliest if equal; the newest where none was
    evaluated), and why better ones were rejected.
    """
    rejected: list[CheckpointError] = []
    judged: list[tuple[float, int, Path]] = []
    for folder in list_checkpoints(checkpoints):
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            rejected.append(error)
            continue
        if manifest.valid_loss is not None:
            judged.append((manifest.valid_loss, manifest.step, folder))
    for _, _, folder in sorted(judged):
        try:
            return open_checkpoint(folder), rejected
        except CheckpointError as error:
            rejected.append(error)
    newest, also = newest_valid(checkpoints)
    return newest, rejected + [error for error in also if str(error) not in {str(other) for other in rejected}]


def cannot_resume(checkpoints: Path, rejected: Sequence[CheckpointError]) -> CheckpointError:
    """The error for a run whose every checkpoint is damaged."""
    return CheckpointError(
        Problem(
            where=str(checkpoints),
            what="no checkpoint of this run can be used",
            got=f"{len(rejected)} damaged",
            attempt="restore one from a copy, or start a new run in another directory",
        ),
        also=[problem for error in rejected for problem in error.problems],
    )


def is_finite(value: float | None) -> bool:
    """Whether a loss is a number that JSON can hold."""
    return value is not None and math.isfinite(value)
