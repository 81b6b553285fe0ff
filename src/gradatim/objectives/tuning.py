"""Fine-tuning: what is to be said of rows, and words besides where asked for.

    classify, choice   -log softmax(scores)[label]                      regress   (score - label)²
    tag                -log softmax(scores_i)[label_i], words i         span      (-log p(begin) - log p(end)) / 2

The loss is the mean over rows (tag: words), plus λ times the mean nats of words: of next tokens (Radford et al. 2018,
eq. 5), or, with a BERT, of those at blanks, which the task then has to do without.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gradatim.config.settings_task import TaskConfig
from gradatim.models.bert import BERT, padding_mask
from gradatim.models.gpt import GPT
from gradatim.models.layers.output import at_least_fp32
from gradatim.models.layers.task_head import TaskHead
from gradatim.objectives.objective import Objective
from gradatim.text.batches import IGNORE, Batch

Tuned = GPT | BERT


class Tuning(Objective):
    """Terms ``task`` and, with an auxiliary loss, ``lm`` (its weight included)."""

    def __init__(self, task: TaskConfig) -> None:
        self.task = task
        self.names = ("task", "lm") if task.lm_weight > 0 else ("task",)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows, or words, with a label; next tokens, or blanks."""
        assert batch.labels is not None
        known = batch.labels != IGNORE
        many = known[:, 0] if self.task.kind == "span" else known
        if self.task.kind == "regress":
            many = torch.ones_like(known)
        counts = {"task": int(many.sum())}
        return counts | ({"lm": int((batch.targets != IGNORE).sum())} if "lm" in self.names else {})

    def tokens(self, batch: Batch) -> int:
        """Every token that is read."""
        assert batch.lengths is not None
        return int(batch.lengths.sum())

    def enter(self, model: Tuned, batch: Batch) -> Float[Tensor, "b t d"]:
        """Ids, of BERT segments too; choices are rows of their own."""
        ids = batch.ids.flatten(0, -2)
        if not isinstance(model, BERT):
            return model.enter(ids)
        assert batch.segments is not None
        return model.enter(ids, batch.segments.flatten(0, -2))

    def run(self, model: Tuned, x: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b t d"]:
        """Padding is seen by nobody."""
        if not isinstance(model, BERT):
            return model.run(x)
        return model.run(x, padding_mask(_lengths(batch).clamp(min=1), batch.ids.shape[-1]))

    def scores(self, model: Tuned, hidden: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b *t o"]:
        """What the head says: ``[b o]`` of rows (choices side by side), ``[b t o]`` of tokens.

        Scores of what is not there, choices and places in padding, are minus infinity.
        """
        head, lengths = head_of(model), _lengths(batch)
        found: Tensor = at_least_fp32(head(head.whole(hidden), lengths))
        if self.task.kind == "choice":
            found = found.view(len(batch.ids), -1)
            return found.masked_fill(lengths.view(found.shape) == 0, -torch.inf)
        if self.task.kind == "span":
            beyond = torch.arange(batch.ids.shape[-1], device=found.device) >= lengths[:, None]
            return found.masked_fill(beyond[..., None], -torch.inf)
        return found

    def sums(self, model: Tuned, hidden: Float[Tensor, "b t d"], batch: Batch) -> dict[str, Tensor]:
        """Nats, or squares, of the task; nats of next tokens or at blanks, weighed."""
        assert batch.labels is not None
        sums = {"task": self._task(self.scores(model, hidden, batch), batch.labels)}
        if "lm" in self.names:
            sums["lm"] = self.task.lm_weight * self._words(head_of(model), hidden, batch)
        return sums

    def _words(self, head: TaskHead, hidden: Tensor, batch: Batch) -> Tensor:
        """Nats of next tokens, or at blanks."""
        targets = batch.targets.flatten(0, -2)
        if targets.shape[-1] == 0:  # rows that are judged, not learned from
            return at_least_fp32(hidden).new_zeros(())
        if batch.positions is None:
            return head.next_token_nll(head.whole(hidden), targets)
        return head.masked_nll(head.whole(hidden), batch.positions.flatten(0, -2), targets)

    def _task(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.task.kind == "regress":
            return (scores[:, 0] - labels.to(scores.dtype)).square().sum()
        if self.task.kind == "tag":
            return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")
        if self.task.kind == "span":
            ends = [F.cross_entropy(scores[..., end], labels[:, end], reduction="sum") for end in (0, 1)]
            return (ends[0] + ends[1]) / 2
        return F.cross_entropy(scores, labels, reduction="sum")


def head_of(model: Tuned) -> TaskHead:
    """The head that ``models/tuned.py`` has put in the place of the model's own."""
    return cast(TaskHead, model.head)


def _lengths(batch: Batch) -> Tensor:
    assert batch.lengths is not None
    return batch.lengths.flatten()
