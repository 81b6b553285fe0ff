"""What a fresh reader of the parallel story stumbled over, each as a user meets it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from bad_input import GPT, LINES, Run

from gradatim.cli.main import main

SHAPE = "gpt:n_layers=8,d_model=1024,n_heads=16,vocab_size=51200"


def test_a_run_remembers_the_command_and_not_how_its_workers_were_started(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("text.txt").write_text("\n".join(LINES * 20) + "\n", encoding="utf-8")
    command = ["gradatim", "train", "gpt", "--run", "r", *GPT, "--data.train", "text.txt", "--data.cache", "cache",
               "--layout.dp", "2"]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    assert main(command[1:]) == 0
    assert json.loads(Path("r/env.json").read_text())["command"] == command


def test_stages_that_wait(run: Run) -> None:
    sizes = ["--model.n_layers", "4", "--global_batch", "8"]
    found = run("check", "gpt", *sizes, "--layout.pp", "4")[1]
    assert found["notes"] == [
        "layout.pp 4 with 1 microbatch a step: of 4 stages at most 1 works at a time; --layout.microbatch 2 makes 4"
    ]
    found = run("check", "gpt", *sizes, "--layout.pp", "4", "--layout.microbatch", "4", "--layout.dp", "2")[1]
    assert found["notes"] == [
        "layout.pp 4 with 1 microbatch a step: of 4 stages at most 1 works at a time; --layout.microbatch 1 makes 4"
    ]
    for enough in (["--layout.pp", "4", "--layout.microbatch", "2"], ["--layout.pp", "1"]):
        assert run("check", "gpt", *sizes, *enough)[1].get("notes", []) == []


def test_stages_by_cost_say_when_their_layers_are_known(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layout.pp", "2", "--layout.microbatch", "1", "--model.n_layers", "4"]
    assert main(["check", "gpt", *options, "--layout.split", "by-cost"]) == 0
    assert "known once training has its vocabulary" in capsys.readouterr().out
    assert main(["check", "gpt", *options]) == 0
    told = capsys.readouterr().out
    assert "layers 0-1" in told and "vocabulary" not in told.split("# 2 ranks")[1]


@pytest.mark.parametrize("trainer", ["megatron", "deepspeed", "torchtitan"])
def test_several_nodes_have_to_meet(trainer: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = "llama3-8b" if trainer == "torchtitan" else SHAPE
    for gpus, nodes in (("8", 1), ("32", 4)):
        command = ["plan", model, "eos-h100", "--gpus", gpus, "--global-batch", "64", "--emit", trainer]
        assert main(command) == 0
        told = capsys.readouterr().out
        line = next(line for line in told.splitlines() if line.startswith("torchrun"))
        words = shlex.split(line.rstrip("\\"))
        assert ("--rdzv-endpoint" in words) is (nodes > 1)
        assert (f"each of {nodes} nodes" in told) is (nodes > 1)


def test_a_recipes_own_batch_is_planned(run: Run) -> None:
    code, found, told = run("plan", "gpt3-175b", "selene-2022", "--gpus", 1024, "--top", 1)
    stated = run("plan", "gpt3-175b", "selene-2022", "--gpus", 1024, "--top", 1, "--global-batch", 1536)[1]
    assert code == 0 and "--global-batch 1536, as gpt3-175b has it" in told
    assert found["layouts"] == stated["layouts"]
    code, answer, _ = run("plan", SHAPE, "selene-2022", "--gpus", 8)
    assert code == 2 and answer["error"]["problems"][0]["where"] == "--global-batch"
