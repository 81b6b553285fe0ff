"""Which batches a run trains and is judged on, by what its model reads: windows, streams, or rows with blanks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradatim.config.settings import BertConfig, RecurrentConfig, RunConfig
from gradatim.text.batches import Batch, Streams, Windows
from gradatim.text.masking import most_blanks
from gradatim.text.pairs import MaskedRows
from gradatim.text.prepare import Prepared


class Rows(Protocol):
    """Batches of rows that do not depend on each other, so that replicas may share them."""

    samples: int

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample numbers of a step and the epoch of each."""
        ...

    def batch(self, step: int, rows: slice = ...) -> Batch:
        """What a step trains on, or those rows of it."""
        ...


Feed = Rows | Streams


def rows_of(config: RunConfig, prepared: Prepared) -> Rows:
    """The rows that a run trains on."""
    if isinstance(config.model, BertConfig):
        return masked_rows(config, prepared, "train")
    return Windows(prepared.train, config.context, config.global_batch, config.seed, config.data.packing)


def feed_of(config: RunConfig, prepared: Prepared) -> Feed:
    """The batches that a run trains on."""
    if isinstance(config.model, RecurrentConfig):
        return Streams(prepared.train, config.context, config.global_batch)
    return rows_of(config, prepared)


def masked_rows(config: RunConfig, prepared: Prepared, split: str) -> MaskedRows:
    """Rows with blanks out of ``train``, ``valid`` or ``test``."""
    assert isinstance(config.model, BertConfig)
    file = getattr(prepared, split)
    return MaskedRows(
        file, prepared.tokenizer, config.model, config.context, config.global_batch, config.seed, config.data.packing
    )


def empty_batch(config: RunConfig, rows: int) -> Batch:
    """A batch of the shapes that the run's batches have, all zeros."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(rows, *shape, dtype=torch.int64)

    t, model = config.context, config.model
    if not isinstance(model, BertConfig):
        return Batch(zeros(t), zeros(t))
    blanks, paired = most_blanks(t, model.masked), model.pairs != "none"
    return Batch(
        zeros(t), zeros(blanks), segments=zeros(t) if paired else None, lengths=zeros() + t,
        positions=zeros(blanks), labels=zeros() if paired else None,
    )  # fmt: skip


def validation_rows(config: RunConfig, prepared: Prepared) -> list[Batch]:
    """What a model that fills in blanks is judged on while it trains: always the same rows."""
    return masked_rows(config, prepared, "valid").every(config.evaluation.tokens)
