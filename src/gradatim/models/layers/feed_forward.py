"""The position-wise half of a Transformer block: two matrices around a non-linearity.

relu       down(relu(up(x)))              Vaswani et al. 2017
gelu       down(gelu(up(x)))              Hendrycks and Gimpel 2016, the tanh form that GPT-2 uses
gelu-erf   down(gelu(up(x)))              the same as defined, by the error function, which BERT uses
swiglu     down(silu(gate(x)) ⊙ up(x))    Shazeer 2020
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.linear import Linear


class FeedForward(nn.Module):
    """``width`` to ``inner`` and back, each position by itself."""

    def __init__(self, width: int, inner: int, activation: str, *, bias: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = Linear(width, inner, bias=bias) if activation == "swiglu" else None
        self.up = Linear(width, inner, bias=bias)
        self.down = Linear(inner, width, bias=bias)
        self.dropout, self.rectified = dropout, activation == "relu"
        self.approximate = "none" if activation == "gelu-erf" else "tanh"
        self.project: Callable[[Tensor, Sequence[nn.Module]], Sequence[Tensor]] = each
        """How several layers of one input are computed, for whoever can do that better together."""

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each position by itself."""
        if self.gate is None:
            up = self.up(x)
            inner = F.relu(up) if self.rectified else F.gelu(up, approximate=self.approximate)
        else:
            gate, up = self.project(x, (self.gate, self.up))
            inner = F.silu(gate) * up
        y: Tensor = self.down(inner)
        return dropout(y, self.dropout, self.training)


def each(x: Float[Tensor, "b t d"], layers: Sequence[nn.Module]) -> list[Float[Tensor, "b t f"]]:
    """One after the other."""
    return [layer(x) for layer in layers]
