"""Next-token prediction: the sum of -log p(target | everything before), over the targets that count.

An objective returns named terms, each a sum with the count it is to be divided by. Dividing is the loop's business,
once, by the count of the whole step: dividing per microbatch would weigh short ones more (a mean of means).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradatim.models.neural import NeuralLanguageModel
from gradatim.text.batches import IGNORE, Batch

Terms = dict[str, tuple[Tensor, int]]


def target_count(batch: Batch) -> int:
    """How many targets of a batch count, known before anything is computed."""
    return int((batch.targets != IGNORE).sum())


def next_token(model: NeuralLanguageModel, batch: Batch, carry: Any = None) -> tuple[Terms, Any]:
    """``{"nll": (sum in nats, targets)}`` of a batch, and the state to carry into the next one."""
    hidden, state = model.hidden(batch.ids, carry)
    return {"nll": (model.nll(hidden, batch.targets), target_count(batch))}, state
