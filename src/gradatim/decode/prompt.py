"""Reading a prompt: from text to a state from which a model goes on, whatever the model's context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradatim.evaluate.likelihood import model_device
from gradatim.models.protocol import LanguageModel
from gradatim.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Reader:
    """Feeds tokens to a model and re-reads the end of the text when a limited context is full.

    When the context is full, the last half of it is read again from an empty state: every token then has at least
    half a context before it, and the cost per token stays constant.
    """

    model: LanguageModel
    ids: Int[Tensor, "b t"]
    """All tokens so far, the opening boundary included, a row per sequence."""
    state: Any = None
    read: int = 0
    """Tokens in the state."""
    dropped: int = 0
    """Oldest tokens of the prompt that did not fit the context."""

    def begin(self) -> Float[Tensor, "b v"]:
        """Read the prompt; the distribution of what follows."""
        context = self.model.context
        if context is not None and self.ids.shape[1] > context:
            self.dropped = self.ids.shape[1] - context
        kept = self.ids[:, self.dropped :]
        return self._read(kept, self.model.start(len(kept)))

    def opening(self) -> Float[Tensor, "b v"]:
        """Read ``ids`` from the ``state`` at hand, which fits them; the distribution of what follows."""
        return self._read(self.ids, self.state)

    def push(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Append one token per row; the distribution of what follows."""
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        if self.model.context is not None and self.read + 1 > self.model.context:
            half = self.ids[:, -max(1, self.model.context // 2) :]
            self.read = 0
            return self._read(half, self.model.start(len(half)))
        return self._read(tokens[:, None], self.state)

    def select(self, rows: Int[Tensor, " n"]) -> None:
        """Keep the given rows, in that order."""
        self.ids = self.ids[rows]
        self.state = self.state.select(rows)

    def _read(self, ids: Int[Tensor, "b t"], state: Any) -> Float[Tensor, "b v"]:
        # Only the last position's distribution is wanted, and a whole table of them may be large: read all but the
        # last token for the state alone.
        if ids.shape[1] > 1:
            unwanted = torch.full_like(ids[:, :-1], -100)
            _, state = self.model.log_prob(ids[:, :-1], unwanted, state)
        log_probs, self.state = self.model(ids[:, -1:], state)
        self.read += ids.shape[1]
        return log_probs[:, -1]


def read_prompt(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, rows: int = 1
) -> tuple[Reader, Float[Tensor, "b v"]]:
    """A reader that has read a prompt (the empty one opens a document), and the distribution of what follows."""
    ids = torch.tensor([[tokenizer.opening, *tokenizer.encode(prompt)]] * rows, device=model_device(model))
    reader = Reader(model, ids)
    return reader, reader.begin()
