"""Judging a translator: the likelihood of the reference translations, and its own against them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradatim.decode.translate import TOKENS_TOGETHER, Translating, translate
from gradatim.evaluate.bleu import Judged, by_source_length, judge
from gradatim.evaluate.likelihood import model_device
from gradatim.text.batches import IGNORE
from gradatim.text.pair_batches import collate
from gradatim.text.pairs import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslationEvaluation(Judged):
    """What ``gradatim evaluate`` answers of a translation run; numbers that do not exist are None."""

    sentences: int
    tokens: int
    """Target tokens predicted, the end of each sentence included."""
    unknown: int
    """Of these, tokens outside the vocabulary."""
    bytes: int
    """UTF-8 bytes of the references, line ends included."""
    nats_per_token: float | None
    perplexity: float | None
    perplexity_without_unknown: float | None
    bits_per_byte: float | None
    sources_cut: int
    """Sentences whose end the context had no room for."""
    references_too_long: int
    """Pairs left out of the likelihood because the context has no room for the reference."""
    seconds: float
    """Taken to translate."""
    sentences_per_second: float
    by_source_length: list[dict[str, Any]]
    """BLEU by words of the source."""


def evaluate_pairs(
    translating: Translating,
    pairs: Sequence[Pair],
    *,
    tokenised: bool,
    beams: int = 5,
    alpha: float = 1.0,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[TranslationEvaluation, list[str]]:
    """Translate the sources, compare with the targets; the figures, and the translations."""
    sources, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    lowercase = translating.tokenizer.lowercase
    found, unknown, longer = likelihood(translating, pairs)
    started = time.perf_counter()
    answers = translate(
        translating, sources, beams=beams, alpha=alpha, stop=lambda done: say(f"{done:,} of {len(pairs):,} translated")
    )
    seconds = time.perf_counter() - started
    hypotheses = [answer.translations[0].text if answer.translations else "" for answer in answers]
    judged = judge(hypotheses, references, lowercase=lowercase, tokenised=tokenised)
    mean = -float(found.mean()) if len(found) else math.nan
    known = found[~unknown]
    size = sum(len(reference.encode()) + 1 for reference in references)
    whole = translating.tokenizer.lossless and not unknown.any() and not longer and math.isfinite(mean)
    return (
        TranslationEvaluation(
            bleu=judged.bleu,
            chrf=judged.chrf,
            signature=judged.signature,
            bleu_tokenised=judged.bleu_tokenised,
            bleu_tokenised_by=judged.bleu_tokenised_by,
            sentences=len(pairs),
            tokens=len(found),
            unknown=int(unknown.sum()),
            bytes=size,
            nats_per_token=mean if math.isfinite(mean) else None,
            perplexity=math.exp(mean) if mean < 700 else None,
            perplexity_without_unknown=math.exp(-float(known.mean())) if len(known) and -known.mean() < 700 else None,
            bits_per_byte=-float(found.sum()) / math.log(2) / size if whole else None,
            sources_cut=sum(answer.cut > 0 for answer in answers),
            references_too_long=longer,
            seconds=seconds,
            sentences_per_second=len(pairs) / seconds,
            by_source_length=by_source_length(sources, hypotheses, references, lowercase),
        ),
        hypotheses,
    )


@torch.inference_mode()
def likelihood(translating: Translating, pairs: Sequence[Pair]) -> tuple[Any, Any, int]:
    """Log-probability of every target token in nats, which are unknown, and how many references were too long."""
    model, tokenizer = translating.model, translating.tokenizer
    sources, _ = translating.encode([pair[0] for pair in pairs])
    end = np.array([tokenizer.boundary])
    targets = [np.append(ids, end) for ids in tokenizer.encode_batch([pair[1] for pair in pairs])]
    kept = [place for place in range(len(pairs)) if len(targets[place]) <= translating.context]
    kept.sort(key=lambda place: (max(len(sources[place]), len(targets[place])), place))
    found, unknown = [np.zeros(0)], [np.zeros(0, bool)]
    start = 0
    while start < len(kept):
        stop = start + 1
        while (
            stop < len(kept)
            and (stop + 1 - start) * max(len(sources[kept[stop]]), len(targets[kept[stop]])) <= TOKENS_TOGETHER
        ):
            stop += 1
        rows = kept[start:stop]
        boundary = translating.source_tokenizer.boundary
        batch = collate([sources[row] for row in rows], [targets[row] for row in rows], tokenizer.boundary, boundary)
        batch = batch.to(model_device(model))
        assert batch.source is not None
        hidden = model.head(model.read(batch.source, batch.ids))
        values = model.head.output.log_prob(hidden, batch.targets)[batch.targets != IGNORE]
        found.append(values.double().cpu().numpy())
        wanted = batch.targets[batch.targets != IGNORE].cpu().numpy()
        unknown.append(wanted == tokenizer.unknown if tokenizer.unknown is not None else np.zeros(len(wanted), bool))
        start = stop
    return np.concatenate(found), np.concatenate(unknown), len(pairs) - len(kept)
