"""Keys and values of the tokens read so far, for every layer: what lets a Transformer read each token once.

A state never changes as its holder sees it, yet appending must not copy. Buffers are larger than what they hold
and shared by the states that grew from one another; the one state that ends where the buffer ends may append in place,
any other appends to a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
"""Buffers grow to a multiple of this, and by half of their size, so that growing is rare."""


@dataclass(slots=True)
class _Buffer:
    """Room for ``[layer, key or value, row, head, position, head_dim]`` and how many positions are written."""

    data: Float[Tensor, "layers 2 b kv room k"]
    filled: int


@dataclass(frozen=True, slots=True)
class KeyValueCache:
    """The state of a Transformer language model: ``length`` tokens read by each of ``batch`` rows."""

    batch: int
    length: int = 0
    buffer: _Buffer | None = None

    def reserve(self, new: int, layers: int, heads: int, like: Float[Tensor, "b t k"], most: int) -> Self:
        """A cache that ends ``new`` positions later, with room to write them; their content is the caller's to fill."""
        length = self.length + new
        old = self.buffer
        if old is None or old.filled != self.length or old.data.shape[4] < length:
            room = min(max(length, self.length * 3 // 2 + BLOCK), max(most, length))
            shape = (layers, 2, self.batch, heads, room, like.shape[-1])
            data = like.new_empty(shape)
            if old is not None:
                data[..., : self.length, :] = old.data[..., : self.length, :]
            old = _Buffer(data, self.length)
        old.filled = length
        return type(self)(self.batch, length, old)

    def layer(self, index: int) -> tuple[Float[Tensor, "b kv t k"], Float[Tensor, "b kv t k"]]:
        """Views of one layer's keys and values up to ``length``."""
        assert self.buffer is not None
        keys, values = self.buffer.data[index, :, :, :, : self.length].unbind(0)
        return keys, values

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows, copied."""
        if self.buffer is None:
            return type(self)(len(rows))
        room = min(self.length + BLOCK, self.buffer.data.shape[4])
        data = self.buffer.data[:, :, :, :, :room].index_select(2, rows)
        return type(self)(len(rows), self.length, _Buffer(data, self.length))

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states that have read equally many tokens."""
        length = states[0].length
        if any(state.length != length for state in states):
            raise ValueError(f"states of unequal length: {[state.length for state in states]}")
        batch = sum(state.batch for state in states)
        buffers = [state.buffer.data[..., :length, :] for state in states if state.buffer is not None]
        return cls(batch, length, _Buffer(torch.cat(buffers, 2), length) if buffers else None)
