"""Where words begin and end. No torch and no NumPy: the talk's counting table needs nothing else."""

from __future__ import annotations

import re

WORDS = r"\w+(?:['’]\w+)*"
"""Runs of letters and digits, an apostrophe inside belonging to the word; everything else is dropped."""

_WORDS = re.compile(WORDS)


def split_words(text: str, split: str = "words", lowercase: bool = False) -> list[str]:
    """The words of a text: runs of letters and digits (``words``), or whatever white space separates (``whitespace``)."""
    text = text.lower() if lowercase else text
    return _WORDS.findall(text) if split == "words" else text.split()
