"""A run that was stopped continues bit for bit: the same rows, the same weights, whatever step it stopped at."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradatim.config.settings import CheckpointConfig, RunConfig
from gradatim.errors import CheckpointError, ConfigError, LaunchError
from gradatim.parallel.engine import LayoutEngine
from gradatim.parallel.mesh import single
from gradatim.text.prepare import prepare
from gradatim.train import Run, publish, train
from gradatim.train.checkpoint import save_checkpoint
from gradatim.train.continuing import training_hash
from gradatim.train.engine import SerialEngine
from gradatim.train.loop import Trainer
from gradatim.train.metrics import read_metrics
from gradatim.train.precision import own_gpu
from gradatim.train.state import Counters

MakeConfig = Callable[..., RunConfig]
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "valid_loss")


class Killed(Exception):  # noqa: N818
    """Stands for a process that is gone."""


def kill_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = Trainer._step

    def mortal(self: Trainer) -> dict[str, Any]:
        if self.counters.step == step:
            raise Killed
        return real(self)

    monkeypatch.setattr(Trainer, "_step", mortal)


def rows(directory: Path) -> list[dict[str, Any]]:
    return [{key: row.get(key) for key in EXACT} for row in read_metrics(directory / "metrics.jsonl")]


def weights(directory: Path) -> dict[str, Tensor]:
    return Run.open(directory).checkpoint("last").tensors()


def assert_same(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["gpt", "lstm", "window", "bert"])
def test_equals_the_run_that_never_stopped(
    kind: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before steps 3, 4, 7, …, with dropout, accumulation and a carried state; 60 steps are several epochs."""
    config = make_config(kind, 60 if kind == "lstm" else 12)
    train(config, tmp_path / "straight")
    assert len(rows(tmp_path / "straight")) == config.steps
    if kind == "lstm":
        saved = weights(tmp_path / "straight")
        assert any(float(saved[name].abs().sum()) > 0 for name in saved if name.startswith("carry/"))
    for stop in (1, 3, 4, 7, config.steps - 1):
        with monkeypatch.context() as patch:
            kill_before(patch, stop)
            with pytest.raises(Killed):
                train(config, tmp_path / "stopped", resume=True)
    train(config, tmp_path / "stopped", resume=True)
    assert_same(tmp_path / "straight", tmp_path / "stopped")
    attempts = [row["attempt"] for row in read_metrics(tmp_path / "stopped" / "metrics.jsonl")]
    assert attempts == sorted(attempts)
    assert attempts[-1] > 3


def test_several_epochs_are_crossed(make_config: MakeConfig, tmp_path: Path) -> None:
    trainer_config = make_config("lstm", 60)
    from gradatim.text.prepare import prepare

    prepared = prepare(trainer_config.data)
    assert SerialEngine(trainer_config, prepared).steps_per_epoch() < 60


