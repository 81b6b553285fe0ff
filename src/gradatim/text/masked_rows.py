"""Batches for BERT: rows ``[CLS] A [SEP] B [SEP]`` out of real documents, with blanks, as pure functions of the step.

A sample is a stretch of one document, begun at a sentence and as long as the context allows; it is cut into A and B
between two of its sentences. In half of the samples B is taken from another document instead (next-sentence
prediction, Devlin et al. 2018, appendix A.2), or A and B change places (sentence order, Lan et al. 2019,
arXiv:1909.11942). Where no pairs are asked for, a row is one stretch, of one document or of the whole text
(``data.packing``).

The first steps may see shorter rows (``model.first_length``): which word tells most of a blank is found sooner among 30
words than among 120 (the warm-up of lengths of Li et al. 2021, arXiv:2108.06084).

Token files do not keep line ends, so a sentence ends where punctuation says so; a text without any is cut anywhere.
Nothing is stored per sample: sentence, cut, other document and blanks follow from (seed, epoch, sample).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gradatim.config.settings import BertConfig
from gradatim.errors import DataError, Problem
from gradatim.text.batches import Batch, too_short
from gradatim.text.masking import continues_word, mask
from gradatim.text.order import derive, mix, sample_ids
from gradatim.text.tokenfile import TokenFile
from gradatim.text.tokenizer import Marks, Tokenizer

FOLLOWS, OTHER = 0, 1
"""Labels of a pair: B continues A, or it does not."""
_START, _SHORT, _LENGTH, _CUT, _COIN, _ELSEWHERE, _MASK, _INSIDE = range(1, 9)
ENDS = (".", "!", "?", "。", "！", "？")
CLOSING = ('"', "'", ")", "]", "”", "’", "»", *ENDS)
"""What belongs to the sentence that an end mark closes."""

Pairs = Literal["next-sentence", "sentence-order", "none"]


class MaskedRows:
    """Rows with blanks; see the file. ``batch(step)`` draws, ``every`` reads a text through for evaluation."""

    def __init__(
        self, file: TokenFile, tokenizer: Tokenizer, config: BertConfig, context: int, global_batch: int, seed: int,
        packing: str = "across",
    ) -> None:  # fmt: skip
        self.tokens, self.config, self.context = file.tokens, config, context
        self.global_batch, self.seed = global_batch, seed
        self.marks, self.vocab_size = _marks(tokenizer), tokenizer.vocab_size
        self.continues = continues_word(tokenizer) if config.whole_words else None
        self.across = config.pairs == "none" and packing == "across"
        self.room = context - (2 if config.pairs == "none" else 3)
        if self.across:
            self.documents = np.array([0, len(self.tokens)])
            self.sentences = np.arange(0, max(1, len(self.tokens) - self.room + 1), self.room)
        else:
            self.documents = file.document_starts
            self.sentences = sentence_starts(self.tokens, self.documents, tokenizer)
        self.last_sentence = np.searchsorted(self.sentences, self.documents)
        self.starts = self._samples()
        self.samples = len(self.starts)
        if self.samples < 1:
            raise too_short(len(self.tokens), context)
        if config.pairs == "next-sentence" and len(self.documents) < 3:
            what = "next-sentence prediction takes every other B from another document, and there is one only"
            attempt = "--data.document line or blank-line, or --model.pairs sentence-order"
            raise DataError(Problem(where="data.train", what=what, attempt=attempt))

    def _samples(self) -> NDArray[np.int64]:
        """The sentences at which samples begin, about a row apart: one pass over them reads each text about once."""
        length = self.sentences - np.repeat(
            self.documents[:-1], np.diff(self.last_sentence)
        )  # from its document's start
        row = length // self.room
        document = np.repeat(np.arange(len(self.documents) - 1), np.diff(self.last_sentence))
        fresh = np.ones(len(row), bool)
        fresh[1:] = (row[1:] != row[:-1]) | (document[1:] != document[:-1])
        longest = np.diff(self.documents)[document] - 1  # without the boundary that closes it
        return np.flatnonzero(fresh & (longest >= 2))

    # ------------------------------------------------------------------ rows

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample numbers of a step and the epoch of each."""
        return sample_ids(self.seed, step, self.global_batch, self.samples)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """What step ``step`` trains on, or those rows of it."""
        index, epoch = (part[rows] for part in self.draw(step))
        width = self.context
        if self.config.first_length is not None and step < self.config.first_steps:
            width = min(width, self.config.first_length)
        return self.rows(index, epoch.astype(np.uint64) ^ np.uint64(derive(self.seed, 0x6D61736B)), width)

    def every(self, most: int | None = None, draw: int = 0) -> list[Batch]:
        """The samples of a text in order, a ``global_batch`` at a time, always with the same pairs and blanks.

        Another ``draw`` cuts, pairs and blanks the same text anew.
        """
        count = self.samples if most is None else min(self.samples, max(1, most // self.context))
        key = np.uint64(derive(0x76616C6964, draw) if draw else derive(0x76616C6964))
        parts = [
            np.arange(first, min(first + self.global_batch, count)) for first in range(0, count, self.global_batch)
        ]
        return [self.rows(part, np.full(len(part), key)) for part in parts]

    def rows(self, index: NDArray[np.int64], epoch: NDArray[np.uint64], width: int | None = None) -> Batch:
        """The rows of some samples in some epochs, of ``width`` tokens (the context's), padding included."""
        width = width or self.context
        keys = mix(mix(epoch) ^ index.astype(np.uint64))
        begin, end = self._stretch(index, keys, self.room - (self.context - width))
        if self.config.pairs == "none":
            ids, lengths = self._laid_out([(begin, end)], width)
            segments, labels = None, None
        else:
            (a, b), labels = self._pair(begin, end, keys)
            ids, lengths = self._laid_out([a, b], width)
            second = np.arange(width) >= (a[1] - a[0] + 2)[:, None]
            segments = torch.from_numpy((second & (np.arange(width) < lengths[:, None])).astype(np.int64))
        ids, positions, targets = mask(
            ids, lengths, _hash(keys, _MASK), self.marks, self.vocab_size, self.config.masked, self.continues
        )
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(targets),
            segments=segments,
            lengths=None if self.across else torch.from_numpy(lengths),
            positions=torch.from_numpy(positions),
            labels=None if labels is None else torch.from_numpy(labels),
        )

    def _stretch(self, index: NDArray[np.int64], keys: NDArray[np.uint64], most: int) -> tuple[NDArray[np.int64], ...]:
        """First token and the one after the last of each sample's stretch, ``most`` tokens at most."""
        first = self.starts[index]
        if self.across:
            begin = self.sentences[first]
            return begin, np.minimum(begin + most, len(self.tokens))
        document = np.searchsorted(self.documents, self.sentences[first], side="right") - 1
        stop = self.documents[document + 1] - 1
        # Begin at any sentence of the sample's share, yet early enough to fill the row if the document allows.
        another = index + 1 < len(self.starts)
        following = np.where(another, self.starts[(index + 1) * another], len(self.sentences))
        own = np.minimum(following, self.last_sentence[document + 1]) - first
        begin = self.sentences[first + _below(keys, _START, own)]
        latest = np.searchsorted(self.sentences, np.maximum(stop - self.room, self.documents[document]), side="right")
        begin = np.minimum(begin, self.sentences[latest - 1])
        room = np.full(len(index), most)
        short = _unit(keys, _SHORT) < self.config.short
        room = np.where(short, 2 + _below(keys, _LENGTH, room - 1), room)
        return begin, np.minimum(begin + room, stop)

    def _pair(
        self, begin: NDArray[np.int64], end: NDArray[np.int64], keys: NDArray[np.uint64]
    ) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], NDArray[np.int64]]:
        """A and B of each stretch, as first token and the one after the last, and the label."""
        if self.config.pairs == "sentence-order":
            end = self._whole_sentences(begin, end)
        low, high = (np.searchsorted(self.sentences, at) for at in (begin + 1, end))
        inner = high - low  # sentences that begin inside
        by_sentence = self.sentences[
            np.minimum(low + _below(keys, _CUT, np.maximum(inner, 1)), len(self.sentences) - 1)
        ]
        anywhere = begin + 1 + _below(keys, _CUT, end - begin - 1)
        cut = np.where(inner > 0, by_sentence, anywhere)
        other = _unit(keys, _COIN) < 0.5
        labels = np.where(other, OTHER, FOLLOWS)
        if self.config.pairs == "sentence-order":
            first = np.where(other, cut, begin), np.where(other, end, cut)
            return [first, (np.where(other, begin, cut), np.where(other, cut, end))], labels
        start, stop = self._elsewhere(begin, end - cut, inner > 0, keys)
        return [(begin, cut), (np.where(other, start, cut), np.where(other, stop, end))], labels

    def _whole_sentences(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
        """The end of each stretch's last whole sentence, if it has two: what stops in the middle would be known as B,
        wherever it stands.
        """
        ended = self.sentences[np.searchsorted(self.sentences, end, side="right") - 1]
        at_document = end == self.documents[np.searchsorted(self.documents, begin, side="right")] - 1
        two = np.searchsorted(self.sentences, ended) - np.searchsorted(self.sentences, begin) > 1
        return np.where(two & ~at_document, ended, end)

    def _elsewhere(
        self, begin: NDArray[np.int64], size: NDArray[np.int64], whole: NDArray[np.bool_], keys: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As many tokens of another document than that of ``begin``: of a sentence from its start, if ``whole``.

        Else from inside of a sentence, as the B that follows begins there: one that began with a sentence would be told
        by that alone, and the two texts need not be compared. For the same reason it begins early enough to have the
        size of what it replaces, if its document allows.
        """
        document = np.searchsorted(self.documents, begin, side="right") - 1
        own, after = self.last_sentence[document], self.last_sentence[document + 1]
        sentence = _below(keys, _ELSEWHERE, len(self.sentences) - (after - own))
        sentence = np.where(sentence >= own, sentence + after - own, sentence)
        there = np.searchsorted(self.documents, self.sentences[sentence], side="right") - 1
        first, last = self.documents[there], self.documents[there + 1] - 1
        latest = np.maximum(last - size, first)
        sentence = np.minimum(sentence, np.searchsorted(self.sentences, latest, side="right") - 1)
        start = self.sentences[sentence]
        following = np.minimum(self.sentences[np.minimum(sentence + 1, len(self.sentences) - 1)], last)
        following = np.where(sentence + 1 < len(self.sentences), following, last)
        inside = start + 1 + _below(keys, _INSIDE, np.maximum(following - start - 1, 1))
        start = np.where(whole, start, np.minimum(inside, np.maximum(start, latest)))
        return start, np.minimum(start + size, last)

    def _laid_out(
        self, parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]], width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows ``[CLS] part [SEP] part [SEP] [PAD] …`` and their lengths."""
        column = np.arange(width)
        rows = np.full((len(parts[0][0]), width), self.marks.pad, np.int64)
        rows[:, 0] = self.marks.begin
        at = np.ones(len(rows), np.int64)
        for begin, end in parts:
            size = end - begin
            inside = (column >= at[:, None]) & (column < (at + size)[:, None])
            where = begin[:, None] + column - at[:, None]
            rows[inside] = self.tokens[where[inside]]
            rows[np.arange(len(rows)), at + size] = self.marks.end
            at = at + size + 1
        return rows, at


def sentence_starts(tokens: NDArray[np.int64], documents: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Where sentences begin: each document, and what follows an end mark and the quotes that close with it."""
    texts = [tokenizer.token_text(token).strip() for token in range(tokenizer.vocab_size)]
    ends = np.array([text.endswith(ENDS) for text in texts])
    closing = np.array([text in CLOSING for text in texts])
    begins = np.zeros(len(tokens), bool)
    ended = False
    for first in range(0, len(tokens), 1 << 20):  # a text may be larger than memory
        part = np.asarray(tokens[first : first + (1 << 20)])
        held, loose = ends[part], closing[part]
        # A closing mark hands on whether its sentence has ended: the last token that is none decides.
        place = np.where(held | ~loose, np.arange(len(part)), -1)
        place = np.maximum.accumulate(place)
        over = np.where(place >= 0, held[np.maximum(place, 0)], ended)
        begins[first + 1 : first + len(part)] = over[:-1] & ~loose[1:]
        if first and ended and not loose[0]:
            begins[first] = True
        ended = bool(over[-1]) if len(part) else ended
    begins[documents[1:] - 1] = False  # the boundary is nobody's sentence
    begins[documents[:-1]] = True
    return np.flatnonzero(begins)


def _marks(tokenizer: Tokenizer) -> Marks:
    if tokenizer.marks is None:
        what = "this tokenizer has no [CLS], [SEP], [MASK] and [PAD], which BERT needs"
        raise DataError(Problem(where="data.tokenizer", what=what, attempt="data.tokenizer.kind wordpiece"))
    return tokenizer.marks


def _hash(keys: NDArray[np.uint64], purpose: int) -> NDArray[np.uint64]:
    return mix(keys ^ np.uint64(purpose << 48))


def _unit(keys: NDArray[np.uint64], purpose: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each key."""
    return _hash(keys, purpose).astype(np.float64) * 2.0**-64


def _below(keys: NDArray[np.uint64], purpose: int, limit: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """A whole number below the limit for each key."""
    return (_hash(keys, purpose) % np.asarray(limit).astype(np.uint64)).astype(np.int64)
