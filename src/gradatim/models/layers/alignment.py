"""Attention of a recurrent decoder: which source positions its state s is to look at.

    score_j   additive   v · tanh(W s + U h_j)          Bahdanau, Cho and Bengio, 2015
              dot        s · h_j                        Luong, Pham and Manning, 2015
              general    s · W h_j                      the same
    a = softmax over the positions that hold tokens;   context = Σ_j a_j h_j

With coverage c_j, the attention position j has had so far, additive scores add a vector times c_j inside the tanh and
the others a number times c_j (Tu et al., 2016): what has been translated need not be translated again.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Alignment(nn.Module):
    """``kind`` is additive, dot or general; states and memory are ``width`` wide."""

    def __init__(self, kind: str, width: int, coverage: bool) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(width, width, bias=False) if kind == "additive" else None
        self.key = nn.Linear(width, width, bias=kind == "additive") if kind != "dot" else None
        self.score = nn.Parameter(torch.empty(width)) if kind == "additive" else None
        self.covered = nn.Parameter(torch.empty(width if kind == "additive" else 1)) if coverage else None

    def keys(self, encoded: Float[Tensor, "n s d"]) -> Float[Tensor, "n s d"]:
        """What a score needs of the memory alone: U h, h, or W h."""
        found: Tensor = encoded if self.key is None else self.key(encoded)
        return found

    def forward(
        self,
        states: Float[Tensor, "b t d"],
        keys: Float[Tensor, "n s d"],
        encoded: Float[Tensor, "n s d"],
        real: Bool[Tensor, "n s"],
        coverage: Float[Tensor, "b s"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t s"]]:
        """Contexts and weights of each state; each of the n sentences serves b/n rows, side by side."""
        (b, t, d), (n, s, _) = states.shape, keys.shape
        asked = states.reshape(n, b // n * t, d)
        seen = None if coverage is None else coverage[:, None].expand(b, t, s).reshape(n, b // n * t, s)
        if self.kind == "additive":
            assert self.query is not None and self.score is not None
            inner = self.query(asked)[:, :, None] + keys[:, None]  # n (b/n t) s d
            if seen is not None and self.covered is not None:
                inner = inner + seen[..., None] * self.covered
            scores = inner.tanh() @ self.score
        else:
            scores = asked @ keys.transpose(1, 2)
            if seen is not None and self.covered is not None:
                scores = scores + seen * self.covered
        weights = scores.masked_fill(~real[:, None], -torch.inf).softmax(-1)
        context = weights @ encoded
        return context.view(b, t, d), weights.view(b, t, s)
