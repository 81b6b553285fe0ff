"""y = x Wᵀ + b, with the product turned round where rows are few: generation reads all of W for a row per sequence.

Matrix libraries choose their kernels for training's many rows. For few rows on a CPU, MKL's x Wᵀ runs at a fraction of
the memory's bandwidth, which is all that should count; the same product as W xᵀ has the long side of W as its rows,
and comes close to it (``benchmarks/generation.py``).

In a training step under autocast the product reads the step's copy of the weight (``working``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.layers.working import autocast_dtype, copies_are_kept, in_type

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
        low = autocast_dtype(x)
        if low is not None and _in_step(weight):
            y: Tensor = LowLinear.apply(x, weight, bias, low)  # type: ignore[no-untyped-call]
            return y
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


def _in_step(weight: Tensor) -> bool:
    """Whether a product is one of a training step, by a whole parameter; compiled code sees to its copies itself."""
    whole = isinstance(weight, nn.Parameter)
    return whole and torch.is_grad_enabled() and copies_are_kept() and not torch.compiler.is_compiling()


class LowLinear(torch.autograd.Function):
    """``F.linear`` in half precision on kept copies, to the bit as autocast computes it."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*n i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None,
        low: torch.dtype,
    ) -> Float[Tensor, "*n o"]:  # fmt: skip
        """The product, in ``low``."""
        x = x.to(low)
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias = weight, bias
        return F.linear(x, in_type(weight, low), None if bias is None else bias.to(low))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "*n o"]) -> tuple[Tensor | None, ...]:
        """Of x, in ``low``; of weight and bias."""
        (x,) = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = torch.mm(rows, in_type(ctx.weight, x.dtype)).view(x.shape) if needs_x else None
        grad_weight = torch.mm(rows.t(), x.flatten(0, -2)).to(ctx.weight.dtype) if needs_weight else None
        grad_bias = rows.sum(0).to(ctx.bias.dtype) if needs_bias and ctx.bias is not None else None
        return grad_x, grad_weight, grad_bias, None
