"""Queries and keys that begin alike: the same matrix for both, so that a position attends to words like its own.

score(i, j) = (W x_i)·(W x_j) / √k,  W of N(0, σ²),  W_queries = W_keys = W

Of normed vectors, |x|² = d, the expected score is σ² d √k times the cosine of the two: with two drawn matrices it is
zero for any two words. Trained attention looks so (Trockman & Kolter 2023, "Mimetic initialization of self-attention
layers", arXiv:2305.09828, whose W_queries W_keysᵀ is noise and a multiple of the identity); a small text is short of
what it takes to get there from nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OWN_SCORE = 4.0
"""Of a position with itself, before the softmax: e⁴ times what a word without relation gets."""


def keys_like_queries(
    draw: Callable[[int, int], Tensor], first: int, stop: int, head_dim: int, scale: float, width: int
) -> Tensor:
    """Rows ``first`` to ``stop`` of a matrix whose rows are, by turns, ``head_dim`` each of queries, keys and values.

    Args:
        draw: rows ``first`` to ``stop``, each a function of its number alone, of N(0, ``scale``²).
        first: of the rows wanted.
        stop: the one after the last.
        head_dim: numbers of a query.
        scale: values keep this, queries and keys get what makes a position's score with itself ``OWN_SCORE``.
        width: numbers of what is attended to, of which each is about 1.
    """
    begin = max(first - head_dim, 0)  # keys are read off the queries before them
    rows = draw(begin, stop)
    number = torch.arange(begin, stop)
    part = number // head_dim % 3
    keys = torch.nonzero((part == 1) & (number >= first))[:, 0]
    rows[keys] = rows[keys - head_dim]
    rows[part < 2] *= (OWN_SCORE / (width * head_dim**0.5)) ** 0.5 / scale
    return rows[first - begin :]
