"""``gradatim check``: the answer for programs, the answer for people, and that what it prints is a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradatim.cli.main import main
from gradatim.config import load_config, recipe_names

pytestmark = pytest.mark.usefixtures("recipes")


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_ok(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True}


def test_problems_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("steps: 10\nmodel: {kind: gpt, d_modle: 64}\noptimizer: {warmup: 100}\n")
    assert main(["check", str(recipe), "--json", "--model.n-heads", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "ok": False,
        "problems": [
            {
                "where": f"{recipe}:2",
                "what": "there is no such field",
                "got": "model.d_modle",
                "allowed": "kind, d_model, n_layers, n_heads, n_kv_heads, d_ff, dropout, tied, positions, "
                "rope_theta, norm, norm_eps, activation, bias, vocab_multiple",
                "try": "model.d_model",
            },
            {
                "where": f"{recipe}:3",
                "what": "the rate would still be rising when the run ends",
                "got": "optimizer.warmup 100, steps 10",
                "allowed": "at most 10",
                "try": "--optimizer.warmup 1",
            },
            {
                "where": "--model.n_heads",
                "what": "the heads must share the width evenly",
                "got": "model.n_heads 3, model.d_model 256",
                "allowed": "n_heads 2 or 4, or d_model 255 or 258",
                "try": "--model.n_heads 2",
            },
        ],
    }


def test_problems_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "lstm.yaml", "--model.order", "5"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "error: --model.order: model.order belongs to kind ngram"
    assert captured.err.splitlines()[-1] == "    try: --model.kind ngram, or leave it out"


def test_what_passes_is_printed_as_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt.yaml", "--steps", "777", "--data.train", "my corpus.txt"]) == 0
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert load_config(str(recipe)) == load_config("gpt.yaml", {"steps": "777", "data.train": "my corpus.txt"})


def test_notes_say_what_else_an_override_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt.yaml", "--model.kind", "lstm", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert document["notes"] == ["--model.kind lstm drops the recipe's fields of another kind: model.n_heads"]
    assert main(["check", "gpt.yaml", "--model.kind", "lstm"]) == 0
    assert capsys.readouterr().err.startswith("note: --model.kind lstm drops")


def test_help_shows_recipes_and_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--model.smoothing mle|additive|kneser-ney" in text
    assert "Peak learning rate. [0.0003]" in text
    assert "llama3-8b" in text
    assert "--override" not in text
    assert main(["check", "nowhere", "--help"]) == 0
    assert capsys.readouterr().out == text


def test_help_of_a_recipe_shows_its_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "lstm", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Peak learning rate. [0.02]" in text
    assert "--model.n_heads" not in text
    assert main(["train", "--run", "gpt", "lstm", "--help"]) == 0  # a directory may be called like a recipe
    assert "Peak learning rate. [0.02]" in capsys.readouterr().out
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {kind: lstm}\noptimizer: {lr: 0.007}\n")
    assert main(["check", str(recipe), "--help"]) == 0
    assert "Peak learning rate. [0.007]" in capsys.readouterr().out


def test_files_that_are_not_here_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "a.txt"
    there.write_text("text\n")
    names = f"{there},{tmp_path}/*.txt,python-manual,nowhere.txt"
    assert main(["check", "gpt", "--data.train", names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == ["data.train: there is no nowhere.txt here"]
