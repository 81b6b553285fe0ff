"""Attention of a decoder to an encoder's output, softmax(q kᵀ / √head_dim) v per head (Vaswani et al., 2017)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradatim.models.layers.core import attend
from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.linear import Linear


class CrossAttention(nn.Module):
    """Queries of the decoder; keys and values of the encoder, computed once a sentence.

    Rows of ``kv`` are grouped by head, its key and its value, so that a contiguous share of the rows is a smaller
    attention of its own, and the number of heads is read off the weights at hand.
    """

    def __init__(self, width: int, heads: int, *, bias: bool, dropout: float = 0.0, core_dropout: float = 0.0) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.query = Linear(width, width, bias=bias)
        self.kv = Linear(width, 2 * width, bias=bias)
        self.out = Linear(width, width, bias=bias)
        self.dropout, self.core_dropout = dropout, core_dropout
        self.core_random: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        """Where dropout of the weights draws from, for a share of the heads that must not draw what others do."""

    def memory(self, encoded: Float[Tensor, "n s d"]) -> tuple[Float[Tensor, "n h s k"], Float[Tensor, "n h s k"]]:
        """Keys and values of the encoder's output."""
        rows = self.kv(encoded)
        n, s, _ = rows.shape
        keys, values = rows.view(n, s, -1, 2, self.head_dim).unbind(3)  # n s h k
        return keys.transpose(1, 2), values.transpose(1, 2)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        keys: Float[Tensor, "n h s k"],
        values: Float[Tensor, "n h s k"],
        real: Bool[Tensor, "n s"] | None,
        show: list[Float[Tensor, "b h t s"]] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Look at the source positions that are ``real`` (None: all). Each of the n sentences serves b/n rows of x.

        With ``show`` the weights of each head are appended to it.
        """
        b, t, n = x.shape[0], x.shape[1], len(keys)
        # The rows of one sentence become queries of one attention: b t h k -> n h (b/n t) k.
        q = self.query(x).view(n, b // n * t, -1, self.head_dim).transpose(1, 2)
        mask = None if real is None else real[:, None, None, :]
        share = self.core_dropout if self.training else 0.0
        if show is None:
            with self.core_random() if share else contextlib.nullcontext():
                y = attend(q, keys, values, mask, dropout=share)
        else:
            weights = weights_of(q, keys, mask)  # n h (b/n t) s
            show.append(weights.transpose(1, 2).reshape(b, t, -1, keys.shape[2]).transpose(1, 2))
            y = weights @ values
        y = self.out(y.transpose(1, 2).reshape(b, t, -1))
        return dropout(y, self.dropout, self.training)


def weights_of(
    q: Float[Tensor, "n h t k"], keys: Float[Tensor, "n h s k"], mask: Bool[Tensor, "n h t s"] | None
) -> Float[Tensor, "n h t s"]:
    """softmax(q kᵀ / √k), written out."""
    scores = q @ keys.transpose(2, 3) / q.shape[3] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights: Tensor = scores.softmax(-1)
    return weights
