"""The one protocol that every rung answers, from the bigram to GPT.

A *language model* turns ids and a state into the distribution of the token that follows each id:

    state = model.start(batch)                       # nothing read yet
    log_probs, state = model(ids, state)             # log p(next | everything read so far), per position

so scoring, sampling, beam search, perplexity and the comparison table are written once, over this
protocol. Ids are those of one tokenizer; ``tokenizer.boundary`` opens and closes every document: a
caller feeds it first, and predicting it means "the text ends here". What a model remembers (n-1 words,
hidden vectors, a key-value cache) is its own business and lives in the state, whose rows can be picked
(for beams) and joined (for many users' requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


class State(Protocol):
    """What a model remembers of the text read so far, one row per sequence. Never changed in place."""

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """A state of the given rows, in that order; a row may be repeated or left out."""
        ...

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """One state of all rows of several states that have read equally many tokens."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A distribution over the next token, whatever computes it."""

    vocab_size: int
    """Number of ids that can occur (padding of the output matrix is the model's own business)."""
    context: int | None
    """Most tokens that can be read before the oldest must be dropped; None where there is no limit."""

    def start(self, batch: int, source: Any = None) -> Any:
        """The state before anything has been read, for ``batch`` sequences (given ``source``, in translators)."""
        ...

    def __call__(self, ids: Int[Tensor, "b t"], state: Any) -> tuple[Float[Tensor, "b t v"], Any]:
        """Log-probabilities of the token after each id, and the state after the last."""
        ...

    def log_prob(
        self, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], state: Any
    ) -> tuple[Float[Tensor, "b t"], Any]:
        """Log-probability of ``targets[i]`` after ``ids[..i]`` (0 where the target is -100), and the state.

        Equal to gathering from ``__call__``, without ever holding all of ``[b t v]``.
        """
        ...
