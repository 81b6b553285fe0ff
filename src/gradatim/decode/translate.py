"""Translating sentences: batched beam search over any translator, and where it looked while it wrote.

Sentences of like length are translated together, so little is spent on padding; the answers come in the order of the
sentences. A translation has at most twice the tokens of its source and a few more, and never more than the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradatim.decode.prompt import Reader
from gradatim.decode.search import Hypothesis, search
from gradatim.evaluate.likelihood import model_device
from gradatim.models.translator import Translator
from gradatim.text.pair_batches import stack
from gradatim.text.tokenizer import Ids, Tokenizer

TOKENS_TOGETHER = 1536
"""Source tokens translated at once, padding included."""
SLACK = 10
"""Tokens that a translation may have beyond twice its source's."""


@dataclass(frozen=True, slots=True)
class Translation:
    """One translation of a sentence."""

    text: str
    log_probability: float
    """Given the source, its end included, in nats."""
    tokens: list[int]
    """Its ids, the closing boundary included where it was reached."""
    ended: bool
    """Whether the model ended it, and not the limit."""
    attention: Float[Tensor, "names t s"] | None = None
    """For each token the weights over the source's tokens, of each attention that the model names."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A sentence with its translations, best first; none where it is empty."""

    source: str
    source_tokens: list[int]
    """As the model read them, the closing boundary included."""
    cut: int
    """Tokens at the end of the sentence that the context had no room for."""
    unknown: int
    """Tokens that stand for words outside the vocabulary."""
    translations: list[Translation]
    unknown_given: int = 0
    """The same of a translation that was given (``align``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Translating:
    """A translator with its tokenizers."""

    model: Translator
    source_tokenizer: Tokenizer
    tokenizer: Tokenizer
    context: int
    """Most tokens of a side, the boundary included."""

    def encode(self, sentences: Sequence[str]) -> tuple[list[Ids], list[int]]:
        """The ids of sentences, each closed by the boundary, and how many tokens of each did not fit."""
        found, cut = [], []
        for ids in self.source_tokenizer.encode_batch(sentences):
            kept = ids[: self.context - 1]
            cut.append(len(ids) - len(kept))
            found.append(np.append(kept, self.source_tokenizer.boundary))
        return found, cut


def translate(
    translating: Translating,
    sentences: Sequence[str],
    *,
    beams: int = 5,
    n_best: int = 1,
    alpha: float = 1.0,
    max_new: int | None = None,
    attention: bool = False,
    stop: Callable[[int], None] = lambda done: None,
) -> list[Translated]:
    """Translate sentences.

    Args:
        translating: model and tokenizers.
        sentences: one text each.
        beams: hypotheses followed at a time; 1 is greedy.
        n_best: translations of each.
        alpha: hypotheses compare log-probability / length^alpha.
        max_new: most tokens of a translation; by default twice the source's and ``SLACK``.
        attention: whether translations show where the model looked.
        stop: told how many sentences are done, now and then.
    """
    encoded, cut = translating.encode(sentences)
    model, tokenizer = translating.model, translating.tokenizer
    found: list[list[Translation]] = [[] for _ in sentences]
    places = [place for place, sentence in enumerate(sentences) if sentence.strip()]
    done = len(sentences) - len(places)
    for group in together(places, [len(ids) for ids in encoded], model.equal_sources):
        limits = [min(translating.context, max_new or 2 * len(encoded[place]) + SLACK) for place in group]
        answers = _search(
            model, [encoded[place] for place in group], tokenizer.boundary, translating.source_tokenizer.boundary,
            limits, beams, n_best, alpha, attention,
        )  # fmt: skip
        for place, hypotheses in zip(group, answers, strict=True):
            length = len(encoded[place])
            found[place] = [_translation(each, tokenizer, length) for each in hypotheses]
        done += len(group)
        stop(done)
    unknown = translating.source_tokenizer.unknown
    return [
        Translated(
            sentence, ids.tolist(), lost, 0 if unknown is None else int(np.count_nonzero(ids == unknown)), answers
        )
        for sentence, ids, lost, answers in zip(sentences, encoded, cut, found, strict=True)
    ]


@torch.inference_mode()
def _search(
    model: Translator,
    sources: list[Ids],
    boundary: int,
    source_boundary: int,
    limits: list[int],
    beams: int,
    n_best: int,
    alpha: float,
    attention: bool,
) -> list[list[Hypothesis]]:
    where = model_device(model)
    state = model.start(len(sources), stack(sources, source_boundary).to(where), attention=attention)
    reader = Reader(model, torch.full((len(sources), 1), boundary, device=where), state)
    return search(
        reader, reader.opening(), limits, boundary=boundary, beams=beams, n_best=n_best, alpha=alpha,
        attention=attention,
    )  # fmt: skip


def _translation(found: Hypothesis, tokenizer: Tokenizer, length: int) -> Translation:
    shown = None if found.attention is None else found.attention[:, :, :length]
    return Translation(tokenizer.decode(found.tokens), found.log_probability, found.tokens, found.ended, shown)


def together(places: list[int], lengths: list[int], equal: bool) -> Iterator[list[int]]:
    """Sentences of like length together, the longest first; ``equal``: of the same length only."""
    group: list[int] = []
    for place in sorted(places, key=lambda place: (-lengths[place], place)):
        longest = lengths[group[0]] if group else 0
        if group and ((len(group) + 1) * longest > TOKENS_TOGETHER or (equal and lengths[place] != longest)):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


@torch.inference_mode()
def align(translating: Translating, source: str, target: str) -> Translated:
    """Forced decoding: the given translation's log-probability, and where the model looks while it reads it.

    Raises:
        ValueError: the translation is longer than the context.
    """
    (ids,), (cut,) = translating.encode([source])
    model, tokenizer = translating.model, translating.tokenizer
    tokens = [*tokenizer.encode(target), tokenizer.boundary]
    if len(tokens) > translating.context:
        raise ValueError(f"{len(tokens)} tokens do not fit the context of {translating.context}")
    where = model_device(model)
    state = model.start(1, stack([ids], translating.source_tokenizer.boundary).to(where), attention=True)
    read = torch.tensor([[tokenizer.boundary, *tokens[:-1]]], device=where)
    found, state = model.log_prob(read, torch.tensor([tokens], device=where), state)
    shown = getattr(state, "attention", None)
    given = Translation(target, float(found.double().sum()), tokens, True, None if shown is None else shown[0])
    unknown, strange = translating.source_tokenizer.unknown, tokenizer.unknown
    return Translated(
        source, ids.tolist(), cut, 0 if unknown is None else ids.tolist().count(unknown), [given],
        0 if strange is None else tokens.count(strange),
    )  # fmt: skip
