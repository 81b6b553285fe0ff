"""The probability of whole sentences: which of several is likeliest to be said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gradatim.errors import ConfigError, Problem
from gradatim.evaluate.likelihood import model_device
from gradatim.models.protocol import LanguageModel
from gradatim.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Score:
    """A sentence with its log-probability in nats, its end included."""

    text: str
    log_probability: float
    tokens: int
    perplexity: float | None
    """exp(-log_probability / tokens); None where the model thinks the sentence impossible."""
    unknown: int = 0
    """Tokens of the one unknown word: they are scored as any unknown word, whatever they are."""


def unknown_tokens(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many of some ids are the unknown word."""
    return 0 if tokenizer.unknown is None else list(ids).count(tokenizer.unknown)


def score_sentences(model: LanguageModel, tokenizer: Tokenizer, sentences: Sequence[str]) -> list[Score]:
    """Score each sentence as a whole document, likeliest first.

    Raises:
        ConfigError: a sentence is longer than the model's context (a probability of its end alone would mislead).
    """
    found = []
    problems = []
    where = model_device(model)
    for sentence in sentences:
        ids = [tokenizer.opening, *tokenizer.encode(sentence), tokenizer.boundary]
        if model.context is not None and len(ids) - 1 > model.context:
            problems.append(
                Problem(
                    where=sentence[:40],
                    what="longer than the model's context",
                    got=f"{len(ids) - 1} tokens",
                    allowed=f"{model.context}",
                    attempt="evaluate RUN --text FILE, which reads long texts in windows",
                )
            )
            continue
        row = torch.tensor([ids], device=where)
        log_probs, _ = model.log_prob(row[:, :-1], row[:, 1:], model.start(1))
        total = float(log_probs.double().sum())
        mean = -total / (len(ids) - 1)
        found.append(
            Score(sentence, total, len(ids) - 1, math.exp(mean) if mean < 700 else None, unknown_tokens(ids, tokenizer))
        )
    if problems:
        raise ConfigError(*problems)
    return sorted(found, key=lambda score: -score.log_probability)
