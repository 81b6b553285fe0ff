"""Checkpoints that do not know the layout: what each rank holds as rectangles of the model's whole parameters.

Names and whole shapes are those of a run in one process (``model/NAME``, ``optimizer/NAME/exp_avg``), so a checkpoint
saved under any layout continues under any other, or under none. A shard of a layer is a rectangle of the parameter
already. A shard of a flat bucket (ZeRO-1) is a run of a parameter's numbers, and a run of a matrix is at most three
rectangles: the end of a row, whole rows, the beginning of one.

Saving   the first rank makes and names a temporary folder → every rank writes its own file and syncs it → all tell all
         whether they could → the first writes the manifest and publishes by one rename → all hear of that. Whatever
         fails, fails on every rank with the same error, and nothing is published.
Loading  files are verified by turns, rank r every n-th of them; then each rank reads the rectangles it needs.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradatim.errors import CheckpointError, Problem
from gradatim.models.layers.lora import stored
from gradatim.parallel.agree import exchange, tell
from gradatim.parallel.mesh import Mesh
from gradatim.parallel.optimizer import MOMENTS, ShardedAdamW
from gradatim.train.checkpoint import (
    Checkpoint,
    Held,
    WrittenPart,
    complete,
    open_checkpoint,
    write_part,
)
from gradatim.train.manifest import FileEntry, Manifest, Piece, TensorEntry
from gradatim.train.publish import list_checkpoints, new_temporary
from gradatim.train.run_directory import MODEL
from gradatim.train.state import OPTIMIZER
from gradatim.train.weights import is_unused

if TYPE_CHECKING:
    from gradatim.parallel.build import Chunk
    from gradatim.parallel.spec import ParameterSpec

Sizes = tuple[int, ...]


def rectangles(shape: Sizes, begin: int, end: int) -> Iterator[tuple[Sizes, Sizes]]:
    """Elements ``begin`` to ``end`` of a tensor, counted row by row, as disjoint rectangles (offset, shape), in order.

    At most one for a vector, three for a matrix, two more for each further dim.
    """
    if begin >= end:
        return
    if len(shape) <= 1:
        yield ((begin,), (end - begin,)) if shape else ((), ())
        return
    size = 1
    for length in shape[1:]:
        size *= length
    first, last = -(-begin // size), end // size  # whole rows
    if first > last:  # all of it lies within one row
        for offset, inner in rectangles(shape[1:], begin - last * size, end - last * size):
            yield (last, *offset), (1, *inner)
        return
    if begin < first * size:
        for offset, inner in rectangles(shape[1:], begin - (first - 1) * size, size):
            yield (first - 1, *offset), (1, *inner)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if last * size < end:
        for offset, inner in rectangles(shape[1:], 0, end - last * size):
            yield (last, *offset), (1, *inner)


def placed(spec: ParameterSpec, begin: int, end: int) -> Iterator[tuple[Sizes, Sizes]]:
    """Elements ``begin`` to ``end`` of what is held of a parameter, as rectangles of the whole parameter."""
    for offset, shape in rectangles(spec.local, begin, end):
        yield tuple(a + b for a, b in zip(spec.offset, offset)), shape


# --------------------------------------------------------------------------- saving


def held(chunks: Sequence[Chunk], optimizer: ShardedAdamW, mesh: Mesh) -> list[Held]:
    """What this rank is to write; every number of the model and its moments is written by exactly one.

    Ranks that hold the same (replicas; shards of tp where nothing is split) take parameters by turns.
    """
    found: list[Held] = []
    number = 0
    for chunk in chunks:
        for name, parameter in stored(chunk.model).items():
            spec = chunk.specs[name]
            number += 1
            if _ours(spec, number, mesh, replicated=True):
                found.append(Held(MODEL + spec.global_name, spec.shape, [(spec.offset, parameter.detach())]))
    moments: dict[str, Held] = {}
    replicated = not optimizer.gradients.sharded
    for number, leaf in enumerate(optimizer.leaves):
        for part in leaf.parts:
            if not _ours(part.spec, number, mesh, replicated):
                continue
            for moment, tensor in optimizer.moments(leaf).items():
                name = f"{OPTIMIZER}{part.spec.global_name}/{moment}"
                run = leaf.of(part, tensor)
                pieces = []
                at = 0
                for offset, shape in placed(part.spec, part.begin, part.end):
                    size = torch.Size(shape).numel()
                    pieces.append((offset, run[at : at + size].view(shape)))
                    at += size
                moments[name] = Held(name, part.spec.shape, pieces)
    return [*found, *moments.values()]


def _ours(spec: ParameterSpec, number: int, mesh: Mesh, replicated: bool) -> bool:
    """Whether of all ranks that hold this parameter, or this run of it, this one writes it."""
    if spec.copy:
        return False
    members, place = 1, 0
    if replicated:
        members, place = mesh.dp.size, mesh.dp.index
    if spec.split is None:
        members, place = members * mesh.tp.size, place * mesh.tp.size + mesh.tp.index
    return number % members == place


def save(
    checkpoints: Path,
    manifest: Manifest,
    chunks: Sequence[Chunk],
    optimizer: ShardedAdamW,
    mesh: Mesh,
    before: Callable[[], None] = lambda: None,
) -> Path:
    """Publish a checkpoint of all ranks, who all call this.

    Args:
        checkpoints: the folder of all checkpoints, which all ranks see.
        manifest: of the first rank; its files and tensors are filled in here.
        chunks: what this rank holds of the model.
        optimizer: what this rank holds of the moments.
        mesh: this rank's place.
        before: done by the first rank before anything is written.

    Returns: the published folder.

    Raises:
        OSError: some rank could not write; the same on every rank, naming it. Nothing was published.
    """
    temporary: Path | None = None
    answer: dict[str, Any] = {}
    try:
        if mesh.rank == 0:
            before()
            answer = {"folder": new_temporary(checkpoints, manifest.step).name}
    except OSError as error:
        answer = _failure(error)
    answer = tell(answer, mesh)
    if "folder" in answer:
        temporary = checkpoints / answer["folder"]
    _raise_first([answer])
    assert temporary is not None
    try:
        try:
            answer = asdict(write_part(temporary, mesh.rank, held(chunks, optimizer, mesh)))
        except OSError as error:
            answer = _failure(error)
        answers = exchange(answer, mesh)
        _raise_first(answers)
        try:
            if mesh.rank == 0:
                complete(temporary, manifest, [_part(answer) for answer in answers])
            answer = {}
        except OSError as error:
            answer = _failure(error)
        _raise_first([tell(answer, mesh)])
    except BaseException:
        # All have answered, so nobody writes there any more.
        if mesh.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return checkpoints / temporary.name.split(".")[0]


def _failure(error: OSError) -> dict[str, Any]:
    return {"errno": error.errno or errno.EIO, "why": error.strerror or str(error)}


def _raise_first(answers: Sequence[dict[str, Any]]) -> None:
    """Raise the error of the lowest rank that had one."""
    for rank, answer in enumerate(answers):
        if "errno" in answer:
            raise OSError(answer["errno"], f"rank {rank}: {answer['why']}")


def _part(answer: dict[str, Any]) -> WrittenPart:
    """What a rank has written, from JSON."""
    tensors = {
        name: TensorEntry(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            pieces=tuple(
                Piece(
                    file=piece["file"],
                    key=piece["key"],
                    offset=tuple(piece["offset"]),
                    shape=tuple(piece["shape"]),
                )
                for piece in entry["pieces"]
            ),
        )
        for name, entry in answer["tensors"].items()
    }
    return WrittenPart(FileEntry(**answer["file"]), tensors)


# --------------------------------------------------------------------------- loading


def newest(checkpoints: Path, mesh: Mesh) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that verifies, and why newer ones did not; the same on every rank, who all call this."""
    rejected: list[CheckpointError] = []
    names = tell([folder.name for folder in list_checkpoints(checkpoints)] if mesh.rank == 0 else None, mesh)
    for name in names:
        found, problems = None, []
        try:
            found = open_checkpoint(checkpoints / name, slice(mesh.rank, None, mesh.world))
        except CheckpointError as error:
            problems = [asdict(problem) for problem in error.problems]
        problems = _distinct(exchange(problems, mesh))
        if not problems:
            return found, rejected
        rejected.append(CheckpointError(*(Problem(**problem) for problem in problems)))
    return None, rejected


