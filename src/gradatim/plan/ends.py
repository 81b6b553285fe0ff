"""Bytes that our own embedding and head keep and need (see ``tensors``), and what a step holds besides. No torch.

The head computes the gradients of its inputs going forward, some rows of logits at a time (``models/layers/output``,
``parallel/vocabulary``), and keeps them in place of the logits.
"""

from __future__ import annotations

from functools import lru_cache

from gradatim.plan.architecture import Architecture
from gradatim.plan.tensors import FULL, LOW, Case, Ledger, Part, Walk

LOGITS, SCORES = 1 << 26, 1 << 21
"""Bytes of logits that the loss has at once, and takes through the softmax at once (``models/layers/output``)."""
ID_BYTES = 16
"""Of a position of the batch: its token and its target."""


@lru_cache(maxsize=4096)
def embedding_part(case: Case) -> Part:
    """The embedding. Its passes count all that it holds: nothing of its chunk is held before one or after the other."""
    walk, model = Walk(case), case.model
    stream, whole = walk.stream, FULL * case.tokens * model.width
    ledger = Ledger()
    ledger.take(whole)
    if case.tp > 1:
        ledger.pass_by(whole)  # other ranks' words made zero
        if case.split:
            ledger.take(stream, whole)
            ledger.free(2 * whole)
        else:
            ledger.pass_by(whole)
    if model.positions == "learned":
        ledger.take(stream)
    back = Ledger(stream)
    if case.split:
        back.take(whole, whole)  # the parts, and put together
        back.free(whole, stream)
    if case.tp > 1:
        back.take(whole)
        back.free(whole if case.split else stream)
    back.take(table_gradient(case))
    kept = 9.0 * case.tokens if case.tp > 1 else 0.0  # ids of this rank's words, and which are not
    return Part(kept + walk.masks, ledger.peak + walk.masks, back.peak)


def table_gradient(case: Case) -> float:
    """Gradient of the embedding, or of the output matrix."""
    return FULL * case.model.vocabulary * case.model.width / case.tp


def stream_bytes(case: Case) -> float:
    """The residual stream, which is what stages send each other."""
    return FULL * case.share * case.model.width


def rotation_bytes(model: Architecture) -> float:
    """Cosines and sines of rotary positions."""
    return FULL * model.context * model.head_dim if model.positions == "rotary" else 0.0


@lru_cache(maxsize=4096)
def head_part(case: Case) -> Part:
    """Norm, output matrix and loss. Its backward pass counts all that it holds, but for the matrix's gradient."""
    walk, model = Walk(case), case.model
    tokens = max(1, round(case.tokens * model.predicted))
    padded = model.vocabulary // case.tp
    words = min(model.vocab_size, padded)
    wide = case.element * (padded if case.tp > 1 else words)
    stream, number = walk.stream, FULL * case.share
    biased = model.predicted < 1
    if biased:  # BERT's: the whole sequence is put together, and some of its positions go through a layer
        read = FULL * tokens * model.width
        kept = stream + (walk.whole if case.split else 0.0)
        kept += (5.0 if case.exact else 5.5) * read  # picked, read, through layer, function and norm; its gradient
    else:
        kept = 2 * stream  # before the norm and after it
        kept += stream + number if case.rms else 2 * number
        kept += walk.whole if case.split else stream  # its gradient
    kept += table_gradient(case)
    rows = pieces(tokens, LOGITS / wide)
    some = pieces(rows, SCORES / wide)
    scores = FULL * some * words
    ledger = Ledger()
    ledger.take(0.0 if case.exact and not case.split else walk.whole)  # as products read it
    ledger.take(case.element * (rows + 1) * words)
    copied = not case.exact or biased  # else they are read, and in a cut vocabulary made gradients, where they lie
    if copied or case.tp == 1:
        ledger.take(((2 if some < rows else 1) + copied) * scores)
        ledger.free(scores if some < rows else 0.0)
    if case.exact:  # products are added to the gradients where they lie
        return Part(kept, ledger.peak, (6 if case.rms else 3) * stream)
    if not case.split:
        ledger.pass_by(LOW * rows * model.width)
    ledger.take(LOW * words * model.width)  # before it is added to the gradient
    return Part(kept, ledger.peak, (6 if case.rms else 3) * stream, LOW * padded * model.width)


def pieces(rows: int, most: float) -> int:
    """Rows of the largest of nearly equal pieces with at most so many rows."""
    count = -(-rows // max(1, int(most)))
    return -(-rows // count)
