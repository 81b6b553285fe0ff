"""Waves of every position: PE(p, 2i) = sin(p / 10000^(2i/d)), PE(p, 2i+1) = cos(p / 10000^(2i/d)).

Vaswani et al. (2017), 3.5. A shift of the position is a rotation of each pair, so a linear map that does not depend on
the position: attention to "the one before" is in reach of one matrix from the first step on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoids(stop: int, width: int, first: int = 0) -> Float[Tensor, "t d"]:
    """Positions ``first`` to ``stop`` (exclusive); of an odd width the last sine has no cosine."""
    where = torch.arange(first, stop, dtype=torch.float64, device="cpu")[:, None]
    rates = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    return torch.stack([(where * rates).sin(), (where * rates).cos()], 2).flatten(1)[:, :width].float()
