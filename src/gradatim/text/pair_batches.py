"""Batches of sentence pairs as pure functions of (seed, step): so many pairs, or so many tokens of like length.

By tokens: pairs are sorted by the longer of their sides and cut into buckets, each bucket into equally many batches in
every epoch, of as many pairs as fit ``batch_tokens`` at the bucket's greatest length. An epoch permutes the pairs
within each bucket and the order of all batches, both by permutations that can be evaluated at single points
(``order.py``). The number of batches in an epoch never changes, so step s is batch s mod n of epoch s div n, and
nothing needs to be replayed to find it. ``sizes`` and padding are those of the pairs at hand, not of the bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gradatim.errors import DataError, Problem
from gradatim.text.batches import IGNORE, Batch, Source
from gradatim.text.order import derive, permute, sample_ids
from gradatim.text.tokenfile import TokenFile

BATCHES_A_BUCKET = 6
"""At least so many batches in each bucket, where there are pairs enough: a coarser cut pads more, a finer one leaves
smaller batches and the same pairs together."""


class PairBatches:
    """Training batches of two aligned token files.

    Args:
        source: the source sentences, each closed by its boundary.
        target: their translations.
        boundary: of the target's tokenizer; a translator reads it first.
        context: most tokens of a side; longer pairs are left out (``left_out`` counts them).
        global_batch: pairs per step, where ``batch_tokens`` is None.
        batch_tokens: most tokens of a side per step, padding included.
        seed: of the order.
    """

    def __init__(
        self, source: TokenFile, target: TokenFile, boundary: int, context: int, global_batch: int,
        batch_tokens: int | None, seed: int,
    ) -> None:  # fmt: skip
        self.source, self.target, self.boundary = source, target, boundary
        self.global_batch, self.seed = global_batch, seed
        longest = np.maximum(source.lengths, target.lengths)
        kept = np.nonzero(longest <= context)[0]
        self.left_out = len(longest) - len(kept)
        if not len(kept):
            raise DataError(
                Problem(
                    where="data.train",
                    what="every pair is longer than the context",
                    got=f"{longest.min():,} tokens and more",
                    allowed=f"at most {context:,}",
                    attempt=f"--context {longest.max()}",
                )
            )
        # Of one length in the order of the text: nothing here may depend on how a sort breaks ties.
        self.order = kept[np.argsort(longest[kept], kind="stable")]
        self.samples = len(kept)
        self.batch_tokens = batch_tokens
        if batch_tokens is not None:
            self.buckets = _buckets(longest[self.order], batch_tokens)
            self.first_batch = np.concatenate([[0], np.cumsum([batches for _, _, batches in self.buckets])])

    @property
    def steps_per_epoch(self) -> float:
        """Steps that see each pair once."""
        return self.samples / self.global_batch if self.batch_tokens is None else float(self.first_batch[-1])

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of the pairs of a step, and the epoch of each."""
        if self.batch_tokens is None:
            places, epochs = sample_ids(self.seed, step, self.global_batch, self.samples)
            return self.order[places], epochs
        epoch, within = divmod(step, int(self.first_batch[-1]))
        number = self._permuted(np.array([within]), int(self.first_batch[-1]), epoch, 0)[0]
        bucket = int(np.searchsorted(self.first_batch, number, side="right")) - 1
        start, stop, batches = self.buckets[bucket]
        index, size = int(number - self.first_batch[bucket]), stop - start
        # The bucket's pairs fall into batches that differ by one pair at most.
        slots = np.arange(size * index // batches, size * (index + 1) // batches)
        places = start + self._permuted(slots, size, epoch, 1 + bucket)
        return self.order[places], np.full(len(places), epoch)

    def _permuted(self, slots: NDArray[np.int64], size: int, epoch: int, which: int) -> NDArray[np.int64]:
        key = np.full(len(slots), derive(self.seed, 0x7061697273, epoch, which), np.uint64)
        return permute(key, slots, size)

    def batch(self, step: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """What step ``step`` trains on, or ``share`` = (i, n): the i-th of n nearly equal parts of it.

        A part that would be empty is a pair of which nothing is to be learned: models need not know of no rows.
        """
        everything, _ = self.draw(step)
        numbers = np.array_split(everything, share[1])[share[0]]
        rows = numbers if len(numbers) else everything[:1]
        found = collate(
            [self.source.document(int(number)) for number in rows],
            [self.target.document(int(number)) for number in rows],
            self.boundary,
        )
        if not len(numbers):
            found.targets.fill_(IGNORE)
        return found


def _buckets(longest: NDArray[np.int64], batch_tokens: int) -> list[tuple[int, int, int]]:
    """(first, stop, batches) of each bucket of pairs sorted by length."""
    found, start = [], 0
    while start < len(longest):
        stop = start
        while stop < len(longest):
            stop = int(np.searchsorted(longest, longest[stop], side="right"))
            if stop - start >= BATCHES_A_BUCKET * (batch_tokens // longest[stop - 1]):
                break
        size = max(1, batch_tokens // int(longest[stop - 1]))
        found.append((start, stop, -(-(stop - start) // size)))
        start = stop
    return found


def collate(
    sources: Sequence[NDArray[np.int64]],
    targets: Sequence[NDArray[np.int64]],
    boundary: int,
    source_boundary: int | None = None,
) -> Batch:
    """Pairs side by side: a translator reads ``boundary`` and the target, and predicts the target and its boundary.

    Sources are filled up with ``source_boundary`` (by default the same); what fills is never looked at.
    """
    longest = max((len(target) for target in targets), default=0)
    ids = np.full((len(targets), longest), boundary, np.int64)
    wanted = np.full((len(targets), longest), IGNORE, np.int64)
    for row, target in enumerate(targets):
        ids[row, 1 : len(target)] = target[:-1]
        wanted[row, : len(target)] = target
    source = stack(sources, boundary if source_boundary is None else source_boundary)
    return Batch(torch.from_numpy(ids), torch.from_numpy(wanted), source=source)


def stack(sources: Sequence[NDArray[np.int64]], boundary: int) -> Source:
    """Source sentences side by side."""
    lengths = np.array([len(source) for source in sources], np.int64)
    ids = np.full((len(sources), lengths.max(initial=0)), boundary, np.int64)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
    return Source(torch.from_numpy(ids), torch.from_numpy(lengths))


def held_out_batches(
    source: TokenFile, target: TokenFile, boundary: int, context: int, batch_tokens: int, most: int | None = None
) -> Iterator[Batch]:
    """Every pair of a split once, those of like length together; ``most`` bounds the target tokens (whole pairs).

    Pairs longer than the context are left out: a model need not be able to read them.
    """
    longest = np.maximum(source.lengths, target.lengths)
    kept = np.nonzero(longest <= context)[0]
    if most is not None:
        kept = kept[: max(1, int(np.searchsorted(np.cumsum(target.lengths[kept]), most, side="right")))]
    order = kept[np.argsort(longest[kept], kind="stable")]
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * longest[order[stop]] <= batch_tokens:
            stop += 1
        rows = order[start:stop]
        yield collate([source.document(int(n)) for n in rows], [target.document(int(n)) for n in rows], boundary)
        start = stop
