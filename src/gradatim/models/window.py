"""Feed-forward language model over a fixed window (Bengio, Ducharme, Vincent and Jauvin, 2003).

    x = [C(w_{i-n+1}); …; C(w_i)]        y = tanh(H x + d)        p(next) = softmax(U y + b)

The embeddings of the last n tokens are concatenated and pass one hidden layer. For a whole text that is a convolution over
time of width n; before the text begins the window is filled with zero vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.config.settings import WindowConfig
from gradatim.models.layers.init import Init
from gradatim.models.layers.output import Output
from gradatim.models.neural import NeuralLanguageModel


@dataclass(frozen=True, slots=True)
class WindowState:
    """The embeddings of the last n-1 tokens, zeros before the text."""

    recent: Float[Tensor, "b past d"]

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.recent.shape[0]

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows."""
        return type(self)(self.recent[rows])

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states."""
        return cls(torch.cat([state.recent for state in states]))


class WindowLM(NeuralLanguageModel):
    """Concatenated embeddings, tanh, softmax."""

    context = None

    def __init__(self, config: WindowConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed = nn.Embedding(vocab_size, config.d_model)
        out = config.d_model if config.tied else config.d_ff
        self.blocks = nn.ModuleList([nn.Linear(config.window * config.d_model, config.d_ff)])
        # A tied output matrix is as wide as an embedding, so the hidden layer is projected down to it.
        self.project = nn.Linear(config.d_ff, out, bias=False) if config.tied else None
        weight = self.embed.weight if config.tied else nn.Parameter(torch.empty(vocab_size, out))
        self.output = Output(weight, vocab_size, bias=True)

    def initial(self, name: str) -> Init:
        """Matrices N(0, 1/inputs), embedding N(0, 0.1²) (0.05² where it is also the output matrix), biases 0."""
        if name.endswith("bias"):
            return Init("constant", 0.0)
        if name == "embed.weight":
            return Init("normal", 0.05 if self.config.tied else 0.1)
        inputs = self.config.window * self.config.d_model if name.startswith("blocks") else self.config.d_ff
        return Init("normal", inputs**-0.5)

    def start(self, batch: int, source: Any = None) -> WindowState:
        """A window of zeros."""
        return WindowState(self.embed.weight.new_zeros(batch, self.config.window - 1, self.config.d_model))

    def hidden(
        self, ids: Int[Tensor, "b t"], state: WindowState | None = None
    ) -> tuple[Float[Tensor, "b t d"], WindowState]:
        """What the output layer reads at each position, and the window after the last."""
        state = self.start(ids.shape[0]) if state is None else state
        x = torch.cat([state.recent, self.embed(ids)], dim=1)  # b past+t d
        windows = x.unfold(1, self.config.window, 1).transpose(2, 3).flatten(2)  # b t n·d, oldest token first
        y = torch.tanh(self.blocks[0](windows))
        y = F.dropout(y, self.config.dropout, self.training)
        if self.project is not None:
            y = self.project(y)
        return y, WindowState(x[:, x.shape[1] - self.config.window + 1 :])
