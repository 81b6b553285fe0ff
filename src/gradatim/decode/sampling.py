"""Choosing the next token from a distribution: greedy, temperature, top-k, top-p, min-p, repetition penalty.

Random numbers are a function of (seed, row, position): no generator is carried along, so what one row draws does
not depend on which other rows are in the batch or on how the work was cut up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.errors import ConfigError, Problem
from gradatim.text.order import mix


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to choose. The filters apply in the order of the fields; the default is greedy."""

    temperature: float = 0.0
    """0 takes the likeliest token; 1 the model's own distribution; above 1 flatter."""
    repetition_penalty: float = 1.0
    """Log-probabilities of tokens that occurred are multiplied by this (Keskar et al. 2019), the boundary's never."""
    top_k: int | None = None
    """Only the k likeliest (Fan et al. 2018)."""
    top_p: float | None = None
    """Only the likeliest that together hold this much probability (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Only those at least this fraction as likely as the likeliest (Nguyen et al. 2024)."""
    seed: int = 0
    """What random draws depend on, with row and position."""

    def problems(self) -> list[Problem]:
        """Everything out of range."""
        found = []

        def hold(name: str, value: float | None, good: bool, allowed: str) -> None:
            if value is not None and not (good and math.isfinite(value)):
                found.append(Problem(where=f"--{name}", what="out of range", got=str(value), allowed=allowed))

        hold("temperature", self.temperature, self.temperature >= 0, "0 or more, finite")
        hold("repetition-penalty", self.repetition_penalty, self.repetition_penalty >= 1, "1 or more, finite")
        hold("top-k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more")
        hold("top-p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1")
        hold("min-p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "0 to 1")
        return found

    def check(self) -> None:
        """Raise ConfigError with everything out of range."""
        if found := self.problems():
            raise ConfigError(*found)

    @property
    def greedy(self) -> bool:
        """Whether the choice is the likeliest token, so that nothing needs sorting or drawing."""
        return self.temperature == 0.0


def uniform(seed: int, rows: Int[Tensor, " b"], position: int) -> Float[Tensor, " b"]:
    """A number in [0, 1) per row, from a hash of (seed, row, position)."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)
    place = np.array([position], np.uint64)
    bits = mix(mix(mix(key) ^ rows.cpu().numpy().astype(np.uint64)) ^ place)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def choose(
    log_probs: Float[Tensor, "b v"],
    sampling: Sampling,
    rows: Int[Tensor, " b"],
    position: int,
    seen: Int[Tensor, "b t"] | None = None,
    boundary: int | None = None,
) -> Int[Tensor, " b"]:
    """One token per row.

    Args:
        log_probs: the model's distribution.
        sampling: how to choose.
        rows: the number that stands for each row in random draws.
        position: likewise, the position of the token in its text.
        seen: ids that the repetition penalty applies to.
        boundary: an id that it never applies to.
    """
    if sampling.repetition_penalty != 1.0 and seen is not None:
        log_probs = log_probs.double()  # float32 would round the penalty
        own = log_probs.gather(1, seen)
        spared = seen.eq(-1 if boundary is None else boundary)
        log_probs = log_probs.scatter(1, seen, torch.where(spared, own, own * sampling.repetition_penalty))
    if sampling.greedy:
        return log_probs.argmax(-1)
    weights = filtered(log_probs, sampling)
    # The inverse of the distribution function at a uniform number: the first token whose cumulated weight exceeds it.
    cumulated = weights.cumsum(-1)
    drawn = uniform(sampling.seed, rows, position).to(cumulated.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, drawn, right=True)[:, 0].clamp(max=log_probs.shape[1] - 1)


def filtered(log_probs: Float[Tensor, "b v"], sampling: Sampling) -> Float[Tensor, "b v"]:
    """Weights after temperature and filters, proportional to probabilities; at least one is positive."""
    # The largest is taken off first, and in float64, so that any temperature above 0 can divide what is left.
    below = log_probs.double() - log_probs.double().amax(-1, keepdim=True)
    weights = torch.exp(below / sampling.temperature)
    if sampling.top_k is not None and sampling.top_k < weights.shape[1]:
        least = weights.topk(sampling.top_k, dim=-1).values[:, -1:]
        weights = weights.masked_fill(weights < least, 0.0)  # as likely as the k-th are all kept
    if sampling.top_p is not None and sampling.top_p < 1.0:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        keep = before < sampling.top_p * ordered.sum(-1, keepdim=True)
        weights = weights * torch.zeros_like(keep).scatter(1, order, keep)
    if sampling.min_p is not None:
        weights = weights.masked_fill(weights < sampling.min_p * weights.amax(-1, keepdim=True), 0.0)
    return weights


def likeliest(values: Float[Tensor, " n"], most: int) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The ``most`` largest, largest first, and where they are; equals in order, which ``topk`` leaves open."""
    least = values.topk(min(most, len(values))).values[-1]
    places = (values >= least).nonzero()[:, 0]
    places = places[values[places].argsort(descending=True, stable=True)[:most]]
    return values[places], places
