"""Completing a prompt token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradatim.decode.prompt import read_prompt
from gradatim.decode.sampling import Sampling, choose, likeliest
from gradatim.decode.stream import StopAt, TextStream
from gradatim.models.protocol import LanguageModel
from gradatim.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt."""

    text: str
    """What follows the prompt, up to the end of the document, a stop string or the limit."""
    log_probability: float
    """Sum over the completion's tokens, the closing boundary included where it was reached, under the model itself (not
the filters)."""
    tokens: int
    """Tokens generated, the boundary included."""
    ended: bool
    """Whether the model ended the document itself."""


@torch.inference_mode()
def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new: int = 64,
    n: int = 1,
    sampling: Sampling | None = None,
    stop: tuple[str, ...] = (),
    show: Callable[[int, str], None] | None = None,
) -> tuple[list[Completion], int]:
    """Complete a prompt ``n`` times side by side, row r drawing as row r of the seed.

    Args:
        model: any model of the protocol.
        tokenizer: its tokenizer.
        prompt: text; the empty text is the start of a document.
        max_new: most tokens to generate.
        n: completions.
        sampling: how tokens are chosen; greedy by default.
        stop: strings that end a completion and are cut off.
        show: called with (row, text) as text becomes certain.

    Returns: the completions, and how many of the oldest prompt tokens did not fit the model's context.
    """
    sampling = sampling or Sampling()
    sampling.check()
    reader, log_probs = read_prompt(model, tokenizer, prompt, n)
    streams = [(TextStream(tokenizer), StopAt(stop)) for _ in range(n)]
    texts, totals, counts = [""] * n, [0.0] * n, [0] * n
    ended = [False] * n
    live = list(range(n))

    def say(row: int, text: str) -> None:
        texts[row] += text
        if show is not None and text:
            show(row, text)

    for position in range(max_new):
        rows = torch.tensor(live)
        chosen = choose(log_probs, sampling, rows, position, reader.ids, tokenizer.boundary)
        picked = log_probs.gather(1, chosen[:, None])[:, 0].tolist()
        going = []
        for place, (row, token, value) in enumerate(zip(live, chosen.tolist(), picked, strict=True)):
            totals[row] += value
            counts[row] += 1
            if token == tokenizer.boundary:
                ended[row] = True
                continue
            text, until = streams[row]
            say(row, until.push(text.push(token)))
            if not until.stopped:
                going.append(place)
        if not going or position == max_new - 1:
            break
        if len(going) < len(live):
            kept = torch.tensor(going, device=chosen.device)
            reader.select(kept)
            chosen = chosen[kept]
            live = [live[place] for place in going]
        log_probs = reader.push(chosen)
    for row, (text, until) in enumerate(streams):
        if not until.stopped:
            say(row, until.push(text.end()) + until.end())
    completions = [Completion(*facts) for facts in zip(texts, totals, counts, ended, strict=True)]
    return completions, reader.dropped


@torch.inference_mode()
def next_tokens(model: LanguageModel, tokenizer: Tokenizer, prompt: str, top: int = 10) -> list[tuple[int, float]]:
    """The likeliest tokens after a prompt with their probabilities, likeliest first."""
    _, log_probs = read_prompt(model, tokenizer, prompt)
    values, ids = likeliest(log_probs[0], top)
    return list(zip(ids.tolist(), values.exp().tolist(), strict=True))
