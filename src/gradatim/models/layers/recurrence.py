"""One recurrent layer unrolled in time, by torch's fused functions.

    rnn   h' = tanh(W x + b + U h + c)                                                        Elman 1990
    gru   z, r = σ(W x + b + U h + c);  n = tanh(W x + b + r ⊙ (U h + c));  h' = (1 - z) ⊙ n + z ⊙ h     Cho et al. 2014
    lstm  i, f, o = σ(W x + b + U h + c);  c' = f ⊙ c + i ⊙ tanh(W x + b + U h + c);  h' = o ⊙ tanh(c')
                                                                              Hochreiter and Schmidhuber 1997; Gers 2000

Each gate has its own rows of W, U, b and c, in the order (lstm) i f g o, (gru) r z n. The functions are called on
tensors, not through ``nn.LSTM``, because weight drop (Merity et al., 2018) uses other recurrent weights each step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.layers.dropout import dropout
from gradatim.shapes.recurrent import GATES


class Recurrence(nn.Module):
    """``kind`` is rnn, gru or lstm; the state is (h,), or (h, c) for the LSTM."""

    def __init__(self, kind: str, into: int, width: int, weight_drop: float = 0.0) -> None:
        super().__init__()
        rows = GATES[kind] * width
        self.kind, self.width, self.weight_drop = kind, width, weight_drop
        self.weight_ih = nn.Parameter(torch.empty(rows, into))
        self.weight_hh = nn.Parameter(torch.empty(rows, width))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows))

    def forward(
        self, x: Float[Tensor, "b t i"], before: tuple[Float[Tensor, "b d"], ...] | None = None
    ) -> tuple[Float[Tensor, "b t d"], tuple[Float[Tensor, "b d"], ...]]:
        """Hidden vectors at each time step, and the state after the last; zeros before the first token."""
        parts = 2 if self.kind == "lstm" else 1
        given = before or (x.new_zeros(x.shape[0], self.width),) * parts
        state = [part[None].to(x.dtype) for part in given]  # 1 b d
        recurrent = dropout(self.weight_hh, self.weight_drop, self.training)
        weights = [self.weight_ih, recurrent, self.bias_ih, self.bias_hh]
        if self.kind == "lstm":
            y, *after = torch.lstm(x, state, weights, True, 1, 0.0, self.training, False, True)
        else:
            function = torch.gru if self.kind == "gru" else torch.rnn_tanh
            y, *after = function(x, state[0], weights, True, 1, 0.0, self.training, False, True)
        return y, tuple(part[0] for part in after)
