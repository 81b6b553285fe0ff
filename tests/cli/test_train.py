"""``gradatim train``: one JSON document, a run directory, and refusals before any work."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from gradatim.cli.main import main


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text("the more i read the more i learn\n" * 30, encoding="utf-8")
    (tmp_path / "valid.txt").write_text("the more i learn the more i read\n", encoding="utf-8")
    return [
        "--data.train", str(text), "--data.valid", str(tmp_path / "valid.txt"), "--data.cache", str(tmp_path / "cache"),
        "--data.tokenizer.kind", "char",
    ]  # fmt: skip


NEURAL = ["--steps", "3", "--context", "8", "--global-batch", "4", "--model.d_model", "16", "--model.n_layers", "1"]


def test_answers_with_one_json_document(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "gpt", "--run", str(run), *NEURAL, *small, "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["run"] == str(run)
    assert (answer["step"], answer["tokens"], answer["mfu"]) == (3, 3 * 4 * 8, None)
    assert answer["loss"] > 0
    assert answer["valid_loss"] > 0
    assert answer["tokens_per_second"] > 0
    assert answer["layout"]["tp"] == 1
    assert "parameters" in err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    fields = {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "attempt"}
    assert all(row.keys() >= fields for row in rows)
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "env.json", "metrics.jsonl", "tokenizer.json", "checkpoints", "logs",
    }  # fmt: skip


def test_an_existing_run_is_continued_only_when_asked(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "gpt", "--run", str(tmp_path / "run"), *NEURAL, *small, "--json"]
    assert main([*command, "--resume"]) == 0  # nothing to resume: starts afresh
    assert main(command) == 2
    assert main([*command, "--seed", "7", "--resume"]) == 4
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3


def test_without_run_a_new_directory_each_time(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(2):
        assert main(["train", "bigram", "--model.discount_fallback", "true", *small, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["run"])
    assert found == ["runs/bigram-1", "runs/bigram-2"]


def test_resume_needs_a_run(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "gpt", "--resume", *small]) == 2
    assert "--run" in capsys.readouterr().err


def test_a_table_for_people(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "gpt", "--run", str(tmp_path / "run"), *NEURAL, *small]) == 0
    out = capsys.readouterr().out
    assert "validation loss" in out
    assert "tokens/s" in out


def test_trackers_that_are_missing_name_their_extra(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["train", "gpt", "--run", str(tmp_path / "run"), *NEURAL, *small, "--track.wandb", "project"]
    assert main(command) == 5
    assert "gradatim[track]" in capsys.readouterr().err


def test_a_layout_that_is_chosen(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes train under it; the run records it, and keeps it when it goes on."""
    from gradatim.train import Run

    recipe = tmp_path / "own.yaml"
    recipe.write_text("layout: auto\ncluster: cpu\nmodel: {kind: gpt, n_heads: 4}\n", encoding="utf-8")
    command = [str(recipe), *NEURAL, *small]
    assert main(["check", *command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "fastest of" in told["why"] and told["layout"]["tp"] * told["layout"]["pp"] * told["layout"]["dp"] == 2
    run = tmp_path / "run"
    assert main(["train", *command, "--run", str(run), "--nproc", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert told["why"] in err
    chosen = json.loads(out)["layout"]
    assert chosen == told["layout"] == asdict(Run.open(run).config.layout)
    assert (
        main(["train", *command[:1], *NEURAL[2:], *small, "--steps", "4", "--run", str(run), "--resume", "--json"]) == 0
    )
    out, err = capsys.readouterr()
    assert "the run keeps its own" in err and json.loads(out)["layout"] == chosen
    # with a layout stated, the number of processes is its own
    assert main(["train", "gpt", *NEURAL, *small, "--nproc", "2"]) == 2
    assert "--layout auto" in capsys.readouterr().err
