"""Dropout: of single values (Srivastava et al., 2014), and for recurrent models (Gal and Ghahramani, 2016) one mask for
all time steps, and whole words at a time.

PyTorch draws a CPU's mask one value at a time, which took a tenth of a small Transformer's training. Here a draw of 64
bits decides on four values, and the backward pass keeps one byte of mask a value. A share is thus a multiple of
1/65536; what remains is scaled by the share as drawn, so the mean is exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor
from torch.autograd.function import once_differentiable

STEPS = 1 << 16
"""Of a share: what 16 bits tell apart."""


class Dropped(torch.autograd.Function):
    """x · mask · scale, the mask in one byte a value."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*shape"], mask: Int8[Tensor, "*shape"], scale: float) -> Tensor:
        """Mask and scale."""
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return x * mask.to(x.dtype).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*shape"]) -> tuple[Tensor, None, None]:
        """The same mask and scale."""
        (mask,) = ctx.saved_tensors
        return gradient * mask.to(gradient.dtype).mul_(ctx.scale), None, None


def drawn_by_16_bits(x: Tensor, kept: int) -> bool:
    """Whether they decide: on a CPU, uncompiled (the compiler fuses PyTorch's own), unless nothing or all would go."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and 0 < kept < STEPS


def dropout(x: Float[Tensor, "*shape"], share: float, training: bool) -> Float[Tensor, "*shape"]:
    """Drop values with a probability, and scale the rest to keep the mean; all of them outside training."""
    if not training or share == 0.0:
        return x
    kept = round((1.0 - share) * STEPS)
    if not drawn_by_16_bits(x, kept):
        return F.dropout(x, share)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    mask = torch.empty(x.shape, dtype=torch.int8)
    torch.lt(bits.view(torch.int16)[: x.numel()].view(x.shape), kept - STEPS // 2, out=mask)
    dropped: Tensor = Dropped.apply(x, mask, STEPS / kept)  # type: ignore[no-untyped-call]
    return dropped


def locked_dropout(x: Float[Tensor, "b t d"], share: float, training: bool) -> Float[Tensor, "b t d"]:
    """Drop the same units of a row at every time step, and scale the rest to keep the mean."""
    if not training or share == 0.0:
        return x
    mask = x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1.0 - share).div_(1.0 - share)
    return x * mask


def drop_words(weight: Float[Tensor, "v d"], share: float, training: bool) -> Float[Tensor, "v d"]:
    """Drop whole rows of the embedding, so that a word is absent everywhere in the step, and scale the rest."""
    if not training or share == 0.0:
        return weight
    return weight * weight.new_empty(weight.shape[0], 1).bernoulli_(1.0 - share).div_(1.0 - share)
