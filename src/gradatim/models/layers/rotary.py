"""Rotary position embedding (Su et al., 2021): rotate pairs of dimensions by angles proportional to the position.

Dimension i is paired with i + head_dim/2 (the layout of Llama weights in Hugging Face format), and the pair turns by
position · theta^(-2i/head_dim), so that a product of query and key depends on their distance alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotary_table(context: int, head_dim: int, theta: float) -> Float[Tensor, "two context half"]:
    """Cosines and sines of every position, in float64 rounded to float32; on the CPU, whatever weights are made on."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    angles = torch.arange(context, dtype=torch.float64, device="cpu")[:, None] * inverse
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Float[Tensor, "b t h k"], table: Float[Tensor, "two t half"]) -> Float[Tensor, "b t h k"]:
    """Rotate queries or keys at the positions of ``table``'s rows."""
    cos, sin = table.to(x.dtype)[:, :, None, :].unbind(0)  # t 1 k/2
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
