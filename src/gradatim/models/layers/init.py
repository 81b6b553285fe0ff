"""Initial weights that depend on nothing but (seed, parameter name, row): every layout starts from the same model.

Rows are drawn in blocks of fixed size, each from a generator of its own, so a rank that holds a part of a matrix draws
only that part, and adding a parameter elsewhere moves none of the others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gradatim.models.layers.alike import keys_like_queries
from gradatim.models.layers.sinusoids import sinusoids
from gradatim.shapes.lora import is_adapter

if TYPE_CHECKING:
    from gradatim.models.neural import NeuralModel

ROWS = 64
"""Rows drawn from one generator."""


@dataclass(frozen=True, slots=True)
class Init:
    """How a parameter begins: N(0, scale²), U(-scale, scale), all equal to ``scale``, or waves of its rows' numbers
    whose root mean square is ``scale``.
    """

    kind: Literal["normal", "uniform", "constant", "sinusoidal"]
    scale: float
    fixed: tuple[int, int, float] | None = None
    """Rows ``start`` to ``stop`` (exclusive) that hold this constant instead, such as the forget gate's bias."""
    alike: int | None = None
    """The width of a head whose keys begin as its queries do, in a matrix of queries, keys and values by turns."""


def initialise(model: NeuralModel, seed: int) -> None:
    """Draw every parameter of a model in place, as its ``initial(name)`` says."""
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        parameter.data.copy_(draw(init_of(model, name, shape), name, shape, seed))


def init_of(model: NeuralModel, name: str, shape: tuple[int, ...]) -> Init:
    """How a parameter of that whole shape is drawn: as the model says, or as adapters are (A uniform, B zero).

    A is He et al.'s (2015) with slope √5, U(-1/√in, 1/√in), as peft draws it; with B zero the model begins as it was.
    """
    if not is_adapter(name):
        return model.initial(name)
    return Init("uniform", shape[1] ** -0.5) if name.endswith(".a") else Init("constant", 0.0)


def draw(
    init: Init,
    name: str,
    shape: tuple[int, ...],
    seed: int,
    first: int = 0,
    stop: int | None = None,
    columns: slice | None = None,
) -> Tensor:
    """Rows ``first`` to ``stop`` of a parameter whose whole shape is given, in float32; of a matrix, these columns.

    They equal that part of the whole draw; whole blocks are drawn, and what was not asked for is cut off.
    """
    stop = shape[0] if stop is None else stop
    if init.alike is not None:
        drawn = replace(init, alike=None)
        return keys_like_queries(lambda a, b: draw(drawn, name, shape, seed, a, b, columns), first, stop, init.alike,
                                 init.scale, shape[1])  # fmt: skip
    begin = first // ROWS * ROWS
    parts = []
    for start in range(begin, stop, ROWS):
        block = torch.empty(min(ROWS, shape[0] - start), *shape[1:])
        generator = torch.Generator().manual_seed(seed_of(seed, name, start // ROWS))
        if init.kind == "normal":
            block.normal_(0.0, init.scale, generator=generator)
        elif init.kind == "uniform":
            block.uniform_(-init.scale, init.scale, generator=generator)
        elif init.kind == "sinusoidal":
            block.copy_(sinusoids(start + len(block), shape[1], start) * (init.scale * 2**0.5))
        else:
            block.fill_(init.scale)
        part = block[max(first - start, 0) : stop - start]
        parts.append(part if columns is None else part[:, columns])
    rows = torch.cat(parts) if parts else torch.empty(0, *shape[1:])
    if init.fixed is not None:
        start, end, value = init.fixed
        rows[max(start - first, 0) : max(end - first, 0)] = value
    return rows


def seed_of(*parts: object) -> int:
    """A 63-bit seed from a description, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
