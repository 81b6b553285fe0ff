"""How good answers are: accuracy, F1, Matthews, correlations, entities, spans. Whole numbers and text in, no torch.

    precision = hits / predicted    recall = hits / true    F1 = 2 precision recall / (precision + recall)
    Matthews  = (c s - Σ p_k t_k) / √((s² - Σ p_k²) (s² - Σ t_k²))            Gorodkin 2004, equation 8

c answers of s are right, p_k are predicted to be k and t_k are k. With two labels this is Matthews' (1975) φ.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label's part."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """Rows that have it."""


def confusion(truth: Sequence[int], found: Sequence[int], labels: int) -> NDArray[np.int64]:
    """Counts by true label (rows) and predicted label (columns)."""
    table = np.zeros((labels, labels), np.int64)
    np.add.at(table, (np.asarray(truth, np.int64), np.asarray(found, np.int64)), 1)
    return table


def accuracy(table: NDArray[np.int64]) -> float:
    """Share of right answers."""
    return float(np.trace(table) / table.sum())


def label_scores(table: NDArray[np.int64], labels: Sequence[str]) -> list[LabelScore]:
    """Precision, recall and F1 of each label; 0 where there is nothing to divide by."""
    hits, predicted, true = np.diag(table), table.sum(0), table.sum(1)
    found = []
    for k, label in enumerate(labels):
        found.append(
            LabelScore(
                label,
                _ratio(hits[k], predicted[k]),
                _ratio(hits[k], true[k]),
                _ratio(2 * hits[k], predicted[k] + true[k]),
                int(true[k]),
            )
        )
    return found


def matthews(table: NDArray[np.int64]) -> float:
    """Matthews correlation of any number of labels; 0 where one label is all there is or all that is said."""
    right, total = int(np.trace(table)), int(table.sum())
    predicted, true = table.sum(0).astype(float), table.sum(1).astype(float)
    below = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return float((right * total - predicted @ true) / np.sqrt(below)) if below > 0 else 0.0


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


# --------------------------------------------------------------------------- numbers


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Linear correlation; None where a side does not vary."""
    a, b = (np.asarray(side, float) for side in (x, y))
    a, b = a - a.mean(), b - b.mean()
    below = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b / below) if below > 0 else None


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's of the ranks; equal numbers share the mean of their ranks."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Sequence[float]) -> list[float]:
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return list((last - (counts - 1) / 2)[which].tolist())


# --------------------------------------------------------------------------- labels of words


def names_entities(labels: Sequence[str]) -> bool:
    """Whether labels are of the kind B-x, I-x, O."""
    return any(label.startswith("B-") for label in labels) and all(re.match(r"[BI]-.|O$", label) for label in labels)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities that B- and I- labels spell, each (first word, one after the last, kind).

    One ends where a label is O, begins another, or is of another kind; an I- without its B- begins one (Tjong Kim Sang
    and De Meulder 2003, as ``conlleval`` counts).
    """
    found, first, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and (mark != "I" or name != kind):
            found.add((first, place, kind))
            kind = ""
        if mark in ("B", "I") and not kind:
            first, kind = place, name
    return found


def entity_f1(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """F1 of whole entities: right are those of the same words and kind."""
    pairs = [(entities(a), entities(b)) for a, b in zip(truth, found)]
    hits = sum(len(a & b) for a, b in pairs)
    return _ratio(2 * hits, sum(len(a) + len(b) for a, b in pairs))


# --------------------------------------------------------------------------- answers


def plain_words(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles, by which answers are compared (Rajpurkar et al. 2016)."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones; no answer is right where there is none."""
    return float(any(plain_words(answer) == plain_words(each) for each in right or [""]))


def answer_f1(answer: str, right: Sequence[str]) -> float:
    """F1 of the answer's words against the nearest right answer's."""
    return max(_overlap(plain_words(answer), plain_words(each)) for each in right or [""])


def _overlap(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    hits = sum((Counter(found) & Counter(true)).values())
    return _ratio(2 * hits, len(found) + len(true))