def test_the_callers_random_numbers_go_on_undisturbed(make_config: MakeConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(make_config("gpt", 2), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_equal_whatever_was_drawn_before(make_config: MakeConfig, tmp_path: Path) -> None:
    for seed, name in ((1, "a"), (2, "b")):
        torch.manual_seed(seed)
        train(make_config("gpt", 4), tmp_path / name)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_the_seed_and_the_microbatch_matter_as_they_should(make_config: MakeConfig, tmp_path: Path) -> None:
    """Another seed is another run; without dropout another microbatch is the same one to rounding."""
    runs = {"whole": {"layout__microbatch": 6}, "ones": {"layout__microbatch": 1}}
    runs["seed"] = {"layout__microbatch": 6, "seed": 1}
    for name, fields in runs.items():
        train(make_config("gpt", 5, model__dropout=0, precision="fp64", **fields), tmp_path / name)
    losses = {name: [row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "ones", "seed")}
    assert losses["whole"] == pytest.approx(losses["ones"], rel=1e-12)
    assert losses["whole"] != pytest.approx(losses["seed"], rel=1e-3)


def test_every_step_and_microbatch_drops_other_units(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    real = torch.manual_seed

    def note(seed: int) -> torch.Generator:
        seeds.append(seed)
        return real(seed)

    monkeypatch.setattr(torch, "manual_seed", note)
    train(make_config("gpt", 4), tmp_path / "a")
    assert len(seeds) == len(set(seeds)) == 4 * 2
    first, seeds = seeds.copy(), []
    train(make_config("gpt", 4, seed=1), tmp_path / "b")
    assert not set(first) & set(seeds)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    counters = Counters()
    for loss in (float("nan"), 2.0, float("inf"), 1.0, float("nan")):
        counters.judged(loss)
    assert (counters.best, counters.since_best) == (1.0, 1)


def test_evaluations_that_gave_no_number_are_not_made_again(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint has null for them, and patience would count them twice."""
    config = make_config("gpt", 8, evaluation__every=2, evaluation__patience=4)
    judged: list[int] = []

    def nothing(self: Trainer, stop: Callable[[], bool] = lambda: False) -> float:
        judged.append(self.counters.step)
        return float("nan")

    monkeypatch.setattr(Trainer, "valid_loss", nothing)
    for stop in (3, 5, 7):
        with monkeypatch.context() as patch:
            kill_before(patch, stop)
            with pytest.raises(Killed):
                train(config, tmp_path / "run", resume=True)
    assert train(config, tmp_path / "run", resume=True).step == 8
    assert judged == [2, 4, 6, 8]


def test_counters_of_older_checkpoints_tell_what_was_measured() -> None:
    before = {"step": 4, "updates": 4, "valid_loss": 1.0}
    assert Counters(**before).measured  # type: ignore[arg-type]
    assert not Counters(**{**before, "valid_loss": None}).measured  # type: ignore[arg-type]


def test_older_checkpoints_of_models_for_blanks_alone_go_on(make_config: MakeConfig, tmp_path: Path) -> None:
    """Once they held a pooler and a head for pairs that nothing trained; under a layout, with moments of zero."""
    config = make_config("bert", 4, model__pairs="none", optimizer__schedule="constant")
    for name, moments in (("serial", ()), ("layout", ("exp_avg", "exp_avg_sq"))):
        directory = tmp_path / name
        train(config, directory)
        saved = Run.open(directory).checkpoint("last")
        tensors = saved.tensors()
        for part in ("pooler", "pair"):
            assert not any(f"head.{part}." in tensor for tensor in tensors)
            tensors[f"model/head.{part}.bias"] = torch.zeros(2)
            tensors |= {f"optimizer/head.{part}.bias/{moment}": torch.zeros(2) for moment in moments}
        save_checkpoint(saved.folder.parent, saved.manifest, tensors)
        rows = prepare(config.data)
        for engine in (SerialEngine(config, rows), LayoutEngine(config, rows, single())):
            assert engine.load(Run.open(directory).checkpoint("last")).step == 4
        assert Run.open(directory).network("last")
        longer = make_config("bert", 8, model__pairs="none", optimizer__schedule="constant")
        assert train(longer, directory, resume=True).step == 8
    assert_same(tmp_path / "serial", tmp_path / "layout")


def test_the_stretch_that_a_run_is_judged_on_stays(make_config: MakeConfig, tmp_path: Path) -> None:
    """Its losses are compared over the whole run: for the best checkpoint, and for patience."""
    train(make_config("gpt", 2), tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        train(make_config("gpt", 2, evaluation__tokens=50), tmp_path / "run", resume=True)
    (problem,) = caught.value.problems
    assert problem.where.endswith("evaluation.tokens")
    assert train(make_config("gpt", 2, evaluation__every=1), tmp_path / "run", resume=True).step == 2


def test_random_numbers_are_put_aside_on_the_current_gpu_alone(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = torch.random.fork_rng

    def fork(*arguments: Any, **more: Any) -> Any:
        asked.append((arguments, more))
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.random, "fork_rng", fork)
        train(make_config("gpt", 2), tmp_path / "run")
    gpus = own_gpu()
    assert asked[0] == ((gpus,), {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert own_gpu() == [3]


def test_settings_that_stay_are_not_written_again_and_others_whole(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_config("gpt", 2), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text("# mine\n" + path.read_text())
    before = path.read_bytes()
    train(make_config("gpt", 2), tmp_path / "run", resume=True)
    assert path.read_bytes() == before

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_durably", full)
        with pytest.raises(LaunchError, match="No space left on device"):
            train(make_config("gpt", 4), tmp_path / "run", resume=True)
    assert path.read_bytes() == before
    assert train(make_config("gpt", 4), tmp_path / "run", resume=True).step == 4
    assert Run.open(tmp_path / "run").config.steps == 4


def test_another_microbatch_may_continue_a_run(make_config: MakeConfig, tmp_path: Path) -> None:
    """A layout never changes the mathematics: the carried state is cut as the new one wants it."""
    plain = {"model__dropout": 0, "model__weight_drop": 0, "model__embedding_dropout": 0, "precision": "fp64"}
    plain |= {"optimizer__schedule": "constant", "evaluation__every": 100}
    for name, first in (("straight", 3), ("run", 2)):
        train(make_config("lstm", 4, layout__microbatch=first, **plain), tmp_path / name)
        train(make_config("lstm", 8, layout__microbatch=3, **plain), tmp_path / name, resume=True)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("straight", "run")]
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_more_steps_may_be_asked_for_later(make_config: MakeConfig, tmp_path: Path) -> None:
    constant = {"optimizer__schedule": "constant", "evaluation__every": 100}
    short, long = make_config("gpt", 4, **constant), make_config("gpt", 8, **constant)
    train(short, tmp_path / "run")
    assert train(long, tmp_path / "run", resume=True).step == 8
    train(long, tmp_path / "straight")
    after, straight = rows(tmp_path / "run"), rows(tmp_path / "straight")
    assert [row["loss"] for row in after] == [row["loss"] for row in straight]
    assert Run.open(tmp_path / "run").config.steps == 8


def test_a_finished_run_is_only_reported(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("gpt", 4)
    first = train(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert train(config, tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_is_never_overwritten(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("gpt", 2)
    train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="never overwritten"):
        train(config, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="no run"):
        train(config, tmp_path / "other")


def test_changed_settings_are_listed_one_by_one(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config("gpt", 2), tmp_path / "run")
    changed = make_config("gpt", 2, seed=3, model__d_ff=64, global_batch=9, optimizer__lr=0.5)
    with pytest.raises(CheckpointError) as caught:
        train(changed, tmp_path / "run", resume=True)
    found = {problem.where.split(": ")[-1]: (problem.got, problem.allowed) for problem in caught.value.problems}
    assert found == {
        "seed": ("3", "0"), "model.d_ff": ("64", "32"), "global_batch": ("9", "6"), "optimizer.lr": ("0.5", "0.01"),
    }  # fmt: skip
    allowed = replace(make_config("gpt", 2), checkpoint=CheckpointConfig(every=7, keep=5), max_skipped_steps=3)
    assert train(allowed, tmp_path / "run", resume=True).step == 2


def test_another_text_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("the more i read\n" * 40, encoding="utf-8")
    config = make_config("gpt", 2, data__train=own)
    train(config, tmp_path / "run")
    own.write_text("the more i like\n" * 40, encoding="utf-8")
    with pytest.raises(CheckpointError, match="text or its tokenizer has changed"):
        train(config, tmp_path / "run", resume=True)


def test_early_stop_and_best(make_config: MakeConfig, tmp_path: Path) -> None:
    """A rate far too high never improves on its first evaluation for long."""
    config = make_config(
        "gpt", 60, optimizer__lr=3.0, optimizer__clip="null", evaluation__every=1, evaluation__patience=2
    )
    result = train(config, tmp_path / "run")
    assert result.step < 60
    losses = [row["valid_loss"] for row in rows(tmp_path / "run")]
    assert result.best_valid_loss == min(losses)
    assert result.step - 1 - losses.index(min(losses)) == 2
    best = Run.open(tmp_path / "run").checkpoint("best")
    assert best.manifest.valid_loss == min(losses)
    assert train(config, tmp_path / "run", resume=True).step == result.step


def test_a_saved_model_judges_as_it_did_in_training(make_config: MakeConfig, tmp_path: Path) -> None:
    from gradatim.evaluate.likelihood import log_probs
    from gradatim.text.prepare import prepare

    for kind in ("gpt", "lstm", "window", "bigram"):
        config = make_config(kind, 4)
        result = train(config, tmp_path / kind)
        run = Run.open(tmp_path / kind)
        valid = prepare(config.data).valid
        assert valid is not None
        rows_ = 1 if kind == "bigram" else 16
        found = log_probs(run.model("last"), valid.tokens, run.tokenizer.boundary, config.context, rows_)
        assert -found.mean() == pytest.approx(result.valid_loss, rel=1e-6)


def test_ngrams_have_the_same_run_directory(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("bigram")
    result = train(config, tmp_path / "run")
    assert (result.step, result.loss, result.mfu) == (1, None, None)
    assert result.valid_loss is not None
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert row.keys() >= {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "attempt"}
    assert train(config, tmp_path / "run", resume=True) == result
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"config.yaml", "env.json", "metrics.jsonl", "tokenizer.json", "checkpoints", "logs"}


def test_two_processes_cannot_train_one_run(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("gpt", 2)
    with Run(tmp_path / "run").locked(), pytest.raises(LaunchError, match="another process") as caught:
        train(config, tmp_path / "run", resume=True)
    assert "pid" in caught.value.problems[0].got
    assert train(config, tmp_path / "run", resume=True).step == 2  # and a lock file that nobody holds is no lock


def test_bf16_keeps_float32_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    result = train(make_config("gpt", 6, precision="bf16"), tmp_path / "run")
    assert result.loss is not None
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}


def test_environment_is_written_down(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config("gpt", 2), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "env.json").read_text())
    assert torch.__version__.startswith(found["packages"]["torch"].split("+")[0])
    assert found.keys() >= {"python", "machine", "processor", "cores", "threads", "command", "git"}


def test_fewer_steps_than_are_done_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config("gpt", 6), tmp_path / "run")
    before = (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(ConfigError, match="the run has made more steps already"):
        train(make_config("gpt", 4), tmp_path / "run", resume=True)
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_more_steps_under_a_falling_rate_are_said(make_config: MakeConfig, tmp_path: Path) -> None:
    said: list[str] = []
    train(make_config("gpt", 4, optimizer__schedule="cosine"), tmp_path / "run")
    train(make_config("gpt", 6, optimizer__schedule="cosine"), tmp_path / "run", resume=True, say=said.append)
    assert any("steps were 4 and are 6 now: the cosine rate follows" in line for line in said)


def test_the_fingerprint_knows_what_was_chosen(make_config: MakeConfig) -> None:
    """And nothing that stands at its default: a later version's new settings leave it as it is."""
    config = make_config("gpt")
    known = training_hash(config)
    assert known == training_hash(replace(config, steps=config.steps + 1, data=replace(config.data, cache="elsewhere")))
    assert known != training_hash(replace(config, seed=config.seed + 1))
    assert known != training_hash(replace(config, optimizer=replace(config.optimizer, eps=1e-6)))

    later = make_dataclass("RunConfig", [("added", int, 3)], bases=(RunConfig,), frozen=True)
    same = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    assert known == training_hash(later(**same))
    assert known != training_hash(later(**same, added=4))
