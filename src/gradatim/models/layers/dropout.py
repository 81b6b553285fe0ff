"""Dropout for recurrent models (Gal and Ghahramani, 2016): one mask for all time steps, and whole words at a time."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def locked_dropout(x: Float[Tensor, "b t d"], share: float, training: bool) -> Float[Tensor, "b t d"]:
    """Drop the same units of a row at every time step, and scale the rest to keep the mean."""
    if not training or share == 0.0:
        return x
    mask = x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1.0 - share).div_(1.0 - share)
    return x * mask


def drop_words(weight: Float[Tensor, "v d"], share: float, training: bool) -> Float[Tensor, "v d"]:
    """Drop whole rows of the embedding, so that a word is absent everywhere in the step, and scale the rest."""
    if not training or share == 0.0:
        return weight
    return weight * weight.new_empty(weight.shape[0], 1).bernoulli_(1.0 - share).div_(1.0 - share)
