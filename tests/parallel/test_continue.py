"""A run under a layout goes on bit for bit after a stop, and its checkpoints go on under any other layout."""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pool import Pool

from gradatim.config import load_config
from gradatim.config.settings import LayoutConfig, RunConfig
from gradatim.text.prepare import prepare
from gradatim.train import Run, train
from gradatim.train.checkpoint import open_checkpoint
from gradatim.train.engine import SerialEngine
from gradatim.train.metrics import read_metrics

Pools = Callable[[int], Pool]
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "valid_loss")
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2 sp": {"tp": 2, "sequence_parallel": True, "recompute": "selective"},
    "pp2 interleaved": {"pp": 2, "chunks": 2, "schedule": "interleaved", "microbatch": 2},
    "dp2 zero1": {"dp": 2, "zero": 1, "microbatch": 2},
    "tp2": {"tp": 2, "microbatch": 4},
    "pp2 zero-bubble": {"pp": 2, "schedule": "zero-bubble", "microbatch": 2, "recompute": "full"},
    "pp2 gpipe": {"pp": 2, "schedule": "gpipe", "microbatch": 2, "split": (3, 1)},
    "dp2": {"dp": 2},
    "tp2 pp2 sp": {"tp": 2, "pp": 2, "sequence_parallel": True, "microbatch": 2},
    "tp2 dp2 zero1": {"tp": 2, "dp": 2, "zero": 1},
    "pp2 dp2 zero1": {"pp": 2, "dp": 2, "zero": 1, "microbatch": 1},
}
FAST = list(LAYOUTS)[:3]


def cases(number: int) -> list[Any]:
    """Layouts, the first few of which ``make test`` runs."""
    return [pytest.param(name, marks=() if name in FAST[:number] else pytest.mark.layouts) for name in LAYOUTS]


