"""Keys and values of the tokens read so far, for every layer: what lets a Transformer read each token once.

A state never changes as its holder sees it, yet appending must not copy. So buffers are larger than what they hold and
shared by the states that grew from one another; the state that ends where the written part ends appends in place, any
other (a shorter ancestor used again) appends to a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROOM = 64
"""Buffers grow by half of their size and this, so that growing is rare."""


class Cache(Protocol):
    """What self-attention hands new keys and values to."""

    def append(
        self, layer: int, keys: Float[Tensor, "b kv t k"], values: Float[Tensor, "b kv t k"]
    ) -> tuple[Float[Tensor, "b kv all k"], Float[Tensor, "b kv all k"]]:
        """Those of all tokens, from one layer's of the last t."""
        ...


@dataclass(slots=True)
class _Buffer:
    """Per layer, room for ``[key or value, row, head, position, head_dim]``, and how many positions are written."""

    layers: list[Float[Tensor, "two b kv room k"]]
    written: int

    @property
    def room(self) -> int:
        return self.layers[0].shape[3] if self.layers else 0


@dataclass(frozen=True, slots=True)
class KeyValueCache:
    """The state of a Transformer language model: ``length`` tokens read by each of ``batch`` rows."""

    batch: int
    length: int = 0
    buffer: _Buffer | None = None

    def reserve(self, new: int, most: int) -> Self:
        """A cache that ends ``new`` positions later, with room for them, which ``append`` fills layer by layer."""
        length = self.length + new
        old = self.buffer
        if old is None:
            old = _Buffer([], length)
        elif old.written != self.length or old.room < length:
            room = max(length, min(self.length * 3 // 2 + ROOM, most))
            old = _Buffer([_copy(layer, self.length, room) for layer in old.layers], length)
        old.written = length
        return type(self)(self.batch, length, old)

    def append(
        self, layer: int, keys: Float[Tensor, "b kv t k"], values: Float[Tensor, "b kv t k"]
    ) -> tuple[Float[Tensor, "b kv all k"], Float[Tensor, "b kv all k"]]:
        """Write one layer's keys and values of the last t tokens; those of all tokens come back."""
        assert self.buffer is not None, "reserve first"
        layers, t = self.buffer.layers, keys.shape[2]
        if layer == len(layers):  # the first tokens ever read by this layer
            b, kv, _, k = keys.shape
            layers.append(keys.new_empty(2, b, kv, self.length + ROOM, k))
        held = layers[layer].narrow(3, 0, self.length)
        held.narrow(3, self.length - t, t).copy_(torch.stack((keys, values)))
        all_keys, all_values = held.unbind(0)
        return all_keys, all_values

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows, copied."""
        if self.buffer is None:
            return type(self)(len(rows))
        kept = min(self.length + ROOM, self.buffer.room)
        layers = [layer.narrow(3, 0, kept).index_select(1, rows) for layer in self.buffer.layers]
        return type(self)(len(rows), self.length, _Buffer(layers, self.length))

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states that have read equally many tokens."""
        length, batch = states[0].length, sum(state.batch for state in states)
        if any(state.length != length for state in states):
            raise ValueError(f"states of unequal length: {[state.length for state in states]}")
        held = [state.buffer.layers for state in states if state.buffer is not None]
        if not held:
            return cls(batch)
        layers = [torch.cat([part.narrow(3, 0, length) for part in parts], 1) for parts in zip(*held, strict=True)]
        return cls(batch, length, _Buffer(layers, length))


def _copy(old: Float[Tensor, "two b kv t k"], length: int, room: int) -> Float[Tensor, "two b kv room k"]:
    new = old.new_empty(*old.shape[:3], room, old.shape[4])
    new.narrow(3, 0, length).copy_(old.narrow(3, 0, length))
    return new
