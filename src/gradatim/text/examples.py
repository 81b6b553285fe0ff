"""Examples of a task: rows of a table, read as the task's settings say, each with its place in the file.

    classify, regress   text (text_b)            label: a word; a number
    tag                 words                    label: a word for each of them; lists, or separated by white space
    span                question, passage        label: the answer as text, or {"text": […], "answer_start": […]}
    choice              text, choices            label: the number of the right one, from 0, or its text

An answer given as text stands where it first occurs; an empty one means that the passage does not answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gradatim.config.settings_task import TaskConfig
from gradatim.errors import DataError, Problem
from gradatim.text.table import Row


@dataclass(frozen=True, slots=True)
class Answer:
    """Where a passage answers."""

    texts: tuple[str, ...]
    """What would be right; none where the passage does not answer."""
    begin: int = 0
    """The first one's first character."""
    end: int = 0
    """The one after its last character."""


Label = str | float | int | tuple[str, ...] | Answer


@dataclass(frozen=True, slots=True)
class Example:
    """One row."""

    where: str
    texts: tuple[str, ...]
    """One or two texts; a task's words; a prompt and its choices."""
    label: Label | None
    """None where it is to be found out."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read."""
        return not any(text.strip() for text in self.texts)


def examples(rows: Iterator[tuple[str, Row]], task: TaskConfig, labelled: bool = True) -> Iterator[Example]:
    """The examples in some rows; without ``labelled``, whatever they say of labels is left alone.

    Raises:
        DataError: a column is missing, or holds what the task cannot read.
    """
    reads = {"tag": _words, "span": _passage, "choice": _choices}.get(task.kind, _texts)
    tellers: dict[str, Callable[[Any, tuple[str, ...], str], Label]] = {
        "classify": _class, "regress": _number, "tag": _tags, "span": _answer, "choice": _right,
    }  # fmt: skip
    tells = tellers[task.kind]
    for where, row in rows:
        texts = reads(row, task, where)
        yield Example(where, texts, tells(_cell(row, task.label, "label", where), texts, where) if labelled else None)


def _cell(row: Row, column: str, field: str, where: str) -> Any:
    if column not in row:
        have = ", ".join(map(str, row)) or "nothing"
        attempt = f"--task.{field} NAME"
        if where.endswith(":2") and ".tsv:" in where:
            attempt += "; --data.columns NAME,NAME where the file has no line of names"
        raise DataError(Problem(where=where, what=f"there is no column {column!r}", got=have[:300], attempt=attempt))
    return row[column]


def _text(row: Row, column: str, field: str, where: str) -> str:
    value = _cell(row, column, field, where)
    if not isinstance(value, str):
        raise DataError(Problem(where=where, what=f"column {column!r} holds no text", got=str(value)[:100],
                                attempt=f"--task.{field} NAME"))  # fmt: skip
    return value


def _texts(row: Row, task: TaskConfig, where: str) -> tuple[str, ...]:
    first = _text(row, task.text, "text", where)
    return (first,) if task.text_b is None else (first, _text(row, task.text_b, "text_b", where))


def _passage(row: Row, task: TaskConfig, where: str) -> tuple[str, ...]:
    assert task.text_b is not None
    return _text(row, task.text, "text", where), _text(row, task.text_b, "text_b", where)


def _words(row: Row, task: TaskConfig, where: str) -> tuple[str, ...]:
    return _list(_cell(row, task.text, "text", where), task.text, where)


def _list(value: Any, column: str, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if not isinstance(value, list) or not all(isinstance(item, (str, int)) for item in value):
        raise DataError(Problem(where=where, what=f"column {column!r} holds no list of words", got=str(value)[:100],
                                allowed="a list, or words separated by white space"))  # fmt: skip
    return tuple(map(str, value))


def _choices(row: Row, task: TaskConfig, where: str) -> tuple[str, ...]:
    prompt = _text(row, task.text, "text", where)
    if len(task.choices) > 1:
        return (prompt, *(_text(row, column, "choices", where) for column in task.choices))
    found = _cell(row, task.choices[0], "choices", where)
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(choice, str) for choice in found):
        raise DataError(Problem(where=where, what=f"column {task.choices[0]!r} holds no list of choices",
                                got=str(found)[:100], allowed="a list of two texts or more",
                                attempt="--task.choices NAME,NAME names a column for each"))  # fmt: skip
    return (prompt, *found)


# --------------------------------------------------------------------------- labels


def _class(value: Any, texts: tuple[str, ...], where: str) -> str:
    nothing = value is None or isinstance(value, (dict, list)) or (isinstance(value, float) and math.isnan(value))
    if nothing or not str(value).strip():
        raise DataError(Problem(where=where, what="this row has no label", got=str(value)[:100] if value else "nothing",
                                allowed="a word or a number", attempt="leave the row out"))  # fmt: skip
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip()


def _number(value: Any, texts: tuple[str, ...], where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(Problem(where=where, what="a regression learns numbers, and this label is none",
                                got=str(value)[:100], allowed="a finite number",
                                attempt="leave the row out, or --task.kind classify"))  # fmt: skip
    return number


def _tags(value: Any, texts: tuple[str, ...], where: str) -> tuple[str, ...]:
    found = _list(value, "label", where)
    if len(found) != len(texts):
        raise DataError(Problem(where=where, what="every word needs its label", got=f"{len(found)} labels",
                                allowed=f"{len(texts)}, as there are words"))  # fmt: skip
    return found


def _right(value: Any, texts: tuple[str, ...], where: str) -> int:
    choices = texts[1:]
    named = choices.index(value) if isinstance(value, str) and value in choices else None
    number = int(value) if isinstance(value, (int, str)) and str(value).strip().isdecimal() else -1
    if named is not None and named != number and 0 <= number < len(choices):
        what = "this label is the text of one choice and the number of another"
        raise DataError(Problem(where=where, what=what, got=str(value)[:100],
                                attempt="numbers in .jsonl or .parquet, which are no text"))  # fmt: skip
    if named is not None:
        return named
    if isinstance(value, bool) or not 0 <= number < len(choices):
        raise DataError(Problem(where=where, what="this label is none of the choices", got=str(value)[:100],
                                allowed=f"0 to {len(choices) - 1}, or the text of a choice"))  # fmt: skip
    return number


def _answer(value: Any, texts: tuple[str, ...], where: str) -> Answer:
    passage = texts[1]
    starts: Any = None
    found: Any = value
    if isinstance(value, dict):
        found, starts = value.get("text"), value.get("answer_start")
    found = [found] if isinstance(found, str) else found
    fits = found is None or (isinstance(found, list) and all(isinstance(text, str) for text in found))
    answers = tuple(text for text in found or () if text.strip()) if fits else ()
    if not fits:
        raise DataError(Problem(where=where, what="this is no answer", got=str(value)[:100],
                                allowed='a text, or {"text": [TEXT], "answer_start": [N]}'))  # fmt: skip
    if not answers:
        return Answer(())
    first = answers[0]
    begin = starts[0] if isinstance(starts, list) and starts else starts
    begin = begin if isinstance(begin, int) and not isinstance(begin, bool) else passage.find(first)
    if begin < 0 or passage[begin : begin + len(first)] != first:
        raise DataError(Problem(where=where, what="the passage does not hold this answer there", got=first[:100],
                                allowed="a piece of the passage, letter by letter",
                                attempt="leave the row out, or correct answer_start"))  # fmt: skip
    return Answer(answers, begin, begin + len(first))