@pytest.fixture(scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """Six steps, saved after the third."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["the", "more", "i", "read", "learn", "and", "like", "it", "than", "else"]
    for name, lines in (("train", 80), ("valid", 6)):
        text = "\n".join(" ".join(draw.choices(words, k=draw.randint(3, 9))) for _ in range(lines))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    fields = {
        "data.train": folder / "train.txt", "data.valid": folder / "valid.txt", "data.cache": folder / "cache",
        "data.document": "line", "data.tokenizer.kind": "char", "model.d_model": 16, "model.n_layers": 4,
        "model.n_heads": 2, "steps": 6, "context": 8, "global_batch": 8, "optimizer.lr": 0.01, "optimizer.warmup": 2,
        "checkpoint.every": 3,
    }  # fmt: skip

    @functools.cache
    def base(dropout: float) -> RunConfig:
        return load_config(
            "gpt", {**{name: str(value) for name, value in fields.items()}, "model.dropout": str(dropout)}
        )

    return lambda layout, dropout=0.0: dataclasses.replace(base(dropout), layout=LayoutConfig(**layout))


def world(config: RunConfig) -> int:
    return config.layout.tp * config.layout.pp * config.layout.dp


def rows(directory: Path) -> list[dict[str, Any]]:
    return [{key: row.get(key) for key in EXACT} for row in read_metrics(directory / "metrics.jsonl")]


@pytest.mark.parametrize("name", cases(3))
def test_a_resumed_run_is_the_run_that_never_stopped(
    name: str, make_config: Callable[..., RunConfig], tmp_path: Path, pool: Pools
) -> None:
    """With dropout, losses, norms, weights and moments to the bit."""
    config = make_config(LAYOUTS[name], 0.2)
    ranks = pool(world(config)).run("work_continue:run", config, str(tmp_path / "whole"), False)
    assert all(result == ranks[0][0] for result, _ in ranks)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000006")
    again = pool(world(config)).run("work_continue:run", config, str(tmp_path / "again"), True)
    assert [result for result, _ in again] == [result for result, _ in ranks]
    assert "continuing after step 3 (layout: " in again[0][1]
    assert rows(tmp_path / "again") == rows(tmp_path / "whole")
    ours, theirs = (Run(tmp_path / run).checkpoint("last").tensors() for run in ("again", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    said = [line for _, text in (*ranks, *again) for line in text.splitlines() if line.startswith("pipeline bubble")]
    assert len(said) == (2 if config.layout.pp > 1 else 0)
    if said:
        assert said[0].startswith("pipeline bubble, median of 6 steps: ")
        assert said[0].endswith(" simulated")


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2, "microbatch": 4}, {"dp": 2, "zero": 1}])
def test_counted_word_vectors_are_those_of_one_process(
    layout: dict[str, Any], make_config: Callable[..., RunConfig], tmp_path: Path, pool: Pools
) -> None:
    """The first rank counts, each takes its part; steps are those of one process, to rounding."""
    one, several = (
        dataclasses.replace(make_config(each), word_vectors="counted", precision="fp64") for each in ({}, layout)
    )
    train(one, tmp_path / "one")
    _, (_, silent) = pool(2).run("work_continue:run", several, str(tmp_path / "several"), False)
    assert "counted" not in silent
    ours, theirs = (Run(tmp_path / run).checkpoint("last").tensors("model/") for run in ("several", "one"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-9)
    drawn = dataclasses.replace(one, word_vectors="drawn")
    train(drawn, tmp_path / "drawn")
    assert rows(tmp_path / "drawn")[0]["loss"] != rows(tmp_path / "one")[0]["loss"]


@pytest.fixture(scope="module")
def saved(make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("serial")
    train(make_config({"microbatch": 2}), folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000006")
    return folder / "run"


@pytest.mark.parametrize("name", cases(3))
def test_a_checkpoint_under_another_layout_is_the_same_numbers(
    name: str, make_config: Callable[..., RunConfig], saved: Path, tmp_path: Path, pool: Pools
) -> None:
    """From one process into a layout, and from there into one process: parameters, moments, the samples that follow."""
    config = make_config(LAYOUTS[name])
    one = make_config({"microbatch": 2})
    before = open_checkpoint(saved / "checkpoints" / "step-00000003")
    (tmp_path / "moved").mkdir()
    arguments = (config, str(saved / "checkpoints"), str(tmp_path / "moved"), before.manifest)
    ranks = pool(world(config)).run("work_continue:move", *arguments)
    after = open_checkpoint(tmp_path / "moved" / "step-00000003")
    ours, theirs = after.tensors(), before.tensors()
    assert ours.keys() == theirs.keys()
    assert {name.rpartition("/")[2] for name in ours} >= {"exp_avg", "exp_avg_sq"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    serial = SerialEngine(one, prepare(one.data))
    counters = serial.load(after)
    samples, loss = serial.samples(counters.step), serial.step(counters.step).loss
    assert loss == rows(saved)[counters.step]["loss"], "one process goes on as if nothing had been moved"
    assert all(found == samples for found, _ in ranks)
    assert [found for _, found in ranks] == pytest.approx([loss] * len(ranks), rel=2e-6)


def test_metrics_that_cannot_be_written_fail_a_save_on_every_rank(
    make_config: Callable[..., RunConfig], tmp_path: Path, pool: Pools
) -> None:
    """A warning, and nobody left waiting; the next save succeeds."""
    config = make_config({"dp": 2})
    (result, told), (other, _) = pool(2).run("work_continue:run_with_a_full_log", config, str(tmp_path / "run"))
    assert result == other
    assert result["step"] == 6
    assert "step 3 could not be saved (rank 0: No space left on device)" in told
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000006"]


def test_what_ranks_pass_over_is_set_aside(make_config: Callable[..., RunConfig], tmp_path: Path, pool: Pools) -> None:
    config = make_config({"dp": 2})
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, keep=1))
    keeping = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, keep=2))
    pool(2).run("work_continue:run", keeping, str(tmp_path / "run"), False)
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    data = (newest / "rank1.safetensors").read_bytes()
    (newest / "rank1.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (_, told), (_, others) = pool(2).run("work_continue:run", config, str(tmp_path / "run"), True)
    assert "step-00000006 is called step-00000006.damaged from now on" in told
    assert "damaged" not in others
    names = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000006.damaged"]
    assert Run(tmp_path / "run").checkpoint("last").step == 6


def test_a_missing_folder_of_logs_fails_no_checkpoint(
    make_config: Callable[..., RunConfig], saved: Path, tmp_path: Path, pool: Pools
) -> None:
    manifest = open_checkpoint(saved / "checkpoints" / "step-00000003").manifest
    pool(2).run("work_continue:save_without_logs", make_config({"pp": 2, "microbatch": 2}), str(tmp_path), manifest)
    assert [open_checkpoint(tmp_path / f"step-0000000{step}").step for step in (1, 2)] == [1, 2]


def test_a_signal_that_reaches_one_rank_stops_all(make_config: Callable[..., RunConfig], pool: Pools) -> None:
    assert pool(2).run("work_continue:agree", make_config({"dp": 2})) == [[False, True, False]] * 2
