"""Figures worked by hand; where formulas have special cases, what they reduce to."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradatim.evaluate import metrics


def test_two_labels_by_hand() -> None:
    """Of 10 rows: 3 hits, 1 false alarm, 2 misses, 4 rightly left alone."""
    truth = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    found = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    table = metrics.confusion(truth, found, 2)
    assert table.tolist() == [[4, 1], [2, 3]]
    assert metrics.accuracy(table) == 0.7
    no, yes = metrics.label_scores(table, ("no", "yes"))
    assert (yes.precision, yes.recall, yes.support) == (3 / 4, 3 / 5, 5)
    assert yes.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert (no.precision, no.recall) == (4 / 6, 4 / 5)
    # Matthews 1975: (TP·TN - FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN))
    assert metrics.matthews(table) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))


def test_three_labels_by_hand() -> None:
    table = np.array([[2, 1, 0], [0, 2, 0], [1, 0, 4]])
    assert metrics.accuracy(table) == 0.8
    scores = metrics.label_scores(table, ("a", "b", "c"))
    assert [score.f1 for score in scores] == pytest.approx([4 / 6, 4 / 5, 8 / 9])
    # c s - Σ p t = 8·10 - (3·3 + 3·2 + 4·5); s² - Σ p² = 100 - 34; s² - Σ t² = 100 - 38
    assert metrics.matthews(table) == pytest.approx((80 - 35) / math.sqrt(66 * 62))


@pytest.mark.parametrize(("truth", "found", "wanted"), [
    ([0, 1, 0, 1], [0, 1, 0, 1], 1.0), ([0, 1, 0, 1], [1, 0, 1, 0], -1.0), ([0, 1, 0, 1], [1, 1, 1, 1], 0.0),
    ([1, 1], [1, 1], 0.0),
])  # fmt: skip
def test_matthews_at_its_ends(truth: list[int], found: list[int], wanted: float) -> None:
    assert metrics.matthews(metrics.confusion(truth, found, 2)) == pytest.approx(wanted)


def test_a_label_that_nobody_says_or_has_scores_nothing() -> None:
    scores = metrics.label_scores(np.array([[2, 0], [0, 0]]), ("a", "b"))
    assert (scores[1].precision, scores[1].recall, scores[1].f1, scores[1].support) == (0, 0, 0, 0)


def test_correlations_by_hand() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 10.0]
    # deviations -1.5 -0.5 0.5 1.5 and -3 -1 -2 6: 13 / √(5 · 50)
    assert metrics.pearson(x, y) == pytest.approx(13 / math.sqrt(250))
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 Σ d² / (n³ - n) = 1 - 6·2/60
    assert metrics.spearman(x, y) == pytest.approx(0.8)
    # ties share a rank: 1, 2.5, 2.5, 4 against 1 2 3 4
    assert metrics.spearman([1.0, 5.0, 5.0, 9.0], x) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert metrics.pearson([2.0, 2.0], [1.0, 3.0]) is None


def test_entities_are_spelt_by_their_labels() -> None:
    tags = ["B-PER", "I-PER", "O", "I-LOC", "I-LOC", "I-PER", "B-PER", "B-PER"]
    assert metrics.entities(tags) == {(0, 2, "PER"), (3, 5, "LOC"), (5, 6, "PER"), (6, 7, "PER"), (7, 8, "PER")}
    assert metrics.entities([]) == set()
    assert metrics.names_entities(("B-x", "I-x", "O"))
    assert not metrics.names_entities(("NOUN", "VERB", "O")) and not metrics.names_entities(("O",))


def test_entity_f1_counts_whole_entities() -> None:
    truth = [["B-x", "I-x", "O", "B-y"], ["O", "B-x"]]
    found = [["B-x", "O", "O", "B-y"], ["O", "B-x"]]  # one cut short: 2 hits of 3 and 3
    assert metrics.entity_f1(truth, found) == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.entity_f1([["O"]], [["O"]]) == 0.0


def test_answers_are_compared_as_words() -> None:
    assert metrics.exact_match("The  Cook!", ["a cook"]) == 1.0
    assert metrics.exact_match("cook of Ghent", ["cook", "the cook of ghent"]) == 1.0
    assert metrics.exact_match("", []) == 1.0 and metrics.exact_match("cook", []) == 0.0
    # "old cook of Ghent" against "the cook of Ghent": 3 of 4 and 3 of 3 words
    assert metrics.answer_f1("old cook of Ghent", ["nobody", "the cook of Ghent"]) == pytest.approx(2 * 3 / 7)
    assert metrics.answer_f1("", []) == 1.0 and metrics.answer_f1("cook", []) == 0.0