def load(checkpoint: Checkpoint, chunks: Sequence[Chunk], optimizer: ShardedAdamW, updates: int) -> None:
    """Fill parameters and moments from a checkpoint of any layout; all ranks call this.

    Args:
        checkpoint: verified.
        chunks: what this rank holds of the model.
        optimizer: what this rank holds of the moments.
        updates: how many updates had been made.

    Raises:
        CheckpointError: it is of another model, or its moments are not those of this one; the same on every rank.
    """
    mesh = optimizer.mesh
    specs = [chunk.specs[name] for chunk in chunks for name in stored(chunk.model)]
    wanted = {MODEL + spec.global_name: spec.shape for spec in specs}
    moments = checkpoint.names(OPTIMIZER)
    if moments:  # there are none before the first update, and none of what is not trained
        trained = [part.spec for leaf in optimizer.leaves for part in leaf.parts]  # of shards, what others do not name
        wanted |= {f"{OPTIMIZER}{spec.global_name}/{moment}": spec.shape for spec in trained for moment in MOMENTS}
    answers = exchange([wanted, []], mesh)
    everything = {name: tuple(shape) for names, _ in answers for name, shape in names.items()}
    problems = list(_differences(checkpoint, everything))
    if problems:
        raise CheckpointError(*problems)
    failed: list[dict[str, str]] = []
    try:
        _fill(checkpoint, chunks, optimizer, updates, bool(moments))
    except CheckpointError as error:  # a file that was whole a moment ago
        failed = [asdict(problem) for problem in error.problems]
    if found := _distinct(exchange(failed, mesh)):
        raise CheckpointError(*(Problem(**problem) for problem in found))


