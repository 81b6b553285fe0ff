"""From counts to probabilities: maximum likelihood, additive, and interpolated modified Kneser-Ney.

Kneser-Ney (Chen and Goodman 1998, section 3) takes a discount D off every count c and gives what it took to shorter
contexts,

    p(w | u) = max(c(uw) - D(c(uw)), 0) / c(u·) + γ(u) p(w | u'),        γ(u) = Σ_i D_i N_i(u·) / c(u·)

with D_1, D_2, D_3+ from the counts of counts of each order. Below the highest order c counts *different words before* a
sequence, not occurrences, since a short context is asked only when the long one failed. Details follow KenLM's lmplz
(Heafield et al. 2013): sequences that open a document keep their occurrences (nothing stands before them), ``<s>``
itself is no prediction, and the last shorter context is uniform over the vocabulary, the unknown word included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradatim.config.settings import NgramConfig
from gradatim.errors import DataError, Problem
from gradatim.models.ngram.counts import Integers, OrderCounts

Floats = NDArray[np.float64]
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of lmplz --discount_fallback."""


def smooth(config: NgramConfig, orders: list[OrderCounts], vocab_size: int) -> tuple[list[Floats], list[Floats]]:
    """Natural-log probability of every k-gram and log weight of every k-gram as a context, order by order.

    Raises:
        DataError: Kneser-Ney's discounts do not exist for these counts, and the config allows no fallback.
    """
    if config.smoothing == "kneser-ney":
        return _kneser_ney(config, orders, vocab_size)
    if config.smoothing == "additive":
        return _relative(orders, vocab_size, config.additive_count)
    return _relative(orders, vocab_size, 0.0)


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(values)


def _relative(orders: list[OrderCounts], vocab_size: int, add: float) -> tuple[list[Floats], list[Floats]]:
    """(c + add) / (c(u·) + add V). A context's weight is what one unseen word gets there, as a share of uniform."""
    probabilities, weights = [], []
    for k, counts in enumerate(orders):
        size = 1 if k == 0 else len(orders[k - 1].word)
        total = np.bincount(counts.context, counts.count, minlength=size) + add * vocab_size
        # No document, no count: an empty text has been refused long before.
        probabilities.append(_log((counts.count + add) / total[counts.context]))
        if k:
            has_children = np.bincount(counts.context, minlength=size) > 0
            weight = np.divide(add * vocab_size, total, out=np.ones(size), where=has_children)
            weights.append(_log(weight))
    return probabilities, weights


def _kneser_ney(config: NgramConfig, orders: list[OrderCounts], vocab_size: int) -> tuple[list[Floats], list[Floats]]:
    adjusted = [_adjusted(orders, k) for k in range(len(orders))]
    discounts = _discounts(adjusted, config.discount_fallback)
    probabilities: list[Floats] = []
    weights: list[Floats] = []
    for k, (counts, count) in enumerate(zip(orders, adjusted, strict=True)):
        size = 1 if k == 0 else len(orders[k - 1].word)
        taken = discounts[k][np.minimum(count, 3)]
        total = np.bincount(counts.context, count, minlength=size)
        held_back = np.bincount(counts.context, taken, minlength=size)
        weight = np.divide(held_back, total, out=np.ones(size), where=total > 0)
        shorter: Floats | float = 1.0 / vocab_size if k == 0 else np.exp(probabilities[k - 1][counts.suffix])
        own = np.divide(count - taken, total[counts.context], out=np.zeros(len(count)), where=total[counts.context] > 0)
        probabilities.append(_log(own + weight[counts.context] * shorter))
        if k:
            weights.append(_log(weight))
    return probabilities, weights


def _adjusted(orders: list[OrderCounts], k: int) -> Integers:
    """Occurrences for the highest order and for what opens a document, else the number of different words before."""
    counts = orders[k]
    if k == len(orders) - 1:
        return counts.count.copy()
    before = np.bincount(orders[k + 1].suffix, minlength=len(counts.word))
    return np.where(counts.opens, counts.count, before)


def _discounts(adjusted: list[Integers], fallback: bool) -> list[Floats]:
    """Per order what is taken from counts 0, 1, 2 and 3 or more.

    Raises:
        DataError: saying which order is the first without discounts, and why.
    """
    found: list[Floats] = []
    lacking: list[int] = []
    why = ""
    for k, count in enumerate(adjusted, start=1):
        n = np.bincount(np.minimum(count, 5), minlength=6)[:5].astype(float)  # n[c]: how many sequences occur c times
        wrong = ""
        values = np.zeros(4)
        if (n[1:4] == 0).any():
            wrong = f"no {k}-gram has adjusted count {int(np.flatnonzero(n[1:4] == 0)[0]) + 1}"
        else:
            share = n[1] / (n[1] + 2 * n[2])
            values[1:] = [c - (c + 1) * share * n[c + 1] / n[c] for c in (1, 2, 3)]
            if (values[1:] < 0).any() or (values[1:] > (1, 2, 3)).any():
                wrong = f"the discounts of {k}-grams would be " + ", ".join(f"{value:.3f}" for value in values[1:])
        if wrong and fallback:
            values[1:] = FALLBACK
        elif wrong:
            lacking.append(k)
            why = why or wrong
        found.append(values)
    if lacking:
        others = {1: "", 2: " and a longer order"}.get(len(lacking), f" and {len(lacking) - 1} longer orders")
        raise DataError(Problem(
            where=f"{lacking[0]}-grams{others}", what="Kneser-Ney's discounts do not exist for this text", got=why,
            allowed="sequences seen once, twice and three times, with discounts between 0 and 1, 2, 3",
            attempt="more text, a smaller --model.order, or --model.discount_fallback true",
        ))  # fmt: skip
    return found
