"""What an objective is: how a batch is fed to a model, and the named sums that come out.

Each term is a sum with the count it is to be divided by. Dividing is the engine's business, once, by the count of the
whole step: dividing per microbatch would weigh short ones more (a mean of means). The three functions between batch and
sums are those at which a pipeline cuts the model, so an objective is the same whole or cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gradatim.models.neural import NeuralModel
from gradatim.text.batches import Batch

Terms = dict[str, tuple[Tensor, int]]


class Objective(ABC):
    """What is learned from a batch."""

    names: tuple[str, ...]
    """Of the terms; the loss is the sum of their means."""

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """What each term's sum is over, known before anything is computed."""

    @abstractmethod
    def tokens(self, batch: Batch) -> int:
        """Tokens that the batch makes the model work on, padding left out."""

    @abstractmethod
    def enter(self, model: Any, batch: Batch) -> Float[Tensor, "b t d"]:
        """What the first block reads."""

    @abstractmethod
    def run(self, model: Any, x: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b t d"]:
        """The blocks that the model holds."""

    @abstractmethod
    def sums(self, model: Any, hidden: Float[Tensor, "b t d"], batch: Batch) -> dict[str, Tensor]:
        """Each term's sum, from the vectors after the last block."""

    def __call__(self, model: NeuralModel, batch: Batch, carry: Any = None) -> tuple[Terms, Any]:
        """The terms of a batch under a whole model, and the state to carry into the next one."""
        sums = self.sums(model, self.run(model, self.enter(model, batch), batch), batch)
        counts = self.counts(batch)
        return {name: (sums[name], counts[name]) for name in self.names}, None
