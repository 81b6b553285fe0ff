"""BLEU and chrF by sacreBLEU, BLEU over given tokens, BLEU by source length, and whether a difference is one.

sacreBLEU (Post, 2018) tokenises by itself and signs its figure with how. ``bleu_tokenised`` counts n-grams of tokens
as they stand between spaces where the data is tokenised, else of sacreBLEU's 13a tokens in lower case: the older
papers' figure, never to be mixed with the other. sacreBLEU is meant for text as people write it; of tokenised text its
figure is still shown, but its signature then ends with ``|text:tokenised``, which sacreBLEU's own never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
"""Bootstrap samples of the test set (Koehn, 2004)."""
EDGES = (1, 6, 11, 16, 21, 31, 41)
"""First source lengths, in words, of the rows of BLEU by length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """How translations compare with their references."""

    bleu: float
    chrf: float
    signature: str
    """sacreBLEU's, of ``bleu``; where the text is tokenised, that is added."""
    bleu_tokenised: float
    bleu_tokenised_by: str
    """What cut the tokens of ``bleu_tokenised``."""


def judge(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool, tokenised: bool) -> Judged:
    """Compare translations with one reference each.

    Args:
        hypotheses: the translations.
        references: as many.
        lowercase: compare without regard to case, since the model writes lower case only.
        tokenised: the texts have spaces between all tokens.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metric = BLEU(lowercase=lowercase, force=True)  # its warning about tokenised text is ours to give: ``remark``
    score = metric.corpus_score(list(hypotheses), [list(references)])
    by = "the text's own spaces" if tokenised else "13a"
    older = BLEU(tokenize="none" if tokenised else "13a", lowercase=lowercase or not tokenised, force=True)
    if lowercase or not tokenised:
        by += ", lower case"
    return Judged(
        bleu=float(score.score),
        chrf=float(CHRF(lowercase=lowercase).corpus_score(list(hypotheses), [list(references)]).score),
        signature=str(metric.get_signature()) + ("|text:tokenised" if tokenised else ""),
        bleu_tokenised=float(older.corpus_score(list(hypotheses), [list(references)]).score),
        bleu_tokenised_by=by,
    )


def remark(references: Sequence[str], tokenised: bool) -> str | None:
    """What is to be said of ``bleu`` where the text is tokenised, or looks like it and is not said to be."""
    if tokenised:
        return (
            "the text is tokenised (data.tokenised), and bleu cuts it once more: not comparable with figures of text "
            "as people write it; bleu_tokenised counts the tokens as they stand"
        )
    looks = sum(reference.rstrip().endswith(" .") for reference in references)
    if 2 * looks <= len(references):
        return None
    return (
        f"WARNING: {looks:,} of {len(references):,} references end in a full stop after a space, as tokenised text "
        "does: bleu is meant for text as people write it; with data.tokenised true, bleu_tokenised counts the tokens "
        "as they stand"
    )


def by_source_length(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], lowercase: bool
) -> list[dict[str, Any]]:
    """BLEU of the sentences of each range of source lengths: where a model without attention falls behind."""
    from sacrebleu.metrics.bleu import BLEU

    rows = []
    lengths = np.array([len(source.split()) for source in sources])
    for first, after in zip(EDGES, (*EDGES[1:], None)):
        inside = np.nonzero((lengths >= first) & (lengths < (after or np.inf)))[0].tolist()
        if len(inside):
            score = BLEU(lowercase=lowercase, force=True).corpus_score(
                [hypotheses[i] for i in inside], [[references[i] for i in inside]]
            )
            words = f"{first}-{after - 1}" if after else f"{first} and more"
            rows.append({"words": words, "sentences": len(inside), "bleu": float(score.score)})
    return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One run against another, on the same sentences."""

    difference: float
    """BLEU of the one less that of the other."""
    low: float
    high: float
    """Between which 95 % of the resampled differences lie."""
    p: float
    """How often chance alone makes a difference as large (two-sided)."""


def compare(
    one: Sequence[str], other: Sequence[str], references: Sequence[str], *, lowercase: bool, seed: int = 0
) -> Comparison:
    """Paired bootstrap: resample the sentences, and see how the difference of BLEU varies (Koehn, 2004).

    p is that of the differences shifted to mean zero (Riezler and Maxwell, 2005).
    """
    from sacrebleu.metrics.bleu import BLEU

    facts = [sentence_counts(texts, references, lowercase) for texts in (one, other)]

    def difference(weights: Any) -> float:
        scores = []
        for each in facts:
            total = weights @ each
            scores.append(
                BLEU.compute_bleu(
                    correct=total[:4].tolist(), total=total[4:8].tolist(), sys_len=int(total[8]),
                    ref_len=int(total[9]), smooth_method="exp",
                ).score
            )  # fmt: skip
        return float(scores[0] - scores[1])

    count = len(references)
    draw = np.random.Generator(np.random.PCG64(seed))
    real = difference(np.ones(count, np.int64))
    drawn = draw.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    found = np.array([difference(weights) for weights in drawn])
    extreme = int((np.abs(found - found.mean()) >= abs(real)).sum())
    low, high = np.percentile(found, [2.5, 97.5])
    return Comparison(difference=real, low=float(low), high=float(high), p=(extreme + 1) / (RESAMPLES + 1))


def sentence_counts(hypotheses: Sequence[str], references: Sequence[str], lowercase: bool) -> Any:
    """``[n, 10]``: per sentence the matched and all n-grams of orders 1 to 4, and both lengths; they add up."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(lowercase=lowercase, effective_order=True)
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        score = metric.sentence_score(hypothesis, [reference])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, np.int64)
