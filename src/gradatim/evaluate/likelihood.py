"""How well a model predicts a row of tokens: each predicted once, with as much context as the stride leaves.

A model without a limit reads the row once and carries its state. One with a context of c tokens reads windows of c
that advance by ``stride``; only the last ``stride`` tokens of a window count (all of the first), so every counted
token has at least c - stride tokens before it. Stride 1 gives each token the fullest context and costs c times as
much as stride c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from gradatim.models.protocol import LanguageModel
from gradatim.text.batches import IGNORE, as_read

TOKENS_AT_ONCE = 8192
"""Tokens in one call of a model: large enough for efficient matmuls, small enough for any memory."""


class Stopped(Exception):  # noqa: N818 - it carries a wish, not a fault
    """The caller asked to stop in the middle."""


def log_probs(
    model: LanguageModel,
    tokens: NDArray[Any],
    boundary: int,
    stride: int | None = None,
    rows: int = 1,
    stop: Callable[[], bool] = lambda: False,
    opening: int | None = None,
) -> NDArray[np.float64]:
    """Log-probability in nats of every token, given what opens a text and the tokens before it.

    Args:
        model: any model of the protocol; its device is used.
        tokens: ids, each document closed by ``boundary``.
        stride: advance of the windows of a model with limited context; default half the context.
        rows: cut the row into this many and read them side by side (quicker, with less context at the cuts).
        stop: asked now and then; True raises Stopped.
        opening: what is read before the first token and in the place of every boundary; default the boundary itself.
    """
    parts: list[NDArray[np.float64]] = []
    where = model_device(model)
    for ids, targets in windows(model.context, tokens, boundary, stride, rows, opening):
        if stop():
            raise Stopped
        # A new state per window; the row of an unlimited model comes as one long call, cut up below.
        state = model.start(len(ids))
        step = max(1, TOKENS_AT_ONCE // len(ids))
        pieces = []
        for first in range(0, ids.shape[1], step):
            if stop():
                raise Stopped
            cut = slice(first, first + step)
            found, state = model.log_prob(ids[:, cut].to(where), targets[:, cut].to(where), state)
            pieces.append(found.double().cpu())
        found = torch.cat(pieces, 1)
        parts.append(found[targets != IGNORE].numpy())
    return np.concatenate(parts) if parts else np.zeros(0)


def model_device(model: LanguageModel) -> torch.device:
    """Where a model's parameters lie; n-grams have none and live on the CPU."""
    if isinstance(model, torch.nn.Module):
        return next(model.parameters()).device
    return torch.device("cpu")


def windows(
    context: int | None,
    tokens: NDArray[Any],
    boundary: int,
    stride: int | None,
    rows: int = 1,
    opening: int | None = None,
) -> Iterator[tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]]:
    """Ids and targets of ``log_probs``' reading, -100 where nothing is to be predicted (again).

    With a ``context``, some windows at a time; without, the whole row at once, cut into ``rows``.
    """
    if not len(tokens):
        return
    text = np.concatenate([[boundary], np.asarray(tokens, np.int64)])
    read = as_read(text, boundary, opening)
    if context is None:
        length = -(-(len(text) - 1) // rows)
        where = np.arange(rows)[:, None] * length + np.arange(length)
        inside = where < len(text) - 1
        ids = read[np.where(inside, where, 0)]
        targets = np.where(inside, text[np.where(inside, where + 1, 0)], IGNORE)
        yield torch.from_numpy(ids), torch.from_numpy(targets)
        return
    context = min(context, len(text) - 1)
    stride = min(stride or max(1, context // 2), context)
    # The last window is moved back so that it ends with the text; it counts what the one before it left.
    ends = np.arange(context, len(text) - 1 + stride, stride)
    ends[-1] = min(ends[-1], len(text) - 1)
    counted = np.diff(np.concatenate([[0], ends]))
    reach = np.arange(context)
    many = max(1, TOKENS_AT_ONCE // context)
    for first in range(0, len(ends), many):
        some = slice(first, first + many)
        where = ends[some, None] - context + reach
        new = reach >= context - counted[some, None]
        yield torch.from_numpy(read[where]), torch.from_numpy(np.where(new, text[where + 1], IGNORE))
