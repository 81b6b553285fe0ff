"""Perplexity and bits per byte of a text under a model.

Perplexities compare only between models of one tokenizer; bits per byte, the nats of the whole text / ln 2 / its
UTF-8 bytes, compare between all that lose nothing of the text. The token that closes each document is predicted and
counted like any other (as KenLM counts ``</s>``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradatim.config.settings import DataConfig
from gradatim.errors import DataError, Problem
from gradatim.evaluate.likelihood import log_probs
from gradatim.models.protocol import LanguageModel
from gradatim.text.sources import Tally, read_documents
from gradatim.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What ``gradatim evaluate`` answers; numbers that do not exist are None."""

    tokens: int
    """Tokens predicted, the end of each document included."""
    unknown: int
    """Of these, tokens that stand for words or characters outside the vocabulary."""
    impossible: int
    """Of these, tokens to which the model gave probability 0."""
    bytes: int
    """UTF-8 bytes of the text."""
    nats_per_token: float | None
    perplexity: float | None
    perplexity_without_unknown: float | None
    bits_per_byte: float | None
    """None where the tokenizer loses text, so that its nats describe less than the bytes."""


def evaluate_tokens(
    model: LanguageModel, tokenizer: Tokenizer, tokens: NDArray[Any], text_bytes: int, stride: int | None = None
) -> Evaluation:
    """Judge a model on tokens of documents that each end with the boundary."""
    found = log_probs(model, tokens, tokenizer.boundary, stride, opening=tokenizer.opening)
    unknown = np.asarray(tokens) == tokenizer.unknown if tokenizer.unknown is not None else np.zeros(len(tokens), bool)
    impossible = np.isneginf(found)
    nats = math.inf if impossible.any() else float(-found.sum())
    whole = tokenizer.lossless and not unknown.any()
    known = found[~unknown]
    mean = nats / len(tokens) if len(tokens) else math.nan
    return Evaluation(
        tokens=len(tokens),
        unknown=int(unknown.sum()),
        impossible=int(impossible.sum()),
        bytes=text_bytes,
        nats_per_token=_finite(mean),
        perplexity=_exp(mean),
        perplexity_without_unknown=_exp(float(-known.mean())) if len(known) else None,
        bits_per_byte=_finite(nats / math.log(2) / text_bytes) if whole and text_bytes else None,
    )


def evaluate_file(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: DataConfig,
    path: Path,
    stride: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Judge a model on a file, cut into documents as its training text was; what was odd about it is said."""
    return evaluate_text(model, tokenizer, data, (str(path),), stride, say, where="--text")


def evaluate_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: DataConfig,
    names: tuple[str, ...],
    stride: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    split: str = "test",
    where: str = "",
) -> Evaluation:
    """As ``evaluate_file``, on all that some names stand for; ``where`` they were named, if not in ``data.SPLIT``."""
    tally = Tally()
    documents, told = list(read_documents(names, split, data, tally, where)), ", ".join(names)
    if not documents:
        raise DataError(Problem(where=told, what="there is no text in it", attempt="name a file that holds text"))
    tally.tell(say, told)
    end = np.array([tokenizer.boundary])
    tokens = np.concatenate([part for ids in tokenizer.encode_batch(documents) for part in (ids, end)])
    return evaluate_tokens(model, tokenizer, tokens, tally.bytes, stride)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _exp(value: float) -> float | None:
    return math.exp(value) if value < 700 else None
