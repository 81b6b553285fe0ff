"""The settings of low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AdapterTarget = Literal["qkv", "q", "k", "v", "out", "gate", "up", "down"]
"""Layers of a block that an adapter can stand beside; qkv is one for queries, keys and values together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters: W stays as it is, and (alpha / rank) · B A is learned beside it (Hu et al., 2021)."""

    rank: int | None = None
    """Rows of A and columns of B; null trains the weights themselves."""
    alpha: float = 16.0
    """What the adapter adds is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs dropped in training."""
    targets: tuple[AdapterTarget, ...] = ("qkv",)
    """Layers that get an adapter: attention's qkv (or q, k, v by themselves) and out, feed-forward's gate, up, down."""
