"""``gradatim ngrams``: the talk's table."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradatim.cli.main import main
from gradatim.cli.ngrams import maximum_likelihood

TALK = "The more I read, the more I learn, and I like it more than anything else."


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talk.txt").write_text(TALK)


def test_the_talk_s_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ngrams", "talk.txt", "--order", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0] == {"context": ["the"], "word": "more", "count": 2, "probability": 1.0}
    seen = [(*row["context"], row["word"], row["count"], round(100 * row["probability"])) for row in rows]
    assert seen == [
        ("the", "more", 2, 100),
        ("more", "i", 2, 67),
        ("more", "than", 1, 33),
        ("i", "learn", 1, 33),
        ("i", "like", 1, 33),
        ("i", "read", 1, 33),
        ("read", "the", 1, 100),
        ("learn", "and", 1, 100),
        ("and", "i", 1, 100),
        ("like", "it", 1, 100),
        ("it", "more", 1, 100),
        ("than", "anything", 1, 100),
        ("anything", "else", 1, 100),
    ]


def test_people_see_percentages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ngrams", "talk.txt", "--top", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["after", "comes", "count", "probability"],
        ["the", "more", "2", "100%"],
        ["more", "i", "2", "67%"],
    ]


def test_order_one_counts_words() -> None:
    rows = maximum_likelihood(TALK.lower().replace(",", "").replace(".", "").split(), 1)
    assert rows[:2] == [((), "i", 3, 3 / 16), ((), "more", 3, 3 / 16)]


def test_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa b\r\na\xff b")))
    assert main(["ngrams", "-", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"][0] == {"context": ["a"], "word": "b", "count": 2, "probability": 1.0}
    assert "1 characters are not valid UTF-8" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.txt"], 3, "cannot be read"),
        (["talk.txt", "--order", "99"], 3, "no sequence of 99 words"),
        (["talk.txt", "--order", "0"], 2, "--order"),
        (["empty.txt"], 3, "no sequence"),
    ],
)
def test_mistakes(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").touch()
    assert main(["ngrams", *arguments]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_torch_stays_out() -> None:
    code = "import sys; from gradatim.cli.main import main; main(['ngrams', 'talk.txt', '--json']); "
    code += "assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
