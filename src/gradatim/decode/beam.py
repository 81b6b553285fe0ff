"""Beam search: the likeliest completions, several at a time, with a stop that is provably right.

A finished hypothesis of n tokens and log-probability s is worth s / n^α (length normalisation; α = 0 compares sums,
α = 1 means). A beam that ends gives up its place, so one beam is greedy decoding and the search ends when all have.
It may end sooner: a live hypothesis can only lose, since its sum never rises and dividing it by the largest length
L it may reach (α < 0: the smallest) is the best that can happen to a negative number. Once the wanted number of
hypotheses is finished and the worst of them is worth at least s / L^α for the best live s, no live one can enter.
(Stopping when the likeliest beam ends, as is often done, is wrong for α > 0.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.decode.generate import Completion
from gradatim.decode.prompt import read_prompt
from gradatim.decode.sampling import likeliest
from gradatim.models.protocol import LanguageModel
from gradatim.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Finished:
    """The best finished hypotheses of one search."""

    most: int
    alpha: float
    found: list[tuple[float, float, list[int], bool]] = field(default_factory=list)
    """(worth, log-probability, tokens, ended by the boundary), best first."""

    def add(self, total: float, tokens: list[int], ended: bool) -> None:
        """Consider a finished hypothesis."""
        self.found.append((worth(total, len(tokens), self.alpha), total, tokens, ended))
        self.found.sort(key=lambda item: (-item[0], item[2]))
        del self.found[self.most :]

    def settled(self, best_live: float, length: int) -> bool:
        """Whether no live hypothesis can enter any more."""
        return len(self.found) == self.most and self.found[-1][0] >= worth(best_live, length, self.alpha)


def worth(total: float, length: int, alpha: float) -> float:
    """A log-probability normalised by length."""
    return float(total / max(1, length) ** alpha)


@torch.inference_mode()
def beam_search(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    beams: int = 4,
    max_new: int = 64,
    n_best: int | None = None,
    alpha: float = 1.0,
) -> tuple[list[Completion], int]:
    """The ``n_best`` (default ``beams``) likeliest completions found, best first, and dropped prompt tokens.

    A completion ends with the boundary or after ``max_new`` tokens. With as many beams as there are texts of that
    length it is exhaustive.
    """
    reader, log_probs = read_prompt(model, tokenizer, prompt)
    prefix = reader.ids.shape[1]
    wanted = min(n_best or beams, beams)
    finished = Finished(wanted, alpha)
    totals: Float[Tensor, " live"] = log_probs.new_zeros(1, dtype=torch.float64)
    places = beams
    for position in range(1, max_new + 1):
        vocabulary = log_probs.shape[1]
        candidates = (totals[:, None] + log_probs.double()).flatten()
        values, chosen = likeliest(candidates, places)
        going: list[tuple[int, int, float]] = []
        for value, candidate in zip(values.tolist(), chosen.tolist(), strict=True):
            row, token = divmod(candidate, vocabulary)
            if value == float("-inf"):
                continue
            if token == tokenizer.boundary:
                finished.add(value, [*reader.ids[row, prefix:].tolist(), token], True)
                places -= 1
            elif position == max_new:
                finished.add(value, [*reader.ids[row, prefix:].tolist(), token], False)
            else:
                going.append((row, token, value))
        if not going or finished.settled(going[0][2], max_new if alpha > 0 else position + 1):
            break
        rows, tokens, sums = zip(*going, strict=True)
        reader.select(torch.tensor(rows, device=reader.ids.device))
        totals = torch.tensor(sums, dtype=torch.float64, device=reader.ids.device)
        log_probs = reader.push(torch.tensor(tokens, device=reader.ids.device))
    return [Completion(tokenizer.decode(t), s, len(t), ended) for _, s, t, ended in finished.found], reader.dropped
