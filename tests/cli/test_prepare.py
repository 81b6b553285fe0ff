"""``gradatim prepare``: the JSON that programs read, the files that others open, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradatim.cli.main import main
from gradatim.text.tokenfile import TokenFile
from gradatim.text.tokenizer import load_tokenizer

SMALL = ["--data.tokenizer.vocab-size", "300", "--data.document=line"]


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_bytes(b"the more I read\r\n\r\nthe more I learn\n")
    Path("two.txt").write_text("and I like it\n")


def test_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "one.txt", "two.txt", "--out", "out", *SMALL, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["documents"] == 3
    assert answer["bytes"] == 16 + 17 + 14  # a blank line is no document and counts for nothing
    assert answer["dropped"] == {"carriage returns": 2, "empty documents": 1}
    tokenizer = load_tokenizer(Path("out/tokenizer.json"))
    file = TokenFile.open(Path("out/train"), tokenizer=tokenizer.fingerprint)
    assert answer["vocabulary"] == tokenizer.vocab_size
    assert answer["tokens"] == file.meta.tokens
    assert tokenizer.decode(file.document(1)) == "the more I learn"


def test_people_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "data: {train: [one.txt], valid: [two.txt], document: line, tokenizer: {kind: word}}"
    Path("mine.yaml").write_text(recipe)
    assert main(["prepare", "mine.yaml", "--out", "out"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split() == [
        "part",
        "documents",
        "tokens",
        "bytes",
        "unknown",
        "also",
        "in",
        "train",
    ]
    assert [line.split()[:2] for line in captured.out.splitlines()[1:3]] == [["train", "2"], ["valid", "1"]]
    assert "encoding train" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.txt"], 3, "no such file"),
        (["one.txt", "--data.train", "two.txt"], 2, "named twice"),
        (["one.txt", "--data.tokenizer.kind", "words"], 2, "data.tokenizer.kind"),
        (["empty.txt"], 3, "there is no text"),
    ],
)
def test_mistakes(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").touch()
    assert main(["prepare", *arguments, "--out", "out"]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert not Path("out").exists()
