"""LayerNorm (Ba et al., 2016) and RMSNorm (Zhang and Sennrich, 2019), by the name in the config."""

from __future__ import annotations

from torch import nn


def norm_layer(kind: str, width: int, eps: float, bias: bool) -> nn.Module:
    """``layer``: (x - mean) / sqrt(var + eps) · w + b; ``rms``: x / sqrt(mean(x²) + eps) · w."""
    if kind == "rms":
        return nn.RMSNorm(width, eps=eps)
    return nn.LayerNorm(width, eps=eps, bias=bias)
