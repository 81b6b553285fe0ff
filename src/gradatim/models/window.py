"""Feed-forward language model over a fixed window (Bengio, Ducharme, Vincent and Jauvin, 2003).

    x = [C(w_{i-n+1}); …; C(w_i)]        y = tanh(H x + d)        p(next) = softmax(U y + b)

The embeddings of the last n tokens are concatenated and pass one hidden layer. Before a text begins the window is
filled with one more word, whose vector is learned like any other's and which is never predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.config.settings import WindowConfig
from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.init import Init
from gradatim.models.layers.output import Head, Output
from gradatim.models.neural import NeuralLanguageModel


@dataclass(frozen=True, slots=True)
class WindowState:
    """The last n-1 ids; ``vocab_size`` stands for what was before the text."""

    recent: Int[Tensor, "b past"]

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


class Hidden(nn.Module):
    """``tanh(H x + d)`` over concatenated embeddings."""

    def __init__(self, into: int, out: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(into, out)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "b t nd"]) -> Float[Tensor, "b t f"]:
        """Each window by itself."""
        return dropout(torch.tanh(self.hidden(x)), self.dropout, self.training)


class WindowLM(NeuralLanguageModel):
    """Concatenated embeddings, tanh, softmax."""

    context = None

    def __init__(self, config: WindowConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed = Embedding(vocab_size + 1, config.d_model)
        self.blocks = nn.ModuleList([Hidden(config.window * config.d_model, config.d_ff, config.dropout)])
        # A tied output matrix is as wide as an embedding, so the hidden layer is projected down to it.
        out = config.d_model if config.tied else config.d_ff
        projection = nn.Linear(config.d_ff, out, bias=False) if config.tied else None
        weight = self.embed.tokens.weight if config.tied else nn.Parameter(torch.empty(vocab_size, out))
        self.head = Head(Output(weight, vocab_size, bias=True), projection=projection)

    def initial(self, name: str) -> Init:
        """Matrices N(0, 1/inputs), embedding N(0, 0.1²) (0.05² where it is also the output matrix), biases 0."""
        if name.endswith("bias"):
            return Init("constant", 0.0)
        if name == "embed.tokens.weight":
            return Init("normal", 0.05 if self.config.tied else 0.1)
        inputs = self.config.window * self.config.d_model if name.startswith("blocks") else self.config.d_ff
        return Init("normal", inputs**-0.5)

    def start(self, batch: int, source: Any = None) -> WindowState:
        """A window of what stands before a text."""
        device = self.head.output.weight.device
        return WindowState(torch.full((batch, self.config.window - 1), self.vocab_size, device=device))

    def hidden(
        self, ids: Int[Tensor, "b t"], state: WindowState | None = None
    ) -> tuple[Float[Tensor, "b t f"], WindowState]:
        """The hidden layer at each position, and the window after the last."""
        x, state = self._read(ids, state)
        return self.run(x), state

    def enter(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t nd"]:
        """The concatenated window before each prediction."""
        return self._read(ids, None)[0]

    def run(self, x: Float[Tensor, "b t nd"]) -> Float[Tensor, "b t f"]:
        """The hidden layer, if held."""
        for block in self.blocks:
            x = block(x)
        return x

    def _read(self, ids: Int[Tensor, "b t"], state: WindowState | None) -> tuple[Float[Tensor, "b t nd"], WindowState]:
        state = self.start(ids.shape[0]) if state is None else state
        known = torch.cat([state.recent, ids], dim=1)  # b past+t
        windows = known.unfold(1, self.config.window, 1).flatten(1)  # b t·n, oldest token of each window first
        x = self.embed(windows).view(*ids.shape, -1)  # b t n·d
        return x, WindowState(known[:, ids.shape[1] :])
