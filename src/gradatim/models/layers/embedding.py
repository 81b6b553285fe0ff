"""Token vectors, plus a learned vector per position where order does not enter otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.models.layers.dropout import drop_words, dropout
from gradatim.models.layers.output import at_least_fp32


class Positions(nn.Module):
    """A learned vector per position."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(positions, width))

    def forward(self, first: int, t: int) -> Float[Tensor, "t d"]:
        """Vectors of t positions from ``first`` on."""
        return self.weight[first : first + t]


class Segments(nn.Module):
    """A learned vector per segment: sentence A or B of a pair."""

    def __init__(self, segments: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(segments, width))

    def forward(self, segments: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The vector of each position's segment."""
        return F.embedding(segments, self.weight)


class WholeSequence(nn.Module):
    """Marks where a model reads positions across the sequence again; nothing is to be done where it is whole."""

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The same."""
        return x


class Embedding(nn.Module):
    """``tokens[id] + positions[index]``; ``rows`` counts padding of the vocabulary too."""

    def __init__(
        self, rows: int, width: int, positions: int | None = None, *, dropout: float = 0.0, word_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(rows, width)
        self.positions = None if positions is None else Positions(positions, width)
        self.dropout, self.word_dropout = dropout, word_dropout

    def forward(self, ids: Int[Tensor, "b t"], first: int = 0) -> Float[Tensor, "b t d"]:
        """Vectors of tokens whose leftmost stands at position ``first``."""
        if self.word_dropout:
            x = F.embedding(ids, drop_words(self.tokens.weight, self.word_dropout, self.training))
        else:
            x = at_least_fp32(self.tokens(ids))
        if self.positions is not None:
            x = x + self.positions(first, ids.shape[1])
        return dropout(x, self.dropout, self.training)
