"""Batches of a task: its texts laid out as one row, cut to the context, as pure functions of (seed, step).

    BERT   [CLS] A [SEP]          [CLS] A [SEP] B [SEP]              segments 0 and 1 (Devlin et al. 2018, section 4)
    GPT    opening A boundary     opening A boundary B boundary      Radford et al. 2018, section 3.3

GPT-1 begins, separates and ends by tokens that it had never met; here all three are the boundary, which pretraining
knows (of Llama's tokenizers the opening is another one), or the text between is the config's (``task.delimiter``). A
choice is a row for each: prompt, then choice. Of two texts the longer one is cut until they fit; a question is cut only
where it is longer than half of the row.

Where words are to be predicted besides (``task.lm_weight``), a GPT's targets are its next tokens, and a BERT's rows
have blanks, drawn anew in each epoch from (seed, epoch, row).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gradatim.config.settings import BertConfig, RunConfig
from gradatim.errors import DataError, Problem
from gradatim.text.batches import IGNORE, Batch
from gradatim.text.masking import continues_word, mask
from gradatim.text.order import derive, mix, sample_ids
from gradatim.text.prepare_task import Encoded
from gradatim.text.tokenizer import Ids, Tokenizer

BLANKS = 0x626C616E
"""What tells the random numbers of blanks from others of the same seed."""
WIDTHS = 8
"""Rows are filled up to a multiple of so many tokens, or of as many tensor-parallel ranks as share a sequence."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row, not filled up."""

    ids: Ids
    second: int
    """Where the second text begins; the length where there is none."""
    cut: int
    """Tokens of its texts that did not fit."""


