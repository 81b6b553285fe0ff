"""What all neural language models share: the protocol's answers, derived from ``embed``, ``blocks`` and ``head``.

A neural model is three parts in a row, so that it can be cut anywhere (pipeline stages, frozen bodies, other heads):

    embed   ids -> vectors          blocks   vectors -> vectors, an ordered list          head   norm and output matrix

Training reads ``hidden`` (embed and blocks) and ``nll`` (the loss as a function of hidden vectors and head, so that all
logits of a large vocabulary never exist at once). ``__call__`` and ``log_prob`` are inference: they build no graph, and
drop nothing when the model is in evaluation mode.

Whoever cuts a model calls ``keep`` on each copy and hands on vectors: ``nll(run(… run(enter(ids))))``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.init import Init
from gradatim.models.layers.output import Head

Recompute = Literal["none", "selective", "full"]
"""Nothing, the attention core (Korthikanti et al. 2022, arXiv:2205.05198), or all but each block's input."""


class NeuralModel(nn.Module, ABC):
    """Base of all networks: three parts that can be cut apart. What is fed to them is an objective's business."""

    vocab_size: int
    context: int | None
    carries_state: bool = False
    """Whether training hands the state of one step to the next (truncated back-propagation through time)."""
    embed: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    """The rest of the model; its output weight may be the input embedding's."""
    recompute: Recompute = "none"
    """What ``run`` does not store for the backward pass but computes again there."""

    def keep(self, layers: Sequence[int], *, embed: bool, head: bool) -> None:
        """Drop all but these blocks and ends; ``embed`` and ``head`` become None, names stay those of the whole model.

        Block 7 remains ``blocks.7`` though it may be the first of those held, so blocks are iterated over, not indexed.
        """
        kept = nn.ModuleList()
        for layer in layers:
            kept.add_module(str(layer), self.blocks[layer])
        self.blocks = kept
        if not embed:
            self.embed = None  # type: ignore[assignment]  # a model with all its parts is the rule
        if not head:
            self.head = None  # type: ignore[assignment]

    def set_recompute(self, what: Recompute) -> None:
        """Choose what the backward pass computes again."""
        if what != "none":
            raise ValueError(f"{type(self).__name__} stores everything, recompute {what!r} is not offered")

    @abstractmethod
    def initial(self, name: str) -> Init:
        """How the parameter of that name is drawn before training."""

    def parameter_count(self) -> int:
        """Trainable numbers; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


class NeuralLanguageModel(NeuralModel):
    """Base of the window, recurrent and Transformer language models."""

    embed: Embedding
    head: Head

    @abstractmethod
    def start(self, batch: int, source: Any = None) -> Any:
        """The state before anything has been read."""

    @abstractmethod
    def hidden(self, ids: Int[Tensor, "b t"], state: Any = None) -> tuple[Float[Tensor, "b t d"], Any]:
        """Vectors after the last block at each position, and the state after the last position.

        With ``state=None`` the text starts here and, where a state is only good for decoding (a key-value cache), none
        is built: this is training's call.
        """

    def enter(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """What the first block reads of texts that start here."""
        x: Tensor = self.embed(ids)
        return x

    @abstractmethod
    def run(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The blocks this model holds, as training calls them: ``hidden(ids)`` is ``run(enter(ids))``."""

    def nll(self, hidden: Float[Tensor, "b t d"], targets: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Sum of -log p(target) in nats over the targets that are not -100."""
        return self.head.output.nll(self.head(hidden), targets)

    @torch.no_grad()
    def forward(self, ids: Int[Tensor, "b t"], state: Any) -> tuple[Float[Tensor, "b t v"], Any]:
        """Log-probabilities of the next token at each position (the protocol's ``__call__``); no gradient."""
        hidden, state = self.hidden(ids, state)
        return self.head.output.log_probs(self.head(hidden)), state

    @torch.no_grad()
    def log_prob(
        self, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], state: Any
    ) -> tuple[Float[Tensor, "b t"], Any]:
        """Log-probability of each target, 0 where it is -100; no gradient, no full table of logits."""
        hidden, state = self.hidden(ids, state)
        return self.head.output.log_prob(self.head(hidden), targets), state
