r"""Where words begin and end. No torch and no NumPy: the talk's counting table needs nothing else.

Each rule is written twice, for Python and for the regular expressions of the ``tokenizers`` library, whose ``\w``
and ``\s`` name other characters. The two agree on every character that Python's Unicode tables know; a test walks
through all of them.
"""

from __future__ import annotations

import re

WORDS = r"\w+(?:['’]\w+)*"
"""Runs of letters and digits, an apostrophe inside belonging to the word; everything else is dropped."""

LIBRARY_WORDS = r"[\p{L}\p{N}_]+(?:['’][\p{L}\p{N}_]+)*"
r"""``WORDS`` for the ``tokenizers`` library, whose ``\w`` includes combining marks."""
LIBRARY_SPACE = "[\x09-\x0d\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
"""Where ``str.split`` cuts; the library's own splitter leaves the four separators from U+001C on in words."""

_WORDS = re.compile(WORDS)


def split_words(text: str, split: str = "words", lowercase: bool = False) -> list[str]:
    """The words of a text: runs of letters and digits (``words``), or what white space separates (``whitespace``)."""
    if lowercase:
        text = lower(text)
    return _WORDS.findall(text) if split == "words" else text.split()


def lower(text: str) -> str:
    """Lower case as the ``tokenizers`` library folds it: a letter at a time, so that a final sigma is like others."""
    return "".join(map(str.lower, text)) if "Σ" in text else text.lower()
