"""Translation: the sum of -log p(target | source, targets before) over the target words, smoothed where asked for.

Gradients are taken of the smoothed loss; without gradients the sum is the likelihood that runs are judged by.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.models.neural import NeuralModel
from gradatim.models.translator import Translator
from gradatim.objectives.next_token import target_count
from gradatim.objectives.objective import Objective, Terms
from gradatim.text.batches import Batch


class Translation(Objective):
    """One term, ``nll``.

    Args:
        source_too: whether the words of the source are learned as well (``loss_on`` all).
    """

    names = ("nll",)

    def __init__(self, source_too: bool) -> None:
        self.source_too = source_too

    def counts(self, batch: Batch) -> dict[str, int]:
        """Predictions that training adds up."""
        assert batch.source is not None
        own = int(batch.source.lengths.sum()) if self.source_too else 0
        return {"nll": own + target_count(batch)}

    def tokens(self, batch: Batch) -> int:
        """The predictions."""
        return self.counts(batch)["nll"]

    def enter(self, model: Translator, batch: Batch) -> Float[Tensor, "b t d"]:
        """Everything before the head: a translator is one stage."""
        assert batch.source is not None
        return model.read(batch.source, batch.ids)

    def run(self, model: Translator, x: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b t d"]:
        """Nothing is left to do."""
        return x

    def sums(self, model: Translator, hidden: Float[Tensor, "b t d"], batch: Batch) -> dict[str, Tensor]:
        """Nats, of the targets."""
        if torch.is_grad_enabled():
            return {"nll": model.smoothed(model.head(hidden), batch.targets)}
        return {"nll": model.nll(hidden, batch.targets)}

    def __call__(self, model: NeuralModel, batch: Batch, carry: Any = None) -> tuple[Terms, Any]:
        """The term under a whole model, in training with the source's words where those are learned."""
        assert isinstance(model, Translator) and batch.source is not None
        if torch.is_grad_enabled():
            loss = model.terms(batch.source, batch.ids, batch.targets)
            return {"nll": (loss, self.counts(batch)["nll"])}, None
        return {"nll": (self.sums(model, self.enter(model, batch), batch)["nll"], target_count(batch))}, None
