"""What a decoding encoder-decoder Transformer remembers: the source's keys and values, and those of the targets read.

Target keys and values are kept exactly as long as what was read, position after position, and rows are put in order
when the next token is appended: one copy does both, which is all that changing beams costs. States are never changed in
place, and carry no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gradatim.models.layers.memory import Memory


@dataclass(frozen=True, slots=True)
class TransformerState:
    """``length`` target tokens read by each row."""

    memory: Memory
    """Per layer keys and values of the source, ``[n h s k]``."""
    length: int = 0
    layers: tuple[Float[Tensor, "t b two h k"], ...] = ()
    """Per layer keys and values of the targets before ``rows`` picked from them."""
    rows: Int[Tensor, " b"] | None = None
    """The rows of ``layers`` that this state is of; None: all, in order."""
    shows: bool = False
    """Whether attention weights are kept."""
    attention: Float[Tensor, "b names t s"] | None = None
    """Where each head looked while the last tokens were read."""
    grown: list[Tensor] | None = None
    """Filled by ``append`` while the next tokens are read, then ``layers`` of the new state."""

    @property
    def real(self) -> Bool[Tensor, "n s"] | None:
        """Which source positions are tokens; None where all are."""
        return None if bool(self.memory.real.all()) else self.memory.real

    def memory_of(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the source."""
        return self.memory.tensors[2 * layer], self.memory.tensors[2 * layer + 1]

    def reserve(self, new: int) -> Self:
        """The state ``new`` tokens later, which ``append`` fills layer by layer."""
        return replace(self, length=self.length + new, attention=None, grown=[])

    @torch.no_grad()
    def append(
        self, layer: int, keys: Float[Tensor, "b h t k"], values: Float[Tensor, "b h t k"]
    ) -> tuple[Float[Tensor, "b h all k"], Float[Tensor, "b h all k"]]:
        """One layer's keys and values of all tokens, from those of the last t."""
        assert self.grown is not None, "reserve first"
        b, h, t, k = keys.shape
        before = self.length - t
        grown = keys.new_empty(self.length, b, 2, h, k)
        if before and self.rows is not None:
            torch.index_select(self.layers[layer], 1, self.rows, out=grown[:before])
        elif before:
            grown[:before] = self.layers[layer]
        grown[before:, :, 0], grown[before:, :, 1] = keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)
        self.grown.append(grown)
        return grown[:, :, 0].permute(1, 2, 0, 3), grown[:, :, 1].permute(1, 2, 0, 3)

    def settled(self, attention: Float[Tensor, "b names t s"] | None = None) -> Self:
        """After reading: what was appended is what is kept."""
        assert self.grown is not None
        return replace(self, layers=tuple(self.grown), rows=None, grown=None, attention=attention)

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows; nothing of the targets is copied yet."""
        shown = None if self.attention is None else self.attention[rows]
        chosen = rows if self.rows is None else self.rows[rows]
        return replace(self, memory=self.memory.select(rows), rows=chosen, attention=shown)

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states that have read equally many tokens."""
        length = states[0].length
        if any(state.length != length for state in states):
            raise ValueError(f"states of unequal length: {[state.length for state in states]}")
        memory = Memory.join([state.memory for state in states], [2] * len(states[0].memory.tensors))
        layers = tuple(
            torch.cat([part if state.rows is None else part.index_select(1, state.rows)
                       for part, state in zip(parts, states)], 1)
            for parts in zip(*(state.layers for state in states), strict=True)
        )  # fmt: skip
        return cls(memory, length, layers, shows=all(state.shows for state in states))
