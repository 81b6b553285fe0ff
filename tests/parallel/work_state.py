"""What the workers do for test_state.py."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from fakes import build
from torch import nn
from work_gradients import ADAMW, mesh_of, one_step, pieces

from gradatim.config.settings import GptConfig
from gradatim.errors import CheckpointError
from gradatim.parallel import state
from gradatim.parallel.build import build_chunk
from gradatim.parallel.gradients import Gradients
from gradatim.parallel.mesh import Mesh, single
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.train import checkpoint as files
from gradatim.train.checkpoint import Held
from gradatim.train.manifest import FileEntry, Manifest

Sizes = tuple[int, int, int]
GPT = GptConfig(d_model=16, n_layers=4, n_heads=2, d_ff=40, vocab_multiple=8)
VOCAB, CONTEXT = 50, 12


def manifest(step: int) -> Manifest:
    return Manifest(
        step=step, tokens=0, samples=0, config_hash="c", data_fingerprint="d", tokenizer_fingerprint="t",
        counters={"step": step},
    )  # fmt: skip


def place(world: int, sizes: Sizes) -> Mesh:
    return mesh_of(sizes) if world > 1 else single()


def found(chunks: list[Any], optimizer: ShardedAdamW) -> list[Any]:
    """Weights and moments as this rank holds them."""
    whole = [
        (chunk.specs[name], "model", 0, parameter.detach().flatten().clone())
        for chunk in chunks
        for name, parameter in chunk.model.named_parameters()
    ]
    return whole + pieces(optimizer, "exp_avg") + pieces(optimizer, "exp_avg_sq")


def save_fakes(rank: int, world: int, folder: str, sizes: Sizes, zero: int, chunks: int) -> dict[str, Any]:
    """Three steps, then a checkpoint; what was saved."""
    mesh = place(world, sizes)
    made: list[Any] = build(mesh, tied=True, partial=sizes[2] > 1, chunks=chunks)
    gradients = Gradients(made, mesh, zero=zero, bucket_bytes=300)
    optimizer = ShardedAdamW(gradients, ADAMW)
    for step in range(3):
        one_step(made, gradients, mesh, step)
        optimizer.step(0.01, optimizer.norm(), 1.0)
    state.save(Path(folder), manifest(3), made, optimizer, mesh)
    gradients.close()
    return {"found": found(made, optimizer)}


def load_fakes(rank: int, world: int, folder: str, sizes: Sizes, zero: int, chunks: int) -> dict[str, Any]:
    """What is there after loading into a model of other weights."""
    mesh = place(world, sizes)
    made: list[Any] = build(mesh, tied=True, partial=sizes[2] > 1, chunks=chunks)
    for chunk in made:
        for parameter in chunk.model.parameters():
            nn.init.constant_(parameter, 7.0)
    gradients = Gradients(made, mesh, zero=zero, bucket_bytes=500)
    optimizer = ShardedAdamW(gradients, ADAMW)
    checkpoint, rejected = state.newest(Path(folder), mesh)
    assert checkpoint is not None
    assert not rejected
    state.load(checkpoint, made, optimizer, 3)
    steps = {float(kept["step"]) for kept in optimizer.inner.state.values()}
    gradients.close()
    return {"found": found(made, optimizer), "steps": steps}


def refuse(rank: int, world: int, folder: str) -> tuple[list[str], int | None]:
    """Why checkpoints are passed over, and the step that is taken."""
    checkpoint, rejected = state.newest(Path(folder), place(world, (1, world, 1)))
    return [str(error) for error in rejected], None if checkpoint is None else checkpoint.step


def other_model(rank: int, world: int, folder: str) -> str:
    """Loading what is not of this model."""
    mesh = place(world, (1, world, 1))
    made: list[Any] = build(mesh, tied=False, partial=False)
    if world > 1:
        shorter = made[0].model.blocks.get_submodule("0").up
        made[0].specs["blocks.0.up.weight"] = made[0].specs["blocks.0.down.weight"]
        shorter.weight = nn.Parameter(torch.zeros(6, 8, dtype=torch.float64))
    gradients = Gradients(made, mesh)
    checkpoint, _ = state.newest(Path(folder), mesh)
    assert checkpoint is not None
    try:
        state.load(checkpoint, made, ShardedAdamW(gradients, ADAMW), 3)
    except CheckpointError as error:
        return str(error)
    finally:
        gradients.close()
    return "loaded"


def disk_full(rank: int, world: int, folder: str, where: str, who: int) -> tuple[int | None, str | None]:
    """Saving where one rank's disk fills up in ``where``; the error seen."""
    mesh = place(world, (1, world, 1))
    made: list[Any] = build(mesh, tied=True, partial=False)
    gradients = Gradients(made, mesh, zero=1)
    optimizer = ShardedAdamW(gradients, ADAMW)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    target, name = {"file": (files, "write_safetensors"), "folder": (state, "new_temporary"),
                    "manifest": (files, "write_durably"), "rename": (files, "publish")}[where]  # fmt: skip
    real = getattr(target, name)
    if rank == who:
        setattr(target, name, full)
    try:
        state.save(Path(folder), manifest(9), made, optimizer, mesh)
    except OSError as error:
        return error.errno, error.strerror
    finally:
        setattr(target, name, real)
        gradients.close()
    return None, None


def save_gpt(rank: int, world: int, folder: str, sizes: Sizes, zero: int) -> dict[str, Any]:
    """A real GPT, cut as the layout says, after two updates with gradients made of its weights."""
    mesh = place(world, sizes)
    per = GPT.n_layers // mesh.pp.size
    chunk = build_chunk(
        GPT, VOCAB, CONTEXT, layers=range(per * mesh.pp.index, per * (mesh.pp.index + 1)), embed=mesh.pp.index == 0,
        head=mesh.pp.index == mesh.pp.size - 1, mesh=mesh, seed=5,
    )  # fmt: skip
    gradients = Gradients([chunk], mesh, zero=zero, bucket_bytes=4000)
    optimizer = ShardedAdamW(gradients, ADAMW)
    for _ in range(2):
        gradients.begin()
        gradients.last_backward(chunk)
        torch.stack([p.square().sum() + p.sum() for p in chunk.model.parameters()]).sum().backward()
        gradients.finish()
        optimizer.step(0.01, optimizer.norm(), 1.0)
    state.save(Path(folder), manifest(2), [chunk], optimizer, mesh)
    gradients.close()
    return {"found": found([chunk], optimizer)}


def many_pieces(rank: int, world: int) -> list[tuple[str, FileEntry | None]]:
    """Who writes what: names and numbers of elements."""
    mesh = place(world, (1, world, 1))
    made: list[Any] = build(mesh, tied=True, partial=False)
    gradients = Gradients(made, mesh, zero=0)
    mine: list[Held] = state.held(made, ShardedAdamW(gradients, ADAMW), mesh)
    gradients.close()
    return [(one.name, None) for one in mine]
