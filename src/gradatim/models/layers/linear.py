"""y = x Wᵀ + b, with the product turned round where rows are few: generation reads all of W for a row per sequence.

Matrix libraries choose their kernels for training's many rows. For few rows on a CPU, MKL's x Wᵀ runs at a fraction of
the memory's bandwidth, which is all that should count; the same product as W xᵀ has the long side of W as its rows,
and comes close to it (``benchmarks/generation.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEW = 10
"""Rows up to which W xᵀ was measured faster, 1.1 to 9 times; from 12 on there is little between the two."""


class Linear(nn.Linear):
    """``nn.Linear`` whose product is ``linear``."""

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Equals ``F.linear`` to rounding."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*n i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*n o"]:
    """Equals ``F.linear`` to rounding; to the bit in training, that is wherever gradients are recorded."""
    if torch.is_grad_enabled() or x.numel() > FEW * x.shape[-1]:
        return F.linear(x, weight, bias)
    count = x.shape[:-1].numel()
    exact = weight.dtype in (torch.float32, torch.float64)  # half precision has kernels of its own
    if count == 0 or weight.device.type != "cpu" or not exact:
        return F.linear(x, weight, bias)
    rows = x.reshape(count, -1)
    if count == 1:  # a lone row would become a matrix-vector product, several times slower than that with two columns
        rows = rows.expand(2, -1).contiguous()
    turned = torch.mm(weight, rows.t()) if bias is None else torch.addmm(bias[:, None], weight, rows.t())  # o n
    return turned[:, :count].t().reshape(*x.shape[:-1], -1).contiguous()
