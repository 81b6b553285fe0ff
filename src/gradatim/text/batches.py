"""Batches as pure functions of the step: windows for models that see a fixed context, streams for carried states.

The text is one long row of tokens, ``… boundary w₁ w₂ … boundary …``; a sample is ``context`` inputs and, one
further, as many targets. The token before the first is the last one, a boundary, so the first document opens like
every other. A tokenizer that opens texts by a token of its own has that read in the boundary's place: what stands after
the end of a document is the beginning of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from gradatim.errors import DataError, Problem
from gradatim.text.order import derive, sample_ids
from gradatim.text.tokenfile import TokenFile

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Source:
    """Sentences to be translated, each closed by its boundary, side by side and filled up at the right."""

    ids: Int[Tensor, "b s"]
    lengths: Int[Tensor, " b"]
    """Tokens of each, the boundary included; what stands behind them means nothing."""

    def to(self, device: torch.device) -> Source:
        """The same on another device."""
        return Source(self.ids.to(device), self.lengths.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step trains on."""

    ids: Int[Tensor, "b *c t"]
    """Of choices, a row for each: ``[b c t]``."""
    targets: Int[Tensor, "b *c p"]
    """The token after each id (p = t), or at ``positions``; -100 where nothing is to be learned."""
    fresh: bool = True
    """Whether a model that carries its state starts anew here."""
    segments: Int[Tensor, "b *c t"] | None = None
    """0 for the first sentence of a pair and what belongs to it, 1 for the second."""
    lengths: Int[Tensor, " b *c"] | None = None
    """How many tokens of each row are text; what follows is padding. None where there is none."""
    positions: Int[Tensor, "b *c p"] | None = None
    """Where in the row the targets are, if not at every token."""
    labels: Shaped[Tensor, " b *l"] | None = None
    """What is to be said of each row (a number, of regressions a real one; the ends of a span), or of each token;
    -100 where nothing is."""
    source: Source | None = None
    """What each row translates, where the text is pairs."""

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        found = self._own()
        if self.source is not None:
            found |= {"source": self.source.ids, "source_lengths": self.source.lengths}
        return found

    def _own(self) -> dict[str, Tensor]:
        names = ("ids", "targets", "segments", "lengths", "positions", "labels")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor put through a function."""
        made: dict[str, Any] = {name: function(tensor) for name, tensor in self._own().items()}
        if self.source is not None:
            made["source"] = Source(function(self.source.ids), function(self.source.lengths))
        return replace(self, **made)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def rows(self, rows: slice) -> Batch:
        """Some of the rows."""
        return self.map(lambda tensor: tensor[rows])

    def split(self, parts: int) -> list[Batch]:
        """The rows in that many parts, the first ones longer by one where they do not come out even."""
        sizes = [len(part) for part in self.ids.tensor_split(parts)]
        starts = [sum(sizes[:i]) for i in range(parts)]
        return [self.rows(slice(start, start + size)) for start, size in zip(starts, sizes)]


class Windows:
    """Samples of ``context`` tokens in an order drawn afresh each epoch, from a grid that is shifted each epoch."""

    def __init__(
        self, file: TokenFile, context: int, global_batch: int, seed: int, packing: str = "across",
        opening: int | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.starts = file.tokens, file.document_starts
        self.boundary, self.opening = file.meta.boundary, opening
        self.context, self.global_batch, self.seed, self.packing = context, global_batch, seed, packing
        if packing == "across":
            self.samples = (len(self.tokens) - 1) // context
        else:  # a document's tokens, its boundary included, each predicted once; the last window may be part empty
            pieces = -(-np.diff(self.starts) // context)
            self.first_piece = np.concatenate([[0], np.cumsum(pieces)])
            self.samples = int(self.first_piece[-1])
        if self.samples < 1:
            raise too_short(len(self.tokens), context + 1)

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample numbers of a step and the epoch of each."""
        return sample_ids(self.seed, step, self.global_batch, self.samples)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """What step ``step`` trains on, or those rows of it."""
        index, epoch = (part[rows] for part in self.draw(step))
        reach = np.arange(self.context + 1)
        if self.packing == "across":
            # One window fewer than would fit leaves room to shift the grid, and the text wraps around at its end.
            shift = np.array([derive(self.seed, 0x7368, int(e)) % self.context for e in epoch])
            where = (index * self.context + shift)[:, None] + reach - 1
            taken = self.tokens[where % len(self.tokens)].astype(np.int64)
            return Batch(self._read(taken), torch.from_numpy(taken[:, 1:].copy()))
        document = np.searchsorted(self.first_piece, index, side="right") - 1
        start = self.starts[document] + (index - self.first_piece[document]) * self.context
        where = start[:, None] + reach - 1  # the token before a document is the boundary of the one before it
        inside = where < self.starts[document + 1][:, None]
        taken = self.tokens[np.where(inside, where, -1) % len(self.tokens)].astype(np.int64)
        targets = np.where(inside[:, 1:], taken[:, 1:], IGNORE)
        return Batch(self._read(taken), torch.from_numpy(targets))

    def _read(self, taken: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(as_read(taken[:, :-1], self.boundary, self.opening))


class Streams:
    """``global_batch`` contiguous rows read side by side, ``context`` tokens a step; each pass starts afresh."""

    def __init__(self, file: TokenFile, context: int, global_batch: int, opening: int | None = None) -> None:
        self.tokens, self.context, self.global_batch = file.tokens, context, global_batch
        self.boundary, self.opening = file.meta.boundary, opening
        self.row = (len(self.tokens) - 1) // global_batch
        self.steps = self.row // context
        if self.steps < 1:
            raise too_short(len(self.tokens), global_batch * context + 1)

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offset of each row's first token in a step, and the pass."""
        number, within = divmod(step, self.steps)
        rows = np.arange(self.global_batch, dtype=np.int64)
        return rows * self.row + within * self.context, np.full(self.global_batch, number)

    def batch(self, step: int) -> Batch:
        """What step ``step`` trains on."""
        start, _ = self.draw(step)
        where = start[:, None] + np.arange(self.context + 1) - 1
        taken = self.tokens[where].astype(np.int64)
        fresh = step % self.steps == 0
        read = as_read(taken[:, :-1], self.boundary, self.opening)
        return Batch(torch.from_numpy(read), torch.from_numpy(taken[:, 1:].copy()), fresh)


def as_read(ids: NDArray[np.int64], boundary: int, opening: int | None) -> NDArray[np.int64]:
    """A copy of tokens as a model reads them: ``opening`` (None: the boundary) begins what follows a document."""
    return ids.copy() if opening in (None, boundary) else np.where(ids == boundary, opening, ids)


def too_short(tokens: int, needed: int) -> DataError:
    """The error of a text that does not fill one sample."""
    return DataError(
        Problem(
            where="data.train",
            what="the text is shorter than one step needs",
            got=f"{tokens:,} tokens",
            allowed=f"at least {needed:,}",
            attempt="a smaller context or global_batch, or more text",
        )
    )
