"""The vocabulary of shapes: a parameter with its split, a matmul, and counts over lists of them. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Split = Literal["column", "row", "vocab", "replicated"]
COLUMN: Split = "column"
"""The first matrix of a pair, split by output: weights are stored ``[out, in]``, so by rows (x·Wᵀ by columns)."""
ROW: Split = "row"
"""The second matrix of a pair, split by input; the products are summed over ranks, the bias is added once."""
VOCAB: Split = "vocab"
"""Embedding and output matrices, split by words."""
REPLICATED: Split = "replicated"
"""Whole on every rank."""


@dataclass(frozen=True, slots=True)
class ParameterShape:
    """One parameter: the name it has in the model, its shape, and how tensor parallelism splits it."""

    name: str
    shape: tuple[int, ...]
    split: Split = REPLICATED
    whole: bool = False
    """Whether it works on whole sequences even where sequence parallelism cuts the others, so that every rank that
    holds it has its gradient whole."""
    shares: bool = False
    """Whether it is whole on every rank and yet works with a share of the numbers there, so that its gradient must be
    summed over ranks even without sequence parallelism."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Matmul:
    """``times`` products of an ``[out, into]`` matrix with one token's vector in a forward pass."""

    name: str
    out: int
    into: int
    times: int = 1
    share: float = 1.0
    """Of the tokens, how many take part: a head may read some positions only."""

    @property
    def flops(self) -> int:
        """Multiplications and additions, forward, per token."""
        return round(2 * self.out * self.into * self.times * self.share)


def training_flops(matmuls: Iterable[Matmul]) -> int:
    """Model FLOPs of a training step per token: the backward pass does each product twice."""
    return 3 * sum(matmul.flops for matmul in matmuls)


def linear(name: str, out: int, into: int, split: Split, bias: bool) -> list[ParameterShape]:
    """The parameters of a linear layer."""
    found = [ParameterShape(f"{name}.weight", (out, into), split)]
    if bias:
        found.append(ParameterShape(f"{name}.bias", (out,), COLUMN if split == COLUMN else REPLICATED))
    return found
