"""Which tokens of a row are to be predicted, and what stands in their place (Devlin et al. 2018, section 3.1).

Of a row's words 15 % are chosen; of these 80 % become [MASK], 10 % a random word, and 10 % stay as they are. The choice
is drawn anew for every row of every epoch ("dynamic masking", Liu et al. 2019, arXiv:1907.11692) from the row's key,
so it is a function of (seed, step) and of nothing else. With whole words, all pieces of a word are chosen together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradatim.text.batches import IGNORE
from gradatim.text.order import mix
from gradatim.text.tokenizer import Marks, Tokenizer

BLANK, REPLACE = 0.8, 0.9
"""Below the first a chosen token becomes [MASK], below the second a random word, else it stays."""
_ORDER, _FATE, _WORD = (np.uint64(number << 40) for number in (1, 2, 3))
_UNIT = 2.0**-64


def most_blanks(context: int, share: float) -> int:
    """Blanks of the longest row."""
    return max(1, round(context * share))


def continues_word(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Of every id, whether it continues the word before it (``##ing``)."""
    found = np.zeros(tokenizer.vocab_size, bool)
    for token in range(tokenizer.vocab_size):
        found[token] = tokenizer.token_text(token).startswith("##")
    return found


def mask(
    ids: NDArray[np.int64],
    lengths: NDArray[np.int64],
    keys: NDArray[np.uint64],
    marks: Marks,
    vocab_size: int,
    share: float,
    continues: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows with blanks, where the blanks are ``[b p]`` and what belongs there ``[b p]`` (-100: no further blank).

    Args:
        ids: ``[b t]``, laid out and padded.
        lengths: tokens of each row, marks included; a row's blanks are a share of them, one at least.
        keys: a random number per row, from which everything follows.
        marks: ids that are never chosen and never put in.
        vocab_size: random words are drawn below.
        share: of the tokens to be predicted.
        continues: of each id, whether it continues a word; given, words are chosen whole, as many as fit the share.
    """
    rows, t = ids.shape
    most = most_blanks(t, share)
    special = np.isin(ids, [marks.pad, marks.begin, marks.end, marks.blank])
    free = ~special & (np.arange(t) < lengths[:, None])
    wanted = np.maximum(1, np.rint(lengths * share).astype(np.int64))
    place = np.arange(t, dtype=np.uint64)
    order = mix(keys[:, None] ^ mix(place ^ _ORDER))
    if continues is not None:
        start = np.where(free & continues[ids] & _shifted(free), 0, np.arange(t))
        start = np.maximum.accumulate(start, 1)  # of each piece, where its word begins
        order = np.take_along_axis(order, start, 1)
    order = np.where(free, order, np.uint64(0xFFFFFFFFFFFFFFFF))
    ranked = np.argsort(order, axis=1, kind="stable")[:, :most]  # pieces of a word share a number and stay together
    number = np.arange(ranked.shape[1])
    chosen = (number < np.minimum(wanted, free.sum(1))[:, None]) & np.take_along_axis(free, ranked, 1)
    if continues is not None:
        chosen &= _whole(np.take_along_axis(order, ranked, 1), order, chosen)
    taken = np.take_along_axis(ids, ranked, 1)
    targets = np.where(chosen, taken, IGNORE)
    positions = np.where(chosen, ranked, 0)
    at = ranked.astype(np.uint64)
    fate = mix(keys[:, None] ^ mix(at ^ _FATE)).astype(np.float64) * _UNIT
    words = _ordinary(marks, vocab_size)
    drawn = words[(mix(keys[:, None] ^ mix(at ^ _WORD)) % np.uint64(len(words))).astype(np.int64)]
    put = np.where(fate < BLANK, marks.blank, np.where(fate < REPLACE, drawn, taken))
    masked = ids.copy()
    row = np.broadcast_to(np.arange(rows)[:, None], ranked.shape)
    masked[row[chosen], ranked[chosen]] = put[chosen]
    return masked, positions, targets


def _shifted(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the token before is one that may be chosen: a piece after a mark begins what is left of its word."""
    before = np.zeros_like(free)
    before[:, 1:] = free[:, :-1]
    return before


def _whole(ranked: NDArray[np.uint64], order: NDArray[np.uint64], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leave out a last word of which some pieces were not chosen, unless it is the only one."""
    count = chosen.sum(1)
    last = np.take_along_axis(ranked, np.maximum(count - 1, 0)[:, None], 1)
    inside, everywhere = (chosen & (ranked == last)).sum(1), (order == last).sum(1)
    cut = (inside < everywhere) & (inside < count)
    left_out: NDArray[np.bool_] = (ranked == last) & cut[:, None]
    return ~left_out


def _ordinary(marks: Marks, vocab_size: int) -> NDArray[np.int64]:
    """The ids that may stand for a random word."""
    return np.setdiff1d(np.arange(vocab_size), [marks.pad, marks.begin, marks.end, marks.blank, marks.unknown])
