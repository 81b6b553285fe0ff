"""The head of a model that fills in blanks and judges pairs (Devlin et al. 2018, arXiv:1810.04805, section 3.1).

pair     softmax(P tanh(Q h₀ + q) + p)                     from the first position, [CLS]
words    softmax(E norm(gelu(T h_i + t)) + e)              at the blanks i only; E is the token embedding
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.models.layers.embedding import WholeSequence
from gradatim.models.layers.linear import Linear
from gradatim.models.layers.output import Output


class MaskedHead(nn.Module):
    """Pooler and pair classifier (where ``pairs`` are judged), transform and output matrix. ``activation`` is the
    feed-forward layers'.
    """

    def __init__(self, output: Output, width: int, norm: nn.Module, activation: str, pairs: bool = True) -> None:
        super().__init__()
        self.whole = WholeSequence()
        self.pooler = Linear(width, width) if pairs else None
        self.pair = Linear(width, 2) if pairs else None
        self.transform = Linear(width, width)
        self.norm = norm
        self.output = output
        self.approximate = "none" if activation == "gelu-erf" else "tanh"

    def forward(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The vectors that the output matrix reads."""
        return words(hidden, self.transform, self.norm, self.approximate)

    def pooled(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        """A vector of the whole row, from its first position."""
        assert self.pooler is not None
        return torch.tanh(self.pooler(hidden[:, 0]))

    def pair_logits(self, hidden: Float[Tensor, "b t d"]) -> Float[Tensor, "b two"]:
        """Scores of B following A (0) and of its not doing so (1)."""
        assert self.pair is not None
        y: Tensor = self.pair(self.pooled(hidden))
        return y

    def words_at(self, hidden: Float[Tensor, "b t d"], positions: Int[Tensor, "b p"]) -> Float[Tensor, "b p d"]:
        """The vectors that the output matrix reads, at some positions of each row."""
        y: Tensor = self(at(hidden, positions))
        return y


def at(hidden: Float[Tensor, "b t d"], positions: Int[Tensor, "b p"]) -> Float[Tensor, "b p d"]:
    """The vectors at some positions of each row."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def words(hidden: Float[Tensor, "*n d"], transform: Linear, norm: nn.Module, approximate: str) -> Float[Tensor, "*n d"]:
    """What the output matrix reads of vectors of the last block: norm(gelu(T h + t))."""
    y: Tensor = norm(F.gelu(transform(hidden), approximate=approximate))
    return y
