"""How well a model fills in blanks and judges pairs, on rows that are always the same for a text.

These are BERT's two pretraining tasks on text it has not seen. Nats per blank compare between models of one tokenizer
and one choice of blanks; beside them stands the entropy of the blanks' words by their frequencies in the same places,
what could be known of them without reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gradatim.models.bert import BERT, padding_mask
from gradatim.text.batches import IGNORE
from gradatim.text.masked_rows import MaskedRows


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedEvaluation:
    """What ``gradatim evaluate`` answers of a BERT; numbers that do not exist are None."""

    rows: int
    """Rows read."""
    blanks: int
    """Words to be filled in."""
    nats_per_blank: float
    perplexity: float
    accuracy: float
    """Share of the blanks whose word was thought likeliest."""
    unigram_nats: float
    """Entropy of the words at the blanks, by how often each stands there."""
    pairs: int
    """Pairs judged."""
    pair_nats: float | None
    pair_accuracy: float | None
    """Share of the pairs judged rightly; half of them are of either kind."""


@torch.no_grad()
def evaluate_masked(model: BERT, rows: MaskedRows, most: int | None = None) -> MaskedEvaluation:
    """Judge a model on (the first ``most`` tokens of) a text's rows."""
    where = next(model.parameters()).device
    words = torch.zeros(model.vocab_size, dtype=torch.float64)
    nats = pair_nats = 0.0
    blanks = right = pairs = pairs_right = read = 0
    for made in rows.every(most):
        batch = made.map(lambda tensor: tensor.to(where))
        assert batch.positions is not None
        mask = padding_mask(batch.lengths, batch.ids.shape[1])
        hidden = model.head.whole(model.run(model.enter(batch.ids, batch.segments), mask))
        log_probs = model.head.output.log_probs(model.head.words_at(hidden, batch.positions))
        known = batch.targets != IGNORE
        wanted = batch.targets[known]
        nats -= float(log_probs[known].gather(1, wanted[:, None]).double().sum())
        right += int((log_probs[known].argmax(1) == wanted).sum())
        blanks += len(wanted)
        words += torch.bincount(wanted.cpu(), minlength=model.vocab_size)
        read += len(batch.ids)
        if batch.labels is not None:
            logits = model.head.pair_logits(hidden)
            pair_nats += float(model.pair_nll(hidden, batch.labels))
            pairs_right += int((logits.argmax(1) == batch.labels).sum())
            pairs += len(batch.labels)
    shares = words[words > 0] / words.sum()
    return MaskedEvaluation(
        rows=read, blanks=blanks, nats_per_blank=nats / blanks, perplexity=math.exp(min(nats / blanks, 700.0)),
        accuracy=right / blanks, unigram_nats=-float((shares * shares.log()).sum()) + 0.0, pairs=pairs,
        pair_nats=pair_nats / pairs if pairs else None, pair_accuracy=pairs_right / pairs if pairs else None,
    )  # fmt: skip
