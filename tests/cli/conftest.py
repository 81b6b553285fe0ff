"""Fixtures of tests of bad input: runs that are made once, and commands that must fail or must succeed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from bad_input import CHARS, GPT, LINES, NEURAL, Refused, Run
from example_recipes import recipes

from gradatim.cli.main import main

__all__ = ["answer", "here", "kept", "recipes", "refused", "run"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, its prepared tokens, and a run of a GPT and of an LSTM: copied for each test that damages them."""
    root = tmp_path_factory.mktemp("kept")
    text = root / "text.txt"
    text.write_text("\n".join(LINES * 20) + "\n", encoding="utf-8")
    common = ["--data.train", str(text), "--data.cache", str(root / "cache")]
    assert main(["train", "gpt", "--run", str(root / "gpt"), *GPT, *common]) == 0
    assert main(["train", "lstm", "--run", str(root / "lstm"), *NEURAL, *common]) == 0
    assert main(["prepare", str(text), "--out", str(root / "prepared"), *CHARS]) == 0
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, where the log of an unforeseen failure would be found too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], here: Path) -> Refused:
    """Run a command that must fail: for programs, then for people. Returns its problems."""

    def run_it(*args: str | Path, code: int) -> list[dict[str, str]]:
        command = [*map(str, args)]
        capsys.readouterr()
        assert main([*command, "--json"]) == code
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["exit_code"] == code
        for problem in error["problems"]:
            assert problem["where"] and problem["what"], problem
            assert problem["try"] or problem["allowed"], problem
        assert main(command) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("error: ") == len(error["problems"])
        assert all(f"{problem['where']}: {problem['what']}" in err for problem in error["problems"])
        assert "Traceback" not in err
        assert not list(here.glob("gradatim-failure-*"))
        return list(error["problems"])

    return run_it


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """Run a command that must succeed: its document, and what it said on standard error."""

    def run_it(*args: str | Path) -> tuple[Any, str]:
        capsys.readouterr()
        assert main([*map(str, args), "--json"]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    return run_it


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code, the JSON answer, and what people are told."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, Any, str]:
        code = main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return call
