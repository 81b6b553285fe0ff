"""BERT's two tasks (Devlin et al. 2018, section 3.1): the words at the blanks, and whether B belongs after A.

    loss = Σ -log p(word | row) / blanks  +  Σ -log p(label | row) / pairs

Each sum has its own count; rows with many blanks weigh no less for that.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradatim.models.bert import BERT, padding_mask
from gradatim.objectives.objective import Objective
from gradatim.text.batches import IGNORE, Batch


class Masked(Objective):
    """Terms ``words`` and, where pairs are judged, ``pairs``."""

    def __init__(self, pairs: bool) -> None:
        self.names = ("words", "pairs") if pairs else ("words",)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Blanks, and rows with a label."""
        counts = {"words": int((batch.targets != IGNORE).sum())}
        return counts if batch.labels is None else counts | {"pairs": int((batch.labels != IGNORE).sum())}

    def tokens(self, batch: Batch) -> int:
        """Every token of the rows, for all are read."""
        return batch.ids.numel() if batch.lengths is None else int(batch.lengths.sum())

    def enter(self, model: BERT, batch: Batch) -> Float[Tensor, "b t d"]:
        """Ids and segments."""
        return model.enter(batch.ids, batch.segments)

    def run(self, model: BERT, x: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b t d"]:
        """Padding is seen by nobody."""
        return model.run(x, padding_mask(batch.lengths, batch.ids.shape[1]))

    def sums(self, model: BERT, hidden: Float[Tensor, "b t d"], batch: Batch) -> dict[str, Tensor]:
        """Nats of words and of labels."""
        assert batch.positions is not None
        hidden = model.head.whole(hidden)
        sums = {"words": model.masked_nll(hidden, batch.positions, batch.targets)}
        if "pairs" in self.names:
            assert batch.labels is not None
            sums["pairs"] = model.pair_nll(hidden, batch.labels)
        return sums
