"""What an encoder leaves to its decoder: tensors of one row a sentence, which the rows of a search share.

A search has several rows (beams) for each sentence, and they all look at the same memory. As long as every sentence has
equally many rows side by side, the memory stays one row a sentence and ``group`` counts the rows that share it; any
other choice of rows copies. So a beam search neither repeats the memory nor moves it when beams change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Memory:
    """``n`` sentences, each shared by ``group`` consecutive rows of a state."""

    tensors: tuple[Tensor, ...]
    """Each ``[n s …]`` or ``[n heads s k]``: whatever the decoder reads."""
    real: Bool[Tensor, "n s"]
    """Which positions are tokens and not padding."""
    group: int = 1

    @property
    def rows(self) -> int:
        """Rows of the state."""
        return len(self.real) * self.group

    def select(self, rows: Int[Tensor, " m"]) -> Self:
        """The memory of those rows, in that order."""
        owner = rows // self.group
        kept, counts = torch.unique_consecutive(owner, return_counts=True)
        group = int(counts[0]) if len(counts) else 1
        if not bool((counts == group).all()):
            kept, group = owner, 1
        if len(kept) == len(self.real) and bool((kept == torch.arange(len(kept), device=kept.device)).all()):
            return type(self)(self.tensors, self.real, group)
        return type(self)(tuple(tensor[kept] for tensor in self.tensors), self.real[kept], group)

    def repeated(self) -> Self:
        """The same with one row of memory a row of the state."""
        if self.group == 1:
            return self
        return type(self)(
            tuple(tensor.repeat_interleave(self.group, 0) for tensor in self.tensors),
            self.real.repeat_interleave(self.group, 0),
        )

    @classmethod
    def join(cls, memories: Sequence[Self], where: Sequence[int]) -> Self:
        """The rows of several memories; ``where[i]`` is the dimension along which tensor i is as long as its source."""
        whole = [memory.repeated() for memory in memories]
        longest = max(memory.real.shape[1] for memory in whole)
        tensors = tuple(
            torch.cat([_widened(memory.tensors[i], dim, longest) for memory in whole]) for i, dim in enumerate(where)
        )
        return cls(tensors, torch.cat([_widened(memory.real, 1, longest) for memory in whole]))


def _widened(tensor: Tensor, dim: int, length: int) -> Tensor:
    """Zeros behind the end of a dimension, up to a length."""
    short = length - tensor.shape[dim]
    if not short:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = short
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
