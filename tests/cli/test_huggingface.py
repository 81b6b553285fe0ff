"""export, import and evaluate from the command line, for a model of each kind that has a place there."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from gradatim.cli.main import main

SENTENCES = ["the more i read.", "the more i learn!", "i like it.", "nothing else matters?", "who knows why."]


def call(*arguments: object, fails: int = 0) -> Any:
    """The answer of a command that succeeds, or what one that fails says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*(str(argument) for argument in arguments), "--json"])
    assert code == fails, err.getvalue()
    return out.getvalue() + err.getvalue() if fails else json.loads(out.getvalue())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three steps on a text of ten documents."""
    folder = tmp_path_factory.mktemp("bert")
    documents = ["\n".join(SENTENCES[i % 5 :] + SENTENCES[: i % 5]) for i in range(10)]
    (folder / "train.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (folder / "valid.txt").write_text("\n\n".join(documents[:4]) + " more.", encoding="utf-8")
    small = {"d_model": 16, "n_layers": 1, "n_heads": 2}
    call(
        "train", "bert", "--run", folder / "run", "--steps", 3, "--context", 16, "--global_batch", 4,
        "--data.train", folder / "train.txt", "--data.valid", folder / "valid.txt", "--data.document", "blank-line",
        "--data.cache", folder / "cache", "--data.tokenizer.vocab_size", 60,
        *(part for name, value in small.items() for part in (f"--model.{name}", value)),
    )  # fmt: skip
    return folder


def test_evaluate_tells_of_blanks_and_pairs(bert: Path) -> None:
    found = call("evaluate", bert / "run")
    assert found["rows"] == found["pairs"] > 0 and found["blanks"] > 0
    assert found["perplexity"] == pytest.approx(2.718281828459045 ** found["nats_per_blank"])
    assert 0 <= found["pair_accuracy"] <= 1 and found["unigram_nats"] > 0
    assert call("evaluate", bert / "run") == found, "the same rows and blanks each time"
    other = call("evaluate", bert / "run", "--text", bert / "train.txt")
    assert other["rows"] > found["rows"]
    corpus = call("evaluate", bert / "run", "--text", "small-english")
    assert 0 < corpus["rows"] < 1000, "its test part, not the 5,443 documents that are there to learn from"
    metrics = [json.loads(line) for line in (bert / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] == pytest.approx(metrics[-1]["loss_words"] + metrics[-1]["loss_pairs"])
    assert metrics[-1]["valid_loss"] == pytest.approx(found["nats_per_blank"] + found["pair_nats"], rel=1e-5)
    call("report", bert / "run", "--out", bert / "report.html")
    page = (bert / "report.html").read_text()
    assert page.index("Parts of the loss") < page.index("of words alone") < page.index("of pairs alone")


def test_a_bert_is_no_language_model(bert: Path) -> None:
    for verb in (("complete", "hi"), ("next", "hi"), ("score", "hi")):
        assert "it does not read from left to right" in call(verb[0], bert / "run", verb[1], fails=2)


def test_there_and_back(bert: Path, tmp_path: Path) -> None:
    told = call("export", bert / "run", tmp_path / "hf")
    assert told["architecture"] == "bert" and "model.safetensors" in told["files"]
    told = call("import", tmp_path / "hf", tmp_path / "back")
    assert told["architecture"] == "bert" and told["absent"] == []
    there, here = (call("evaluate", run, "--text", bert / "valid.txt") for run in (tmp_path / "back", bert / "run"))
    assert there.keys() == here.keys()
    assert "there is a run in this directory already" in call("import", tmp_path / "hf", tmp_path / "back", fails=2)
    assert "only n-grams fit" in call("export", bert / "run", tmp_path / "arpa", "--format", "arpa", fails=2)
