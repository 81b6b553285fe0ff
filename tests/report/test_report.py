"""Pages stand alone, escape what they show, and equal input gives equal files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradatim.errors import DataError
from gradatim.report import figures, page
from gradatim.report.ladder import Ladder, Rung, bits_per_byte, ladder_report, overtaking

HOSTILE = '<script>alert("x")</script> & $a_{b}$'


def rung(name: str, bits: float | None, by_seconds: list[tuple[float, float]], said: str = " a value.") -> Rung:
    return Rung(
        name=name, run="missing", parameters=1000, seconds=2.5, tokens_per_second=4e3, perplexity=9.0,
        bits_per_byte=bits, by_seconds=by_seconds, by_bytes=[(1e6 * s, b) for s, b in by_seconds],
        completions={"greedy": said},
    )  # fmt: skip


def ladder(*rungs: Rung) -> Ladder:
    return Ladder(
        corpus="some text", sha256="00ff", train_bytes=1000, test_bytes=100, vocabulary=300, prompt=HOSTILE,
        rungs=list(rungs),
    )  # fmt: skip


COUNTED = rung("Kneser-Ney 5-gram", 2.0, [(0.2, 2.0)])
SLOW = rung("RNN", 2.4, [(10.0, 2.8), (20.0, 2.5)])
QUICK = rung("GPT", 1.8, [(10.0, 2.2), (20.0, 1.9), (30.0, 1.8)])


def test_overtaking_says_when_and_when_not() -> None:
    slow, quick = overtaking(ladder(COUNTED, SLOW, QUICK), COUNTED.name)
    assert "RNN did not reach" in slow and "2.500" in slow
    assert "GPT went below" in quick and "after 20 s" in quick
    assert overtaking(ladder(SLOW, QUICK), COUNTED.name) == []


def test_ladder_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = ladder(COUNTED, SLOW)
    written.save(tmp_path)
    read = Ladder.load(tmp_path)
    assert read.best() == 0
    assert [(r.name, r.bits_per_byte, r.completions) for r in read.rungs] == [
        (r.name, r.bits_per_byte, r.completions) for r in written.rungs
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rungs": [{"name": 1}]}'])
def test_damaged_ladder_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ladder.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not a ladder"):
        Ladder.load(tmp_path)


def test_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    ladder(COUNTED, SLOW, QUICK, rung("lossy", None, [], HOSTILE)).save(tmp_path)
    text = ladder_report(tmp_path)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    # Namespaces are names, not addresses: nothing is fetched.
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|@import|url\((?!#)', text)
    assert text.count('role="img"') == text.count("<figure>") == 3
    assert text == ladder_report(tmp_path)


def test_best_row_is_marked_once(tmp_path: Path) -> None:
    ladder(SLOW, QUICK, COUNTED).save(tmp_path)
    marked = re.findall(r'<tr class="best"><td>([^<]+)', ladder_report(tmp_path))
    assert marked == ["GPT"]


def test_empty_series_draw_nothing() -> None:
    drawn = figures.curves({"a": [], "b": [(1.0, 2.0)]}, title="t", x_label="x", y_label="y")
    assert ">b<" in drawn and ">a<" not in drawn


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (True, "yes"), (12345, "12,345"), (0.123456, "0.1235"), (98765.4, "98,765")]
)
def test_numbers(value: object, text: str) -> None:
    assert page.number(value) == text


def test_bits_per_byte_of_a_fair_coin() -> None:
    # One nat-valued bit (ln 2) a token, two tokens a byte.
    assert bits_per_byte(0.6931471805599453, tokens=20, text_bytes=10) == pytest.approx(2.0)
