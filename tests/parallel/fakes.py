"""Chunks whose gradients are given: the whole model's, drawn from a seed, cut as a layout cuts them.

The loss is Σ parameter · coefficient, so a parameter's gradient is its coefficient to the bit, and what the serial run
would get is known without any rank. The parameters are a small model's: split by rows, by columns or not at all,
partial over tp under sequence parallelism, tied over the ends of a pipeline.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradatim.parallel.mesh import Mesh
from gradatim.parallel.spec import ParameterSpec

WIDTH, VOCAB, LAYERS = 6, 12, 4


def cut(spec: ParameterSpec, whole: Tensor) -> Tensor:
    """The part of a tensor that a rank holds."""
    return whole[tuple(slice(a, a + n) for a, n in zip(spec.offset, spec.local))]


@dataclass
class FakeChunk:
    model: nn.Module
    specs: dict[str, ParameterSpec]
    queue: Any = None
    both_ends: bool = False
    """Whether a tied matrix lies here whole, embedding and output in one parameter."""


def draw(name: str, *numbers: int, shape: tuple[int, ...]) -> Tensor:
    seed = zlib.crc32("/".join([name, *map(str, numbers)]).encode())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_model(tied: bool) -> dict[str, tuple[tuple[int, ...], int | None, bool]]:
    """Name: shape, dimension split over tp, whether partial there under sequence parallelism."""
    found: dict[str, tuple[tuple[int, ...], int | None, bool]] = {
        "embed.tokens.weight": ((VOCAB, WIDTH), 0, False),
        "embed.positions.weight": ((5, WIDTH), None, True),
    }
    for layer in range(LAYERS):
        found[f"blocks.{layer}.norm.weight"] = ((WIDTH,), None, True)
        found[f"blocks.{layer}.up.weight"] = ((8, WIDTH), 0, False)
        found[f"blocks.{layer}.up.bias"] = ((8,), 0, False)
        found[f"blocks.{layer}.down.weight"] = ((WIDTH, 8), 1, False)
        found[f"blocks.{layer}.down.bias"] = ((WIDTH,), None, True)
    found["head.norm.weight"] = ((WIDTH,), None, True)
    if not tied:
        found["head.output.weight"] = ((VOCAB, WIDTH), 0, False)
    return found


class Parameters(nn.Module):
    """Parameters under dotted names, as a model of nested modules has them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(tensor.clone()))


def build(
    mesh: Mesh, *, tied: bool, partial: bool, chunks: int = 1, dtype: torch.dtype = torch.float64
) -> list[FakeChunk]:
    """The chunks of a rank: stage p of n holds chunks p, p + n, … as interleaved schedules place them."""
    made, stages = [], mesh.pp.size * chunks
    for chunk in range(chunks):
        stage = chunk * mesh.pp.size + mesh.pp.index
        layers = range(LAYERS * stage // stages, LAYERS * (stage + 1) // stages)
        specs = {}
        for name, (shape, split, may) in whole_model(tied).items():
            here = (
                (name.startswith("embed.") and stage == 0)
                or (name.startswith("head.") and stage == stages - 1)
                or (name.startswith("blocks.") and int(name.split(".")[1]) in layers)
            )
            if here:
                twin = tied and stages > 1 and name == "embed.tokens.weight"
                specs[name] = _spec(name, name, shape, split, partial and may, mesh, copy=False, tied=twin)
        if tied and stages > 1 and stage == stages - 1:
            specs["head.output.weight"] = _spec(
                "head.output.weight", "embed.tokens.weight", (VOCAB, WIDTH), 0, False, mesh, copy=True, tied=True
            )
        tensors = {name: cut(spec, draw(spec.global_name, shape=spec.shape)).to(dtype) for name, spec in specs.items()}
        made.append(FakeChunk(Parameters(tensors), specs, both_ends=tied and stages == 1))
    return made


def _spec(
    name: str, global_name: str, shape: tuple[int, ...], split: int | None, partial: bool, mesh: Mesh, *, copy: bool,
    tied: bool,
) -> ParameterSpec:  # fmt: skip
    local, offset = list(shape), [0] * len(shape)
    if split is not None:
        local[split] //= mesh.tp.size
        offset[split] = local[split] * mesh.tp.index
    return ParameterSpec(name, global_name, shape, tuple(offset), tuple(local), split, partial, copy, tied)


def coefficients(spec: ParameterSpec, mesh: Mesh, step: int, microbatch: int) -> Tensor:
    """This rank's gradient of a parameter from one microbatch of its replica."""
    whole = whole_coefficients(spec.global_name, spec.name, spec.shape, step, mesh.dp.index, microbatch)
    if spec.partial and mesh.tp.size > 1:  # parts that only together are the gradient
        parts = draw(spec.name, step, mesh.dp.index, microbatch, 7, shape=(mesh.tp.size, *spec.shape))
        whole = whole / mesh.tp.size + parts[mesh.tp.index] - parts.mean(0)
    return cut(spec, whole)


def whole_coefficients(
    global_name: str, name: str, shape: tuple[int, ...], step: int, dp: int, microbatch: int
) -> Tensor:
    return draw(f"{global_name}={name}", step, dp, microbatch, shape=shape) / math.sqrt(20)


def microbatches(step: int, dp: int) -> int:
    """Uneven, over steps and replicas."""
    return 1 + (step + dp) % 3


def backward(chunk: FakeChunk, mesh: Mesh, step: int, microbatch: int) -> None:
    terms = []
    for name, parameter in chunk.model.named_parameters():
        spec = chunk.specs[name]
        uses = [spec]
        if chunk.both_ends and name == "embed.tokens.weight":
            uses.append(replace(spec, name="head.output.weight"))
        terms += [(parameter * coefficients(use, mesh, step, microbatch).to(parameter.dtype)).sum() for use in uses]
    torch.stack(terms).sum().backward()


def serial(tied: bool, steps: int, replicas: int, rate: float, clip: float | None, **adamw: Any) -> dict[str, Any]:
    """What one process computes: parameters, moments, gradients before clipping and norms, by global name."""
    shapes = whole_model(tied)
    weights = {name: nn.Parameter(draw(name, shape=shape)) for name, (shape, _, _) in shapes.items()}
    groups = [
        {"params": [w for w in weights.values() if w.dim() >= 2], "weight_decay": adamw.pop("weight_decay")},
        {"params": [w for w in weights.values() if w.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, **adamw)
    norms, gradients = [], {}
    for step in range(steps):
        for name, weight in weights.items():
            weight.grad = sum(_terms(name, weight, tied, step, replicas), torch.zeros_like(weight))
        gradients = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
        norms.append(float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()))
        if clip is not None and norms[-1] > clip:
            torch._foreach_mul_([weight.grad for weight in weights.values()], clip / norms[-1])
        optimizer.step()
    tensors = {f"model/{name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer/{name}/{moment}"] = optimizer.state[weight][moment]
    return {"tensors": tensors, "norms": norms, "gradients": gradients}


def _terms(name: str, weight: Tensor, tied: bool, step: int, replicas: int) -> Iterator[Tensor]:
    uses = [name, "head.output.weight"] if tied and name == "embed.tokens.weight" else [name]
    for dp in range(replicas):
        for microbatch in range(microbatches(step, dp)):
            for use in uses:
                yield whole_coefficients(name, use, tuple(weight.shape), step, dp, microbatch)
