"""Weights in the type that matrix products read: copies made once a step, however many microbatches use them.

Training in bf16 keeps fp32 weights, which the optimizer updates, and multiplies bf16 copies of them (Micikevicius et
al. 2018, https://arxiv.org/abs/1710.03740, section 3.1). torch's autocast makes a copy in each forward pass, which
autograd then keeps until the backward pass, one for each microbatch under way. (Its cache can be made to last a step,
but then the gradients of a weight wait for the end of the backward pass, since the copy's own node is the oldest of the
graph.) So the products of our own autograd functions find their copies here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_kept: dict[Tensor, Tensor] | None = None


@contextlib.contextmanager
def keep_copies() -> Iterator[None]:
    """Around what does not change the weights. Not to be nested, and not for two threads at once."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def copies_are_kept() -> bool:
    """Whether we are inside ``keep_copies``."""
    return _kept is not None


def in_type(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as ``dtype``: itself, the copy that is kept, or a new one."""
    if weight.dtype == dtype:
        return weight
    if _kept is None:
        return weight.to(dtype)
    if weight not in _kept:
        _kept[weight] = weight.detach().to(dtype)
    return _kept[weight]


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast has matmuls of such a tensor run in; None where it is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
