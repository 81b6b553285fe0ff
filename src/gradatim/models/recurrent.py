"""Recurrent language models: embedding, recurrence unrolled in time, softmax.

    rnn   h' = tanh(W x + U h + b)                                                      Elman 1990; Mikolov et al. 2010
    gru   z, r = σ(…);  n = tanh(W x + r ⊙ (U h));  h' = (1 - z) ⊙ n + z ⊙ h               Cho et al. 2014
    lstm  i, f, o = σ(…);  c' = f ⊙ c + i ⊙ tanh(W x + U h + b);  h' = o ⊙ tanh(c')        Hochreiter and Schmidhuber 1997

The recurrences are torch's fused ones. Regularisation follows Gal and Ghahramani 2016 (locked dropout: one mask for all time
steps; whole words dropped from the embedding) and Merity et al. 2018 (weight drop: recurrent weights dropped). Tying the
output to the embedding is Press and Wolf 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from gradatim.config.settings import RecurrentConfig
from gradatim.models.layers.dropout import drop_words, locked_dropout
from gradatim.models.layers.init import Init
from gradatim.models.layers.output import Output
from gradatim.models.neural import NeuralLanguageModel

CELLS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What the recurrence carries: per layer the hidden vector and, for the LSTM, the cell; None before the first token."""

    batch: int
    layers: tuple[tuple[Float[Tensor, "b d"], ...], ...] | None = None

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows."""
        if self.layers is None:
            return type(self)(len(rows))
        return type(self)(len(rows), tuple(tuple(part[rows] for part in layer) for layer in self.layers))

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states, all before their first token or all after it."""
        batch = sum(state.batch for state in states)
        held = [state.layers for state in states if state.layers is not None]
        if not held:
            return cls(batch)
        if len(held) != len(states):
            raise ValueError("a state that has read nothing cannot join one that has")
        return cls(
            batch,
            tuple(
                tuple(torch.cat(parts) for parts in zip(*layer, strict=True))
                for layer in zip(*held, strict=True)
            ),
        )

    def detach(self) -> Self:
        """The same numbers without their history: where truncated back-propagation stops."""
        return self.map(Tensor.detach)

    def map(self, function: Any) -> Self:
        """Apply a function to every tensor."""
        if self.layers is None:
            return self
        return type(self)(self.batch, tuple(tuple(function(part) for part in layer) for layer in self.layers))


class RecurrentLM(NeuralLanguageModel):
    """Plain RNN, GRU or LSTM over token embeddings."""

    context = None
    carries_state = True

    def __init__(self, config: RecurrentConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        width = config.d_embedding or config.d_model
        self.embed = nn.Embedding(vocab_size, width)
        widths = [width] + [config.d_model] * config.n_layers
        cell = CELLS[config.kind]
        self.blocks = nn.ModuleList(
            cell(into, out, batch_first=True) for into, out in zip(widths, widths[1:])
        )
        projects = config.tied and width != config.d_model
        self.project = nn.Linear(config.d_model, width, bias=False) if projects else None
        weight = self.embed.weight if config.tied else nn.Parameter(torch.empty(vocab_size, config.d_model))
        self.output = Output(weight, vocab_size, bias=True)

    def initial(self, name: str) -> Init:
        """Matrices U(±1/√d_model) as torch's cells, embedding N(0, 0.1²), LSTM forget biases 1 in sum, other biases 0."""
        if name == "embed.weight":
            return Init("normal", 0.1 if not self.config.tied else 0.05)
        if name == "output.bias" or (".bias" in name and self.config.kind != "lstm"):
            return Init("constant", 0.0)
        return Init("uniform", self.config.d_model**-0.5)

    def start(self, batch: int, source: Any = None) -> RecurrentState:
        """Zeros, once the first token is read."""
        return RecurrentState(batch)

    def hidden(
        self, ids: Int[Tensor, "b t"], state: RecurrentState | None = None
    ) -> tuple[Float[Tensor, "b t d"], RecurrentState]:
        """What the output layer reads at each position, and the state after the last."""
        config = self.config
        drop = locked_dropout if config.locked_dropout else F.dropout
        weight = drop_words(self.embed.weight, config.embedding_dropout, self.training)
        x = drop(F.embedding(ids, weight), config.dropout, self.training)
        after = []
        for index, block in enumerate(self.blocks):
            before = None if state is None or state.layers is None else state.layers[index]
            x, layer = self._run(block, x, before)
            after.append(layer)
            x = drop(x, config.dropout, self.training)
        if self.project is not None:
            x = self.project(x)
        return x, RecurrentState(ids.shape[0], tuple(after))

    def _run(
        self, block: nn.Module, x: Float[Tensor, "b t d"], before: tuple[Tensor, ...] | None
    ) -> tuple[Float[Tensor, "b t d"], tuple[Tensor, ...]]:
        """One layer over time; torch keeps the state as ``[1, b, d]``."""
        given: Any = None
        if before is not None:
            parts = tuple(part[None].to(x.dtype) for part in before)
            given = parts if len(parts) == 2 else parts[0]
        if self.training and self.config.weight_drop:
            weights = dict(block.named_parameters())
            weights["weight_hh_l0"] = F.dropout(weights["weight_hh_l0"], self.config.weight_drop)
            y, last = functional_call(block, weights, (x, given))
        else:
            y, last = block(x, given)
        return y, tuple(part[0] for part in (last if isinstance(last, tuple) else (last,)))
