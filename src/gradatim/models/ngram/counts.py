"""Counting word sequences of every order, with sorts instead of dictionaries.

Every position of the text gets, order by order, the number of the k-gram that ends there: the number of its context
(the (k-1)-gram that ends one position earlier) and its last word make a key, and sorting the keys numbers the k-grams.
Sorted that way, the continuations of a context lie side by side, so that a table is three arrays: where each context's
continuations begin, their last words, their counts.

The boundary opens a document as a context and closes it as a prediction; no sequence runs across it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OrderCounts:
    """All k-grams of one order, sorted by (context, word)."""

    context: Integers
    """Number of each k-gram's context among the (k-1)-grams; for unigrams 0."""
    word: Integers
    """Its last word."""
    count: Integers
    """How often it occurs."""
    suffix: Integers
    """Number of the (k-1)-gram that remains without its first word; for unigrams 0."""
    opens: NDArray[np.bool_]
    """Whether it begins with the boundary (KenLM's ``<s>``); never for unigrams, where the boundary is ``</s>``."""


def count_ngrams(tokens: NDArray[Any], order: int, vocab_size: int, boundary: int) -> list[OrderCounts]:
    """Counts of orders 1 to ``order``, or to the longest sequence there is.

    Unigrams have one row per id of the vocabulary; the boundary's row counts document ends.
    """
    text = np.concatenate([[boundary], np.asarray(tokens, np.int64)])
    position = np.arange(len(text))
    is_boundary = text == boundary
    # Tokens a context may reach back over, the document's opening boundary included.
    reach = position - np.concatenate([[0], np.maximum.accumulate(np.where(is_boundary, position, 0))[:-1]])
    unigrams = np.bincount(text[1:], minlength=vocab_size)
    zeros = np.zeros(vocab_size, np.int64)
    ids = np.arange(vocab_size)
    orders = [OrderCounts(zeros, ids, unigrams, zeros, np.zeros(vocab_size, bool))]
    ending = text  # ending[j]: the number of the k-gram that ends at j, where there is one
    for k in range(2, order + 1):
        where = position[reach >= k - 1]
        where = where[where >= 1]
        if not len(where):
            break
        keys = ending[where - 1] * vocab_size + text[where]
        sorting = np.argsort(keys)  # any order among equals will do: they are occurrences of one k-gram
        ordered = keys[sorting]
        starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        first = np.flatnonzero(starts)
        number = np.empty(len(where), np.int64)
        number[sorting] = np.cumsum(starts) - 1
        representative = where[sorting[first]]
        counts = np.diff(np.concatenate([first, [len(where)]]))
        context, word = np.divmod(ordered[first], vocab_size)
        orders.append(OrderCounts(context, word, counts, ending[representative], is_boundary[representative - k + 1]))
        following = np.full(len(text), -1, np.int64)
        following[where] = number
        ending = following
    return orders
