"""``layout.check`` finds a difference of one number between ranks and names it, and says what it compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pool import Pool
from test_layouts import GPT2, LLAMA

from gradatim.cli.main import main
from gradatim.errors import ReplicaError

Pools = Callable[[int], Pool]
TP, SP, DP, ZERO, PP = (
    {"tp": 2}, {"tp": 2, "sequence_parallel": True}, {"dp": 2}, {"dp": 2, "zero": 1}, {"pp": 2, "microbatch": 4},
)  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "planted", "words"),
    [
        (TP, "parameter blocks.1.norm2.weight", "blocks.1.norm2.weight: the parameter is meant to be equal over tp"),
        (TP, "activation blocks.1.mlp.down", "blocks.1.mlp: what it returns is meant to be equal over tp"),
        (TP, "activation embed.tokens", "embed: what it returns is meant to be equal over tp"),
        (TP, "gradient blocks.2.norm1.bias", "blocks.2.norm1.bias: the gradient is meant to be equal over tp"),
        (TP, "targets", "targets: tokens are meant to be equal over tp"),
        (SP, "sum blocks.2.norm1.bias", "blocks.2.norm1.bias: the gradient is meant to be equal over tp"),
        (DP, "parameter blocks.0.mlp.up.weight", "blocks.0.mlp.up.weight: the parameter is meant to be equal over dp"),
        (DP, "sum blocks.0.mlp.up.weight", "blocks.0.mlp.up.weight: the gradient is meant to be equal over dp"),
        (ZERO, "parameter head.norm.weight", "head.norm.weight: the parameter is meant to be equal over dp"),
        (PP, "parameter head.output.weight", "embed.tokens.weight: the parameter is meant to be equal over ends"),
    ],
)
def test_a_difference_is_found_on_all_ranks_and_named(
    layout: dict[str, Any], planted: str, words: str, pool: Pools
) -> None:
    for message, _ in pool(2).run("work_check:train", GPT2, layout, planted):
        assert message.startswith(words)
        assert " numbers differ, first at [" in message
        assert "the same bits on ranks 0, 1" in message


def test_the_first_number_that_differs_is_named(pool: Pools) -> None:
    (message, _), _ = pool(2).run("work_check:train", GPT2, TP, "parameter blocks.1.norm2.weight")
    assert "got: 1 of 16 numbers differ, first at [5]: 1.0 on rank 0, 1.000000001 on rank 1" in message
    (message, _), _ = pool(2).run("work_check:train", GPT2, TP, "activation blocks.1.mlp.down")
    assert "1 of 1024 numbers differ, first at [0, 2, 8]: " in message


@pytest.mark.parametrize("model", [GPT2, LLAMA])
@pytest.mark.parametrize(
    ("layout", "compared"),
    [
        (TP, ["over tp", "parameters", "tokens", "losses", "gradients", "activations"]),
        ({**TP, "recompute": "full"}, ["over tp", "activations"]),
        (SP, ["over tp", "gradients", "(activations between blocks are shards of the sequence, and were not)"]),
        (DP, ["over dp", "parameters", "gradients"]),
        (ZERO, ["over dp", "parameters"]),
    ],
)
def test_sound_training_is_equal_and_what_was_compared_is_said(
    model: dict[str, Any], layout: dict[str, Any], compared: list[str], pool: Pools
) -> None:
    for message, summary in pool(2).run("work_check:train", model, layout, ""):
        assert message == ""
        assert summary.startswith("layout.check: equal to the bit in 2 steps: over ")
        assert all(words in summary for words in compared)
        assert ("gradients" in summary) == (layout is not ZERO)


SITE = """
import os
if os.environ.get("RANK") == "1":
    from gradatim.parallel import build
    whole = build.build_chunk
    def spoilt(*arguments, **more):
        chunk = whole(*arguments, **more)
        chunk.model.blocks[1].norm1.register_forward_hook(lambda module, given, made: made * (1 + 1e-6))
        return chunk
    build.build_chunk = spoilt
"""


def test_a_command_ends_with_its_exit_code_and_names_rank_step_and_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A layer of the second rank's is off by a millionth."""
    (tmp_path / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "train.txt").write_text("the more i read the more i like it\n" * 60, encoding="utf-8")
    fields = {
        "data.train": tmp_path / "train.txt", "data.tokenizer.kind": "char", "data.cache": tmp_path / "cache",
        "model.d_model": 16, "model.n_layers": 2, "model.n_heads": 2, "steps": 4, "context": 8, "global_batch": 4,
        "optimizer.warmup": 1, "layout.tp": 2, "layout.check": "true", "layout.timeout": 60,
    }  # fmt: skip
    flags = [part for name, value in fields.items() for part in (f"--{name}", str(value))]
    assert main(["train", "gpt", *flags, "--run", str(tmp_path / "run"), "--json"]) == ReplicaError.exit_code == 13
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["exit_code"] == 13
    (problem,) = error["problems"]
    assert problem["where"] == "blocks.1.norm1"
    assert problem["what"].startswith("what it returns is meant to be equal over tp, and is not (rank ")
    assert "step 1, action 0F0)" in problem["what"]
    assert "numbers differ, first at [0, 0, 0]: " in problem["got"]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
