"""Translation: the sum of -log p(target | source, targets before) over the target words, smoothed where asked for."""

from __future__ import annotations

from gradatim.models.translator import Translator
from gradatim.objectives.next_token import Terms
from gradatim.text.batches import Batch


def translation(model: Translator, batch: Batch) -> Terms:
    """``{"nll": (sum in nats, predictions)}`` of a batch of pairs."""
    assert batch.source is not None
    loss = model.terms(batch.source, batch.ids, batch.targets)
    return {"nll": (loss, model.counted(batch.source, batch.targets))}