class TaskRows:
    """Rows of a task; ``batch(step)`` draws, ``every`` reads them through.

    Args:
        found: the examples.
        tokenizer: what their ids mean.
        config: of the run.
        training: whether labels are learned: then examples whose answer was cut off are left out (``lost`` counts
            them), and words are targets where the task asks for them.
    """

    def __init__(self, found: Sequence[Encoded], tokenizer: Tokenizer, config: RunConfig, training: bool) -> None:
        self.kind, self.context, self.global_batch = config.task.kind, config.context, config.global_batch
        self.seed, self.marks, self.vocab_size = config.seed, tokenizer.marks, tokenizer.vocab_size
        self.multiple = int(np.lcm(WIDTHS, config.layout.tp)) if config.layout.sequence_parallel else WIDTHS
        self.bert = isinstance(config.model, BertConfig)
        words = training and config.task.lm_weight > 0
        self.next_tokens = words and not self.bert
        self.blanks = config.model if words and isinstance(config.model, BertConfig) else None
        whole_words = self.blanks is not None and self.blanks.whole_words
        self.continues = continues_word(tokenizer) if whole_words else None
        marks = tokenizer.marks
        if self.bert:
            assert marks is not None
            self.begin, self.end, self.pad = marks.begin, marks.end, marks.pad
            self.between = np.array([marks.end], np.int64)
        else:
            self.begin, self.end = tokenizer.opening, tokenizer.boundary
            self.pad = self.end
            delimiter = config.task.delimiter
            own = [tokenizer.boundary] if delimiter is None else tokenizer.encode(delimiter)
            self.between = np.array(own, np.int64)
        self.rows: list[list[Row]] = []
        self.labels: list[NDArray[np.float64] | NDArray[np.int64] | None] = []
        self.kept: list[int] = []
        """Numbers of the examples that there are rows of."""
        self.cut = self.lost = 0
        for number, example in enumerate(found):
            self._add(number, example, training)
        self.samples = len(self.rows)
        if training and not self.samples:
            raise DataError(Problem(where="data.train", what="every answer lies beyond the context",
                                    got=f"context {self.context}", attempt="a longer --context"))  # fmt: skip

    def _add(self, number: int, example: Encoded, training: bool) -> None:
        first, *others = example.parts
        rows = [self._laid_out(first, other) for other in others] or [self._laid_out(first, None)]
        label = None if example.label is None else self._label(example, rows[0])
        if training and self.kind == "span" and label is None:
            self.lost += 1
            return
        self.cut += any(row.cut for row in rows)
        self.rows.append(rows)
        self.labels.append(label)
        self.kept.append(number)

    def _laid_out(self, first: Ids, other: Ids | None) -> Row:
        """The row of one text or two; a row has room for two tokens at least."""
        if other is None:
            kept = first[: self.context - 2]
            ids = np.concatenate([[self.begin], kept, [self.end]])
            return Row(ids, len(ids), len(first) - len(kept))
        room = self.context - 2 - len(self.between)
        if self.kind == "span":
            one = min(len(first), max(room // 2, room - len(other)))
            two = min(len(other), room - one)
        else:
            one, two = fitting(len(first), len(other), room)
        ids = np.concatenate([[self.begin], first[:one], self.between, other[:two], [self.end]])
        return Row(ids, 1 + one + len(self.between), len(first) - one + len(other) - two)

    def _label(self, example: Encoded, row: Row) -> NDArray[np.float64] | NDArray[np.int64] | None:
        """As the objective reads it; None for an answer that was cut off."""
        if self.kind == "regress":
            return np.array(example.label, np.float64)
        if self.kind == "tag":
            assert example.places is not None
            where = 1 + example.places
            inside = (example.places >= 0) & (where < len(row.ids) - 1)
            tags = np.full(len(row.ids), IGNORE, np.int64)
            tags[where[inside]] = example.label[inside]
            return tags
        if self.kind == "span":
            begin, end = (int(place) for place in example.label)
            if begin < 0:
                return np.zeros(2, np.int64)  # no answer: the first token
            return np.array([begin, end]) + row.second if row.second + end < len(row.ids) - 1 else None
        return np.array(example.label, np.int64)

    # ------------------------------------------------------------------ batches

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample numbers of a step and the epoch of each."""
        return sample_ids(self.seed, step, self.global_batch, self.samples)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """What step ``step`` trains on, or those rows of it."""
        numbers, epochs = (part[rows] for part in self.draw(step))
        keys = mix(mix(epochs.astype(np.uint64) ^ np.uint64(derive(self.seed, BLANKS))) ^ numbers.astype(np.uint64))
        return self.collate(numbers.tolist(), keys)

    def every(self, size: int, most_tokens: int | None = None) -> Iterator[tuple[list[int], Batch]]:
        """All rows once, those of like length together: their numbers and what is read of them."""
        count = len(self.rows)
        if most_tokens is not None:
            lengths = np.cumsum([sum(len(row.ids) for row in rows) for rows in self.rows])
            count = max(1, int(np.searchsorted(lengths, most_tokens, side="right")))
        order = sorted(range(count), key=lambda number: max(len(row.ids) for row in self.rows[number]))
        for first in range(0, count, size):
            numbers = order[first : first + size]
            yield numbers, self.collate(numbers)

    def collate(self, numbers: Sequence[int], keys: NDArray[np.uint64] | None = None) -> Batch:
        """Rows side by side, filled up: ``[b t]``, or ``[b c t]`` of choices, where a missing choice has length 0.

        ``keys`` holds a random number for each row, from which its blanks follow where there are any.
        """
        rows = [self.rows[number] for number in numbers]
        choices = max(map(len, rows))
        longest = max(len(row.ids) for each in rows for row in each)
        t = min(-(-longest // self.multiple) * self.multiple, self.context)
        ids = np.full((len(rows), choices, t), self.pad, np.int64)
        lengths = np.zeros((len(rows), choices), np.int64)
        segments = np.zeros_like(ids)
        for i, each in enumerate(rows):
            for j, row in enumerate(each):
                ids[i, j, : len(row.ids)] = row.ids
                segments[i, j, row.second : len(row.ids)] = 1
                lengths[i, j] = len(row.ids)
        targets = np.full((len(rows), choices, t if self.next_tokens else 0), IGNORE, np.int64)
        positions = None
        if self.blanks is not None and keys is not None:
            ids, positions, targets = self._masked(ids, lengths, keys, self.blanks.masked)
        elif self.next_tokens:
            targets[..., :-1] = np.where(np.arange(1, t) < lengths[..., None], ids[..., 1:], IGNORE)
        if self.kind != "choice":
            ids, lengths, segments, targets = ids[:, 0], lengths[:, 0], segments[:, 0], targets[:, 0]
            positions = None if positions is None else positions[:, 0]
        return Batch(
            torch.from_numpy(ids), torch.from_numpy(targets), lengths=torch.from_numpy(lengths),
            segments=torch.from_numpy(segments) if self.bert else None, labels=self._labels(numbers, t),
            positions=None if positions is None else torch.from_numpy(positions),
        )  # fmt: skip

    def _masked(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64], keys: NDArray[np.uint64], share: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows with blanks, ``[b c t]``; where these are and what belongs there, ``[b c p]``. See ``masking.mask``."""
        assert self.marks is not None
        rows, choices, t = ids.shape
        each = mix(keys[:, None] ^ mix(np.arange(choices, dtype=np.uint64)))
        found = mask(
            ids.reshape(-1, t), lengths.reshape(-1), each.reshape(-1), self.marks, self.vocab_size, share,
            self.continues,
        )  # fmt: skip
        masked, positions, wanted = (part.reshape(rows, choices, -1) for part in found)
        return masked, positions, wanted

    def _labels(self, numbers: Sequence[int], t: int) -> torch.Tensor | None:
        """None where a row has none: nothing is judged then."""
        own = [self.labels[number] for number in numbers]
        known = [label for label in own if label is not None]
        if len(known) < len(own):
            if self.kind != "span":
                return None
            own = [np.full(2, IGNORE) if label is None else label for label in own]  # cut off, and not to be judged
        if self.kind == "tag":
            filled = np.full((len(own), t), IGNORE, np.int64)
            for i, label in enumerate(known):
                filled[i, : len(label)] = label
            return torch.from_numpy(filled)
        return torch.from_numpy(np.stack([np.asarray(label) for label in own]))

    def notes(self) -> tuple[str, ...]:
        """What people are to know of texts that do not fit."""
        found = []
        if self.cut:
            found.append(f"{self.cut:,} of {self.samples:,} rows are longer than the context ({self.context}) and cut")
        if self.lost:
            found.append(f"{self.lost:,} rows are left out: their answer lies beyond the context ({self.context})")
        return tuple(found)


def fitting(one: int, two: int, room: int) -> tuple[int, int]:
    """How many tokens two texts keep where the longer one gives way first."""
    if one + two <= room:
        return one, two
    half = room // 2
    if one <= half:
        return one, room - one
    return (room - two, two) if two <= half else (room - half, half)
