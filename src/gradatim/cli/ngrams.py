"""``gradatim ngrams FILE``: count word sequences and show what follows what, as the talk's first table does.

Words are lower-cased, punctuation is dropped, and there are no marks for beginning or end. Contexts stand in the order
of their first appearance, the words after each by count and then by the alphabet. Plain dictionaries: this is the first
page of the course, and wants no library.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say
from gradatim.errors import DataError, Problem
from gradatim.text.plain import SAMPLE, refuse_noise
from gradatim.text.words import split_words

Row = tuple[tuple[str, ...], str, int, float]


def maximum_likelihood(words: Iterable[str], order: int) -> list[Row]:
    """(context, word, count, count / occurrences of the context before any word), by context."""
    text = list(words)
    following: dict[tuple[str, ...], Counter[str]] = {}
    for end in range(order - 1, len(text)):
        following.setdefault(tuple(text[end - order + 1 : end]), Counter())[text[end]] += 1
    return [
        (context, word, count, count / counts.total())
        for context, counts in following.items()
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


@click.command(cls=Verb)
@click.argument("file")
@click.option(
    "--order", type=click.IntRange(min=1), default=2, show_default=True, help="Words in a sequence; 2 counts pairs."
)
@click.option(
    "--top", type=click.IntRange(min=1), help="Only the so many sequences that occur most, most frequent first."
)
@json_option
def command(file: str, order: int, top: int | None, as_json: bool) -> None:
    """Count the word sequences of FILE (- for standard input) and show what follows what."""
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        attempt = "change its permissions" if isinstance(error, PermissionError) else "check the path"
        raise DataError(
            Problem(where=file, what=f"the text cannot be read ({error.strerror})", attempt=attempt)
        ) from None
    refuse_noise(file, raw[:SAMPLE])
    text = raw.decode("utf-8-sig", "replace")
    if "\ufffd" in text:
        say(f"{file}: {text.count(chr(0xFFFD)):,} characters are not valid UTF-8; words end there")
    rows = maximum_likelihood(split_words(text, lowercase=True), order)
    if not rows:
        raise DataError(
            Problem(
                where=file,
                what=f"there is no sequence of {order} words in this text",
                attempt="more text, or a smaller --order",
            )
        )
    if top is not None:
        rows = sorted(rows, key=lambda row: -row[2])[:top]  # of equal counts that which stands first
    document = {
        "rows": [{"context": list(c), "word": w, "count": n, "probability": p} for c, w, n, p in rows]
    }  # fmt: skip
    shown = [[" ".join(c), w, n, f"{p:.0%}"] for c, w, n, p in rows]
    emit(document, as_json, lambda: Table(["after", "comes", "count", "probability"], shown))
