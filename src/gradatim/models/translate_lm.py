"""Translation as completion, by one language model: it reads source, mark, and goes on in the other language.

    <boundary> je suis étudiant <boundary> I am a student <boundary>

The model is an LSTM or GRU language model, or a GPT with rotary positions (Sutskever et al. 2014 without a second
network; decoder-only translation as in Gao et al. 2022). With a *prefix* mask the words of the source see each other
in both directions (Dong et al. 2019; Raffel et al. 2020). The loss is that of the target, or of both sentences.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.config.settings_translators import TranslateLmConfig
from gradatim.models.gpt import GPT
from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.init import Init
from gradatim.models.layers.output import Head
from gradatim.models.recurrent import RecurrentLM
from gradatim.models.translator import Translator, needs_source
from gradatim.shapes.translate_lm import body_of
from gradatim.text.batches import IGNORE, Source


class TranslateLM(Translator):
    """A language model whose texts are a source and its target; ``body`` is that model."""

    equal_sources: ClassVar[bool] = True
    context: int

    def __init__(self, config: TranslateLmConfig, vocab_size: int, context: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.source_vocab_size = config, vocab_size, vocab_size
        self.context, self.label_smoothing = context, config.label_smoothing
        inner = body_of(config)
        self.body: GPT | RecurrentLM
        self.body = RecurrentLM(inner, vocab_size) if inner.kind != "gpt" else GPT(inner, vocab_size, 2 * context)

    @property
    def embed(self) -> Embedding:  # type: ignore[override]  # the parts are the body's
        """The body's."""
        return self.body.embed

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The body's."""
        return self.body.blocks

    @property
    def head(self) -> Head:  # type: ignore[override]
        """The body's."""
        return self.body.head

    def initial(self, name: str) -> Init:
        """As the body's."""
        return self.body.initial(name.removeprefix("body."))

    # ------------------------------------------------------------------ training

    def read(self, source: Source, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """See ``Translator``."""
        hidden = self._whole(source, ids)
        place = source.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
        return hidden.gather(1, place[:, :, None].expand(-1, -1, hidden.shape[2]))

    def terms(self, source: Source, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """See ``Translator``; where the loss is on all, source words are targets as well."""
        if self.config.loss_on == "target":
            return super().terms(source, ids, targets)
        hidden = self._whole(source, ids)
        wanted = _after_each_other(source.ids, source.lengths, targets, IGNORE)
        return self.smoothed(self.head(hidden), wanted)

    def _whole(self, source: Source, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b st d"]:
        """Hidden vectors of both sentences, the target right behind the source."""
        together = _after_each_other(opened(source), source.lengths, ids, int(ids[0, 0]))
        if not isinstance(self.body, GPT) or self.config.mask == "causal":
            return self.body.hidden(together)[0]
        place = torch.arange(together.shape[1], device=ids.device)
        prefix = place < source.lengths[:, None]  # b st
        mask = (place[:, None] >= place)[None] | (prefix[:, :, None] & prefix[:, None])
        x = self.body.enter(together)
        for block in self.body.blocks:
            x = block(x, self.body.rotation, mask=mask[:, None])
        return x

    # ------------------------------------------------------------------ decoding

    def start(self, batch: int, source: Source | None = None, attention: bool = False) -> Any:
        """The body's state after the source, whose rows must be equally long; attention is not shown."""
        source = needs_source(source)
        if bool((source.lengths != source.ids.shape[1]).any()):
            raise ValueError("one language model reads sources of one length at a time")
        ids = opened(source)
        state: Any = self.body.start(batch)
        if not isinstance(self.body, GPT) or self.config.mask == "causal":
            return self.body.hidden(ids, state)[1]
        assert self.body.rotation is not None
        x, t = self.body.enter(ids), ids.shape[1]
        everything: Bool[Tensor, "t t"] = torch.ones(t, t, dtype=torch.bool, device=ids.device)
        state = state.reserve(t, most=self.body.context)
        for layer, block in enumerate(self.body.blocks):
            x = block(x, self.body.rotation, state, layer, everything)
        return state

    def hidden(self, ids: Int[Tensor, "b t"], state: Any = None) -> tuple[Float[Tensor, "b t d"], Any]:
        """The body's."""
        if state is None:
            raise ValueError("a translator starts from source sentences: start(batch, source)")
        return self.body.hidden(ids, state)


def opened(source: Source) -> Int[Tensor, "b s"]:
    """The source as a document that opens with the boundary: ``a b c <boundary>`` to ``<boundary> a b c``."""
    last = source.ids.gather(1, source.lengths[:, None] - 1)
    return torch.cat([last, source.ids[:, :-1]], 1)


def _after_each_other(
    first: Int[Tensor, "b s"], lengths: Int[Tensor, " b"], second: Int[Tensor, "b t"], fill: int
) -> Int[Tensor, "b st"]:
    """Row by row, ``lengths`` entries of the first, then all of the second, then ``fill``."""
    s, t = first.shape[1], second.shape[1]
    place = torch.arange(s + t, device=first.device)
    behind = place - lengths[:, None]
    one = first.gather(1, place.clamp(max=s - 1).expand(len(first), -1))
    other = second.gather(1, behind.clamp(0, t - 1))
    return torch.where(behind < 0, one, torch.where(behind < t, other, fill))
