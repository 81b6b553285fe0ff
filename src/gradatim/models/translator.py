"""What all translators share: language models of the target sentence, given a source sentence.

    log p(target | source) = Σ_i log p(target_i | target_<i, source)

A translator answers the one protocol (``protocol.py``): ``start(batch, source)`` reads the source, and from there it is
a language model whose documents are translations. Training reads ``read(source, ids)`` instead, which builds a graph
and no state. Label smoothing is part of the loss and never of what is reported as likelihood.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.models.neural import NeuralLanguageModel
from gradatim.text.batches import Source


class Translator(NeuralLanguageModel):
    """Base of the one-model, recurrent and Transformer translators."""

    label_smoothing: float = 0.0
    """Share of each target's probability that training spreads evenly over the vocabulary."""
    source_vocab_size: int
    """Number of ids that can occur in a source."""
    equal_sources: ClassVar[bool] = False
    """Whether the sources of one ``start`` must be equally long."""
    attention_names: tuple[str, ...] = ()
    """What each attention that a state shows is of, in the order of ``state.attention``'s second dimension."""

    @abstractmethod
    def read(self, source: Source, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Vectors before the head at each position of the targets, each given its whole source: training's call."""

    @abstractmethod
    def start(self, batch: int, source: Source | None = None, attention: bool = False) -> Any:
        """The state after reading the sources and before any target.

        With ``attention``, states show in ``.attention`` ``[rows, names, t, s]`` where the model looked while it read
        its last t tokens.
        """

    def run(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Blocks without a source are of no use."""
        raise ValueError(f"{type(self).__name__} is not cut into stages")

    def terms(self, source: Source, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """What training adds up: the loss in nats over the targets that are not -100, smoothed as the config says."""
        return self.smoothed(self.head(self.read(source, ids)), targets)

    def smoothed(self, hidden: Float[Tensor, "b t e"], targets: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Cross-entropy against (1 - ε) of the target and ε of all words evenly (Szegedy et al., 2016)."""
        output = self.head.output
        loss = output.nll(hidden, targets)
        if not self.label_smoothing:
            return loss
        return loss + self.label_smoothing * output.spread(hidden, targets)


def needs_source(source: Source | None) -> Source:
    """The source, or ValueError: a translator without one has nothing to say."""
    if source is None:
        raise ValueError("a translator starts from source sentences")
    return source


def real_positions(source: Source) -> Tensor:
    """``[b s]``: which positions of the sources hold tokens."""
    return torch.arange(source.ids.shape[1], device=source.ids.device) < source.lengths[:, None]
