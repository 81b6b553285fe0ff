"""Multi-head self-attention, softmax(q kᵀ / √head_dim) v per head (Vaswani et al., 2017).

Query heads may share keys and values in groups (Ainslie et al., 2023).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradatim.models.layers.cache import Cache
from gradatim.models.layers.core import attend
from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.linear import Linear
from gradatim.models.layers.rotary import rotate


class SelfAttention(nn.Module):
    """Self-attention, causal unless told otherwise: then every position sees all, or those that the mask leaves.

    Rows of ``qkv`` are grouped by key-value head: its query heads, its key, its value. A contiguous share of the rows
    is therefore a smaller attention of its own, and the number of heads is read off the weight at hand.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, *, bias: bool, dropout: float = 0.0,
        core_dropout: float | None = None, causal: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_dim = width // heads
        self.group = heads // kv_heads
        self.qkv = Linear(width, kv_heads * (self.group + 2) * self.head_dim, bias=bias)
        self.out = Linear(heads * self.head_dim, width, bias=bias)
        self.dropout, self.causal = dropout, causal
        self.core_dropout = dropout if core_dropout is None else core_dropout
        """Share of attention weights dropped."""
        self.recompute = False
        """Whether the backward pass computes the core again, whose scores are the largest activations of all."""
        self.core_random: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        """Where dropout of the core draws from, for a share of the heads that must not draw what others do."""

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotation: Float[Tensor, "two from_t half"] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        mask: Bool[Tensor, "*b t all"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Attend to each position and those before it; with a cache, to its tokens too (``mask`` where t > 1).

        A mask is true where a query may see a key; it is whole where x is a share of the positions.
        """
        rows = self.qkv(x)
        b, t, _ = rows.shape  # of what is projected: x may be a share of the positions
        heads = rows.view(b, t, -1, self.group + 2, self.head_dim)  # b t kv group+2 k
        q, k, v = heads.split([self.group, 1, 1], dim=3)
        q = q.reshape(b, t, -1, self.head_dim)  # b t h k
        k, v = k.squeeze(3), v.squeeze(3)  # b t kv k
        if rotation is not None:
            rotation = rotation[:, :t]
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # b h t k
        if cache is not None:
            k, v = cache.append(layer, k, v)
        if self.recompute and torch.is_grad_enabled():
            y = checkpoint(self._core, q, k, v, mask, use_reentrant=False)
        else:
            y = self._core(q, k, v, mask)
        y = self.out(y.transpose(1, 2).reshape(b, t, -1))  # b t h·k -> b t d
        return dropout(y, self.dropout, self.training)

    def _core(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b kv all k"],
        v: Float[Tensor, "b kv all k"],
        mask: Bool[Tensor, "*b t all"] | None,
    ) -> Float[Tensor, "b h t k"]:
        share = self.core_dropout if self.training else 0.0
        with self.core_random() if share else contextlib.nullcontext():
            return attend(q, k, v, mask, causal=self.causal and mask is None and q.shape[2] > 1, dropout=share)
