"""Tables and JSON as the verbs emit them."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gradatim.cli.output import Table, emit, jsonable, say, show_problems
from gradatim.errors import Problem


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Answer:
    path: Path
    values: tuple[float, ...]


def test_jsonable() -> None:
    answer = Answer(path=Path("runs/x"), values=(1.5, float("nan"), float("inf")))
    assert jsonable({"a": answer, 1: [np.float32(0.5), np.arange(2), True, None]}) == {
        "a": {"path": "runs/x", "values": [1.5, None, None]},
        "1": [0.5, [0, 1], True, None],
    }
    with pytest.raises(TypeError, match="object has no plain JSON form"):
        jsonable(object())


def test_emit_json_is_one_document_and_asks_nothing_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    def human() -> str:
        raise AssertionError("not asked for")

    emit({"text": "naïve\ud800"}, True, human)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"text": "naïve\ud800"}


def test_emit_for_people_off_a_terminal_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(["model", "tokens", "bits"], [["gpt", 1234567, 1.823456], ["ngram", 5, None]], title="Ladder")
    emit({}, False, lambda: ["two rungs", table])
    assert capsys.readouterr().out.splitlines() == [
        "two rungs",
        "Ladder",
        "model     tokens    bits",
        "gpt    1,234,567  1.8235",
        "ngram          5       -",
    ]


def test_emit_on_a_terminal_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    emit({}, False, lambda: Table(["a [b]"], [["[red]x"]]))
    assert "─" in screen.getvalue()
    assert "[red]x" in screen.getvalue()  # text is text, never markup


def test_problems_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    problem = Problem(where="a.yaml:3", what="wrong [bold]", got="5", attempt="6")
    show_problems([problem], exit_code=2, as_json=False)
    assert "wrong [bold]" in screen.getvalue()
    assert "try: " in screen.getvalue()
    assert "allowed" not in screen.getvalue()


def test_say_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    say("reading")
    assert capsys.readouterr() == ("", "reading\n")


def test_empty_tables() -> None:
    assert Table(["a", "b"], []).plain() == "a  b"
