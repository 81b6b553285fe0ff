"""Next-token prediction: the sum of -log p(target | everything before), over the targets that count."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from gradatim.models.neural import NeuralLanguageModel, NeuralModel
from gradatim.objectives.objective import Objective, Terms
from gradatim.text.batches import IGNORE, Batch


def target_count(batch: Batch) -> int:
    """How many targets of a batch count, known before anything is computed."""
    return int((batch.targets != IGNORE).sum())


def next_token(model: NeuralLanguageModel, batch: Batch, carry: Any = None) -> tuple[Terms, Any]:
    """``{"nll": (sum in nats, targets)}`` of a batch, and the state to carry into the next one."""
    hidden, state = model.hidden(batch.ids, carry)
    return {"nll": (model.nll(hidden, batch.targets), target_count(batch))}, state


class NextToken(Objective):
    """One term, ``nll``; a model that carries its state is handed the last one."""

    names = ("nll",)

    def counts(self, batch: Batch) -> dict[str, int]:
        """The targets."""
        return {"nll": target_count(batch)}

    def tokens(self, batch: Batch) -> int:
        """The targets."""
        return target_count(batch)

    def enter(self, model: NeuralLanguageModel, batch: Batch) -> Float[Tensor, "b t d"]:
        """Ids alone."""
        return model.enter(batch.ids)

    def run(self, model: NeuralLanguageModel, x: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b t d"]:
        """Without a mask: what follows is not seen anyway."""
        return model.run(x)

    def sums(self, model: NeuralLanguageModel, hidden: Float[Tensor, "b t d"], batch: Batch) -> dict[str, Tensor]:
        """Nats."""
        return {"nll": model.nll(hidden, batch.targets)}

    def __call__(self, model: NeuralModel, batch: Batch, carry: Any = None) -> tuple[Terms, Any]:
        """See ``next_token``."""
        assert isinstance(model, NeuralLanguageModel)
        return next_token(model, batch, carry)
