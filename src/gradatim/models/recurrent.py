"""Recurrent language models: embedding, recurrence unrolled in time, softmax (Mikolov et al., 2010).

Regularisation follows Gal and Ghahramani 2016 (locked dropout: one mask for all time steps; whole words dropped from
the embedding) and Merity et al. 2018 (weight drop: recurrent weights dropped). Tying the output to the embedding,
through a projection where the widths differ, is Press and Wolf 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.config.settings import RecurrentConfig
from gradatim.models.layers.dropout import dropout, locked_dropout
from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.init import Init
from gradatim.models.layers.output import Head, Output
from gradatim.models.layers.recurrence import Recurrence
from gradatim.models.neural import NeuralLanguageModel


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What the recurrence carries: per layer the hidden vector and the LSTM's cell; None before the first token."""

    batch: int
    layers: tuple[tuple[Float[Tensor, "b d"], ...], ...] | None = None

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows."""
        return type(self)(len(rows)) if self.layers is None else self.map(lambda part: part[rows], batch=len(rows))

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states, all before their first token or all after it."""
        batch = sum(state.batch for state in states)
        held = [state.layers for state in states if state.layers is not None]
        if not held:
            return cls(batch)
        if len(held) != len(states):
            raise ValueError("a state that has read nothing cannot join one that has")
        layers = zip(*held, strict=True)
        return cls(batch, tuple(tuple(torch.cat(parts) for parts in zip(*layer, strict=True)) for layer in layers))

    def detach(self) -> Self:
        """The same numbers without their history: where truncated back-propagation stops."""
        return self.map(Tensor.detach)

    def map(self, function: Callable[[Tensor], Tensor], batch: int | None = None) -> Self:
        """Apply a function to every tensor."""
        batch = self.batch if batch is None else batch
        if self.layers is None:
            return type(self)(batch)
        return type(self)(batch, tuple(tuple(function(part) for part in layer) for layer in self.layers))


class RecurrentLM(NeuralLanguageModel):
    """Plain RNN, GRU or LSTM over token embeddings."""

    context = None
    carries_state = True

    def __init__(self, config: RecurrentConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        d, width = config.d_model, config.d_embedding or config.d_model
        self.embed = Embedding(vocab_size, width, word_dropout=config.embedding_dropout)
        self.blocks = nn.ModuleList(
            Recurrence(config.kind, d if layer else width, d, config.weight_drop) for layer in range(config.n_layers)
        )
        projection = nn.Linear(d, width, bias=False) if config.tied and width != d else None
        weight = self.embed.tokens.weight if config.tied else nn.Parameter(torch.empty(vocab_size, d))
        self.head = Head(Output(weight, vocab_size, bias=True), projection=projection)

    def initial(self, name: str) -> Init:
        """Matrices U(±1/√d_model); embedding N(0, 0.1²), 0.05² where tied; biases 0, the LSTM's forget gate 1.

        That bias lets gradients pass through time from the start (Jozefowicz et al., 2015).
        """
        d = self.config.d_model
        if name.endswith("bias_ih") and self.config.kind == "lstm":
            return Init("constant", 0.0, fixed=(d, 2 * d, 1.0))
        if ".bias" in name:
            return Init("constant", 0.0)
        if name == "embed.tokens.weight":
            return Init("normal", 0.05 if self.config.tied else 0.1)
        return Init("uniform", d**-0.5)

    def start(self, batch: int, source: Any = None) -> RecurrentState:
        """Zeros, once the first token is read."""
        return RecurrentState(batch)

    def hidden(
        self, ids: Int[Tensor, "b t"], state: RecurrentState | None = None
    ) -> tuple[Float[Tensor, "b t d"], RecurrentState]:
        """The last layer's hidden vectors, and the state after the last position."""
        return self._unroll(self.enter(ids), state)

    def enter(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Token vectors, with dropout."""
        return self._drop(self.embed(ids))

    def run(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The layers, from a state that has read nothing."""
        return self._unroll(x, None)[0]

    def _unroll(
        self, x: Float[Tensor, "b t d"], state: RecurrentState | None
    ) -> tuple[Float[Tensor, "b t d"], RecurrentState]:
        after = []
        for index, block in enumerate(self.blocks):
            x, layer = block(x, None if state is None or state.layers is None else state.layers[index])
            x = self._drop(x)
            after.append(layer)
        return x, RecurrentState(x.shape[0], tuple(after))

    def _drop(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        drop = locked_dropout if self.config.locked_dropout else dropout
        return drop(x, self.config.dropout, self.training)
