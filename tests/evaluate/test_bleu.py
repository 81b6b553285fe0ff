"""BLEU and chrF against sacreBLEU itself, BLEU by length, and the bootstrap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sacrebleu

from gradatim.evaluate.bleu import by_source_length, compare, judge, remark, sentence_counts

REFERENCES = [
    "The small cat sat on the old mat .", "I am a student , and she is a teacher .", "they don't like the red house",
    "it is raining in the garden today", "we have never seen such a large bird",
]  # fmt: skip
GOOD = [
    REFERENCES[0],
    "I am a student , and she is teacher .",
    REFERENCES[2],
    "it rains in the garden today",
    REFERENCES[4],
]
BAD = ["the cat sat", "I am student", "they like house", "rain in garden", "we have seen a bird such large"]


def test_figures_and_signature_are_sacrebleu_s() -> None:
    found = judge(GOOD, REFERENCES, lowercase=False, tokenised=False)
    assert found.bleu == sacrebleu.corpus_bleu(GOOD, [REFERENCES]).score
    assert found.chrf == sacrebleu.corpus_chrf(GOOD, [REFERENCES]).score
    assert "tok:13a" in found.signature and "case:mixed" in found.signature
    assert found.bleu_tokenised_by == "13a, lower case"
    folded = judge([text.lower() for text in GOOD], REFERENCES, lowercase=True, tokenised=False)
    assert folded.bleu == pytest.approx(sacrebleu.corpus_bleu(GOOD, [REFERENCES], lowercase=True).score)
    assert "case:lc" in folded.signature


def test_tokenised_bleu_forgives_case_where_the_model_has_none() -> None:
    found = judge(["the cat sat on the mat ."], ["The cat sat on the Mat ."], lowercase=True, tokenised=True)
    assert (
        found.bleu_tokenised == pytest.approx(100.0) and found.bleu_tokenised_by == "the text's own spaces, lower case"
    )
    strict = judge(["the cat sat on the mat ."], ["The cat sat on the Mat ."], lowercase=False, tokenised=True)
    assert strict.bleu_tokenised < 60 and strict.bleu_tokenised_by == "the text's own spaces"


def test_tokenised_bleu_counts_what_spaces_separate() -> None:
    """Against BLEU written out: the geometric mean of clipped n-gram precisions, and the brevity penalty."""

    def grams(text: str, n: int) -> dict[tuple[str, ...], int]:
        words, counts = text.split(), {}
        for i in range(len(words) - n + 1):
            gram = tuple(words[i : i + n])
            counts[gram] = counts.get(gram, 0) + 1
        return counts

    logs = 0.0
    for n in range(1, 5):
        hit = sum(min(c, grams(r, n).get(g, 0)) for h, r in zip(GOOD, REFERENCES) for g, c in grams(h, n).items())
        logs += math.log(hit / sum(sum(grams(h, n).values()) for h in GOOD)) / 4
    ours, theirs = (sum(len(text.split()) for text in texts) for texts in (GOOD, REFERENCES))
    expected = 100 * math.exp(logs + min(0.0, 1 - theirs / ours))
    found = judge(GOOD, REFERENCES, lowercase=False, tokenised=True)
    assert found.bleu_tokenised == pytest.approx(expected)
    assert found.bleu_tokenised_by == "the text's own spaces"
    assert found.signature.endswith("|text:tokenised")


def test_tokenised_text_is_remarked_on_once_and_by_us(capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    texts = ["a cat sat on a mat ."] * 120  # from a hundred on sacreBLEU warns by itself
    assert "text:" not in judge(texts, texts, lowercase=False, tokenised=False).signature
    by_source_length(texts, texts, texts, lowercase=False)
    compare(texts, texts, texts, lowercase=False)
    assert capsys.readouterr().err == "" and not caplog.records
    assert "120 of 120 references end in a full stop" in (remark(texts, tokenised=False) or "")
    assert "not comparable" in (remark(texts, tokenised=True) or "")
    assert remark([text.replace(" .", ".") for text in texts], tokenised=False) is None


def test_sentence_counts_add_up_to_the_corpus() -> None:
    total = sentence_counts(GOOD, REFERENCES, lowercase=False).sum(0)
    whole = sacrebleu.corpus_bleu(GOOD, [REFERENCES])
    assert total.tolist() == [*whole.counts, *whole.totals, whole.sys_len, whole.ref_len]


def test_bleu_by_source_length_covers_every_sentence() -> None:
    sources = ["a b", " ".join("x" * 12), "a b c d e f", "a", " ".join("y" * 50)]
    rows = by_source_length(sources, REFERENCES, REFERENCES, lowercase=False)
    assert [(row["words"], row["sentences"]) for row in rows] == [
        ("1-5", 2), ("6-10", 1), ("11-15", 1), ("41 and more", 1),
    ]  # fmt: skip
    assert all(row["bleu"] == pytest.approx(100.0) for row in rows)


def test_the_bootstrap_tells_a_difference_from_none() -> None:
    references = REFERENCES * 12
    found = compare(GOOD * 12, BAD * 12, references, lowercase=False)
    whole = [sacrebleu.corpus_bleu(texts * 12, [references]).score for texts in (GOOD, BAD)]
    assert found.difference == pytest.approx(whole[0] - whole[1])
    assert found.low < found.difference < found.high and found.low > 0
    assert found.p < 0.01
    same = compare(GOOD * 12, GOOD * 12, references, lowercase=False)
    assert (same.difference, same.p) == (0.0, 1.0)
    noise = np.random.default_rng(0).permutation(len(references))
    one = [GOOD[i % 5] if i in noise[:30] else REFERENCES[i % 5] for i in range(60)]
    other = [GOOD[i % 5] if i in noise[30:] else REFERENCES[i % 5] for i in range(60)]
    assert compare(one, other, references, lowercase=False).p > 0.05