@torch.no_grad()
def _fill(
    checkpoint: Checkpoint, chunks: Sequence[Chunk], optimizer: ShardedAdamW, updates: int, moments: bool
) -> None:
    for chunk in chunks:
        for name, parameter in stored(chunk.model).items():
            spec = chunk.specs[name]
            parameter.copy_(checkpoint.read(MODEL + spec.global_name, spec.offset, spec.local))
    if not moments:
        return
    optimizer.allocate(updates)
    for leaf in optimizer.leaves:
        for moment, tensor in optimizer.moments(leaf).items():
            for part in leaf.parts:
                name = f"{OPTIMIZER}{part.spec.global_name}/{moment}"
                read = [checkpoint.read(name, *box).flatten() for box in placed(part.spec, part.begin, part.end)]
                leaf.of(part, tensor).copy_(read[0] if len(read) == 1 else torch.cat(read))


def _differences(checkpoint: Checkpoint, wanted: dict[str, Sizes]) -> Iterator[Problem]:
    """Every name or shape in which a checkpoint and a model differ."""
    where, attempt = str(checkpoint.folder), "is it of another model?"
    own = {name for name in checkpoint.names() if name.startswith((MODEL, OPTIMIZER))}
    for name in sorted(wanted.keys() | own):
        if name not in wanted and is_unused(name.removeprefix(MODEL).removeprefix(OPTIMIZER)):
            continue
        if name not in own:
            yield Problem(where=where, what=f"the checkpoint has no {_shown(name)}", attempt=attempt)
        elif name not in wanted:
            yield Problem(where=where, what=f"the model has no {_shown(name)}", attempt=attempt)
        elif (shape := checkpoint.manifest.tensors[name].shape) != wanted[name]:
            yield Problem(
                where=where,
                what=f"{_shown(name)} has another shape",
                got=str(list(shape)),
                allowed=str(list(wanted[name])),
                attempt=attempt,
            )


def _shown(name: str) -> str:
    if name.startswith(MODEL):
        return f"parameter {name.removeprefix(MODEL)}"
    return f"moment {name.removeprefix(OPTIMIZER)}"


def _distinct(answers: Sequence[Sequence[dict[str, str]]]) -> list[dict[str, str]]:
    """The problems of all ranks, each once."""
    found: list[dict[str, str]] = []
    for problem in (problem for answer in answers for problem in answer):
        if problem not in found:
            found.append(problem)
    return found
