"""Opinions of made-up guests, each good or bad: a small table to classify, written by a grammar.

A sentence says one thing of something, or two joined by "but", of which the second is what counts. "Not" turns a word
into its opposite, so words alone do not decide: whoever counts good and bad words is right in two rows of three.
"""

from __future__ import annotations

import random

GOOD = ("good", "fine", "lovely", "fresh", "friendly", "quick", "warm", "excellent", "clean", "pleasant")
BAD = ("bad", "poor", "stale", "cold", "rude", "slow", "dirty", "awful", "bland", "tired")
THINGS = ("the soup", "the bread", "the fish", "the waiter", "the cook", "the room", "the table", "the cake",
          "the tea", "the music", "the service", "the garden")  # fmt: skip
VERBS = ("was", "seemed", "is always", "looked")
OPENINGS = ("", "", "i think ", "my friend says ", "this time ", "as ever, ")
SIZES = {"train": 1200, "valid": 200, "test": 400}
LABELS = ("bad", "good")


def corpus() -> dict[str, list[dict[str, str]]]:
    """Rows of training, validation and test with columns ``text`` and ``label``; no text is in two parts."""
    draw, seen = random.Random(2018), set[str]()
    found: dict[str, list[dict[str, str]]] = {}
    for split, size in SIZES.items():
        rows: list[dict[str, str]] = []
        while len(rows) < size:
            good = draw.random() < 0.5
            text = draw.choice(OPENINGS) + _says(draw, draw.random() < 0.5) + ", but " + _says(draw, good) + "."
            if draw.random() < 0.5:
                text = draw.choice(OPENINGS) + _says(draw, good) + "."
            if text not in seen:
                seen.add(text)
                rows.append({"text": text, "label": LABELS[good]})
        found[split] = rows
    return found


def _says(draw: random.Random, good: bool) -> str:
    negated = draw.random() < 0.25
    word = draw.choice(GOOD if good != negated else BAD)
    return f"{draw.choice(THINGS)} {draw.choice(VERBS)} {'not ' if negated else ''}{word}"
