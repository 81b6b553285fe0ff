"""Which batches a run trains and is judged on: windows, streams, rows with blanks, or pairs, as its model reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradatim.config.settings import BertConfig, RecurrentConfig, RunConfig
from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig
from gradatim.text.batches import Batch, Streams, Windows
from gradatim.text.masked_rows import MaskedRows
from gradatim.text.masking import most_blanks
from gradatim.text.pair_batches import PairBatches, held_out_batches
from gradatim.text.prepare_task import AnyPrepared, PreparedTask
from gradatim.text.task_rows import TaskRows

VALID_TOKENS = 4096
"""Tokens a side of the pairs that are judged at once, padding included."""
VALID_ROWS = 32
"""Rows of a task that are judged at once."""


class Rows(Protocol):
    """Batches of rows that do not depend on each other, so that replicas may share them."""

    samples: int
    global_batch: int

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample numbers of a step and the epoch of each."""
        ...

    def batch(self, step: int, rows: slice = ...) -> Batch:
        """What a step trains on, or those rows of it."""
        ...


Feed = Rows | Streams | PairBatches


def rows_of(config: RunConfig, prepared: AnyPrepared) -> Rows | PairBatches:
    """The rows that a run trains on, which replicas may share."""
    if isinstance(prepared, PreparedTask):
        return TaskRows(prepared.parts["train"], prepared.tokenizer, config, training=True)
    if isinstance(config.model, (TranslateLmConfig, Seq2SeqConfig, TransformerConfig)):
        return PairBatches(
            prepared.sources["train"], prepared.train, prepared.tokenizer.boundary, config.context,
            config.global_batch, config.batch_tokens, config.seed,
        )  # fmt: skip
    if isinstance(config.model, BertConfig):
        return masked_rows(config, prepared, "train")
    return Windows(
        prepared.train, config.context, config.global_batch, config.seed, config.data.packing,
        prepared.tokenizer.opening,
    )  # fmt: skip


def feed_of(config: RunConfig, prepared: AnyPrepared) -> Feed:
    """The batches that a run trains on."""
    if isinstance(config.model, RecurrentConfig):
        assert not isinstance(prepared, PreparedTask)
        return Streams(prepared.train, config.context, config.global_batch, prepared.tokenizer.opening)
    return rows_of(config, prepared)


def share_of(rows: Rows | PairBatches, step: int, index: int, parts: int) -> Batch:
    """What replica ``index`` of ``parts`` trains on in a step."""
    if isinstance(rows, PairBatches):
        return rows.batch(step, (index, parts))
    size = rows.global_batch // parts
    return rows.batch(step, slice(index * size, (index + 1) * size))


def steps_per_epoch(feed: Feed) -> float:
    """Steps that see the training text once."""
    if isinstance(feed, Streams):
        return float(feed.steps)
    return feed.steps_per_epoch if isinstance(feed, PairBatches) else feed.samples / feed.global_batch


def notes_of(feed: Feed, config: RunConfig) -> tuple[str, ...]:
    """What is to be said of text that is not trained on: pairs and rows that do not fit."""
    if isinstance(feed, TaskRows):
        return feed.notes()
    many = feed.left_out if isinstance(feed, PairBatches) else 0
    return (f"pairs longer than the context ({config.context}), left out: {many:,}",) if many else ()


def source_vocabulary(prepared: AnyPrepared) -> int | None:
    """The size of a translator's source vocabulary; None where there are no pairs."""
    return None if prepared.source_tokenizer is None else prepared.source_tokenizer.vocab_size


def masked_rows(config: RunConfig, prepared: AnyPrepared, split: str) -> MaskedRows:
    """Rows with blanks out of ``train``, ``valid`` or ``test``."""
    assert isinstance(config.model, BertConfig) and not isinstance(prepared, PreparedTask)
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


def validation_rows(config: RunConfig, prepared: AnyPrepared) -> Iterable[Batch]:
    """What a model that fills in blanks, translates or answers is judged on while it trains: always the same rows.

    Pairs are those that fit the context.
    """
    if isinstance(prepared, PreparedTask):
        rows = TaskRows(prepared.parts["valid"], prepared.tokenizer, config, training=False)
        return (batch for _, batch in rows.every(VALID_ROWS, config.evaluation.tokens))
    if prepared.source_tokenizer is not None:
        assert prepared.valid is not None
        return held_out_batches(
            prepared.sources["valid"], prepared.valid, prepared.tokenizer.boundary, config.context, VALID_TOKENS,
            config.evaluation.tokens,
        )  # fmt: skip
    return masked_rows(config, prepared, "valid").every(config.evaluation.tokens)
