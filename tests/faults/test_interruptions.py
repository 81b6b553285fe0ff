"""Signals, kills, full disks, gradients that are no numbers: a run stops or goes on as documented, and ends equal."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gradatim.config import config_to_yaml
from gradatim.config.settings import RunConfig
from gradatim.errors import Interrupted, LaunchError, NonFiniteError
from gradatim.train import Run, checkpoint, engine, loop, train
from gradatim.train.checkpoint import newest_valid
from gradatim.train.metrics import read_metrics
from gradatim.train.publish import list_checkpoints
from gradatim.train.signals import StopRequest

MakeConfig = Callable[..., RunConfig]
EXACT = ("step", "loss", "lr", "grad_norm", "tokens", "valid_loss")


def rows(directory: Path) -> list[dict[str, Any]]:
    return [{key: row.get(key) for key in EXACT} for row in read_metrics(directory / "metrics.jsonl")]


def assert_same(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    first, second = (Run.open(run).checkpoint("last").tensors() for run in (a, b))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("kind", ["gpt", "lstm"])
def test_a_signal_saves_and_the_resumed_run_ends_equal(
    kind: str, number: signal.Signals, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(kind, 10, checkpoint__every=100)
    train(config, tmp_path / "straight")
    real = loop.Trainer._step

    def signalled(self: loop.Trainer) -> dict[str, Any]:
        if self.counters.step == 4:
            os.kill(os.getpid(), number)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", signalled)
        with pytest.raises(Interrupted, match=f"{number.name} after step 5"):
            train(config, tmp_path / "run")
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000005"
    train(config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "straight", tmp_path / "run")


def test_a_signal_in_an_evaluation_leaves_it_to_the_resumed_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("gpt", 9)
    train(config, tmp_path / "straight")
    real = loop.Trainer.valid_loss

    def signalled(self: loop.Trainer, stop: Callable[[], bool] = lambda: False) -> float:
        if self.counters.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "valid_loss", signalled)
        with pytest.raises(Interrupted, match="after step 6"):
            train(config, tmp_path / "run")
    assert "valid_loss" not in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    train(config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "straight", tmp_path / "run")


def test_a_signal_in_the_last_evaluation_leaves_it_to_the_resumed_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are done, but what the run was to be judged by is not known."""
    config = make_config("gpt", 4)
    train(config, tmp_path / "straight")
    real = loop.Trainer.valid_loss

    def signalled(self: loop.Trainer, stop: Callable[[], bool] = lambda: False) -> float:
        if self.counters.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "valid_loss", signalled)
        for resume in (False, True):  # and once more in the evaluation made up for
            with pytest.raises(Interrupted, match="after step 4"):
                train(config, tmp_path / "run", resume=resume)
    assert train(config, tmp_path / "run", resume=True).valid_loss is not None
    assert_same(tmp_path / "straight", tmp_path / "run")


def test_handlers_are_put_back_and_other_threads_do_without() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not stop
    assert signal.getsignal(signal.SIGTERM) == before
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with StopRequest():
                pass
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert raised == []


def test_a_second_signal_ends_at_once() -> None:
    script = (
        "import os, signal, time\nfrom gradatim.train.signals import StopRequest\n"
        "with StopRequest() as stop:\n    os.kill(os.getpid(), signal.SIGTERM)\n    assert stop\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=50, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def start(directory: Path, recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gradatim", "train", str(recipe), "--run", str(directory), "--resume", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def wait_for_rows(directory: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    path = directory / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_at_random_moments_and_told_to_stop_ends_equal(make_config: MakeConfig, tmp_path: Path) -> None:
    """SIGKILL twice and SIGTERM once, in real processes, then let it finish."""
    config = make_config("lstm", 1500, evaluation__every=50, checkpoint__every=10)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config_to_yaml(config), encoding="utf-8")
    draw = random.Random(4)
    seen = 0
    for _ in range(2):
        process = start(tmp_path / "run", recipe)
        wait_for_rows(tmp_path / "run", seen + draw.randint(12, 60))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert newest_valid(tmp_path / "run" / "checkpoints")[0] is not None
        seen = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    process = start(tmp_path / "run", recipe)
    wait_for_rows(tmp_path / "run", seen + 5)
    process.send_signal(signal.SIGTERM)
    answer, _ = process.communicate(timeout=60)
    assert process.returncode == Interrupted.exit_code
    assert json.loads(answer)["error"]["exit_code"] == 10
    process = start(tmp_path / "run", recipe)
    answer, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert json.loads(answer)["step"] == 1500
    process = start(tmp_path / "straight", recipe)
    process.communicate(timeout=100)
    assert_same(tmp_path / "straight", tmp_path / "run")


# --------------------------------------------------------------------------- disks


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A limit of the kernel's: writes beyond it fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [1 << 10, 10 << 10])
def test_a_save_that_fails_leaves_the_previous_checkpoint(
    size: int,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Saves of steps 4 and 6 fail; the run goes on, loudly, and the next save succeeds."""
    config = make_config("gpt", 8, evaluation__every=100)
    train(config, tmp_path / "straight")
    real = engine.save_checkpoint

    def on_a_full_disk(folder: Path, manifest: Any, tensors: Any) -> Path:
        if manifest.step not in (4, 6):
            return real(folder, manifest, tensors)
        with files_no_larger_than(size):
            return real(folder, manifest, tensors)

    monkeypatch.setattr(engine, "save_checkpoint", on_a_full_disk)
    train(config, tmp_path / "run")
    assert capfd.readouterr().err.count("could not be saved") == 2
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-00000002", "step-00000008",
    ]  # fmt: skip
    assert_same(tmp_path / "straight", tmp_path / "run")


def test_three_failed_saves_in_a_row_end_the_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    with pytest.raises(LaunchError, match="No space left on device") as caught:
        train(make_config("gpt", 40, checkpoint__every=1, evaluation__every=100), tmp_path / "run")
    assert "3 failures" in caught.value.problems[0].got
    assert len(rows(tmp_path / "run")) == 3
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def fail_saves(patch: pytest.MonkeyPatch, which: set[int]) -> None:
    """Let the n-th attempts to save fail, from 1; a full disk."""
    real, calls = engine.save_checkpoint, iter(range(1, 1000))

    def save(*arguments: Any) -> Path:
        if next(calls) in which:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    patch.setattr(engine, "save_checkpoint", save)


def test_a_run_whose_end_cannot_be_saved_does_not_end_well(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config("gpt", 4, evaluation__every=100)
    with monkeypatch.context() as patch:
        fail_saves(patch, {2, 3})
        with pytest.raises(LaunchError, match="No space left on device") as caught:
            train(config, tmp_path / "run")
    assert caught.value.exit_code == 5
    assert caught.value.problems[0].got == "the last checkpoint, at step 4; step 2 is the last one saved"
    with monkeypatch.context() as patch:
        fail_saves(patch, {1})
        assert train(config, tmp_path / "run", resume=True).step == 4  # the second attempt succeeded
    assert capfd.readouterr().err.count("step 4 could not be saved (No space left on device); trying once more") == 2
    assert Run.open(tmp_path / "run").checkpoint("last").step == 4


def test_a_stop_that_cannot_be_saved_does_not_say_so(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Trainer._step

    def signalled(self: loop.Trainer) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(loop.Trainer, "_step", signalled)
    fail_saves(monkeypatch, {1, 2})
    with pytest.raises(LaunchError) as caught:
        train(make_config("gpt", 4), tmp_path / "run")
    assert caught.value.problems[0].got == "the last checkpoint, at step 1; nothing is saved"


def test_killed_at_any_point_of_a_save_a_whole_checkpoint_remains(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before each fsync and each rename of a save in turn: what is published is always whole."""

    class Died(BaseException):
        pass

    config = make_config("gpt", 8, evaluation__every=100)
    train(config, tmp_path / "straight")
    points = 0
    for point in range(1, 40):
        directory = tmp_path / f"run{point}"
        calls = 0

        def mortal(real: Callable[..., Any], limit: int = point) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == limit:
                    raise Died
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", mortal(os.fsync))
            patch.setattr(Path, "rename", mortal(Path.rename))
            patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)  # the dead do not tidy up
            try:
                train(config, directory)
            except Died:
                points += 1
            else:
                break
        _, rejected = newest_valid(directory / "checkpoints")
        assert rejected == []
        train(config, directory, resume=True)
        assert_same(tmp_path / "straight", directory)
        assert not [path for path in (directory / "checkpoints").iterdir() if "." in path.name]
    assert points >= 16


def test_metrics_on_a_full_disk_are_kept_and_written_later(tmp_path: Path) -> None:
    from gradatim.config.settings import TrackConfig
    from gradatim.train.metrics import MetricsLog

    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, TrackConfig())
    log.write({"step": 1, "loss": 1.0})
    with files_no_larger_than(path.stat().st_size + 7):
        log.write({"step": 2, "loss": float("nan")})
        with pytest.raises(OSError, match=r"\S"):
            log.sync()
    log.write({"step": 3, "loss": 3.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, None), (3, 3.0)]


def test_a_row_torn_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    from gradatim.config.settings import TrackConfig
    from gradatim.train.metrics import MetricsLog

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "attempt": 1}\n{"step": 2, "attempt": 1}\n{"step": 3, "att')
    log = MetricsLog(path, TrackConfig())
    log.write({"step": 2})
    log.close()
    assert [(row["step"], row["attempt"]) for row in read_metrics(path)] == [(1, 1), (2, 2)]


def test_a_place_that_cannot_be_written_is_said_before_training(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="cannot be written"):
        train(make_config("gpt", 2), tmp_path / "file" / "run")


# --------------------------------------------------------------------------- numbers that are none


def poison(patch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
    real = engine.gradient_norm
    calls = iter(range(10**6))

    def poisoned(parameters: Any) -> torch.Tensor:
        parameters = list(parameters)
        if next(calls) in steps:
            parameters[0].grad.view(-1)[0] = value
        return real(parameters)

    patch.setattr(engine, "gradient_norm", poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_skipped_and_its_samples_named(
    value: float,
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    poison(monkeypatch, {3}, value)
    config = make_config("lstm", 6, checkpoint__every=1, checkpoint__keep=9)
    assert train(config, tmp_path / "run").step == 6
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in found if "skipped" in row] == [4]
    assert found[3]["grad_norm"] is None
    assert len(found[3]["samples"]) == 6
    assert "step 4 skipped" in capfd.readouterr().err
    run = Run.open(tmp_path / "run")
    before, after = (run.checkpoint(step).tensors() for step in ("3", "4"))
    for name in before:
        if not name.startswith("carry/"):
            assert torch.equal(before[name], after[name]), name
    assert all(torch.isfinite(tensor).all() for tensor in run.checkpoint("last").tensors().values())


def test_too_many_of_them_end_the_run(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(100)), float("nan"))
    with pytest.raises(NonFiniteError, match="once too often") as caught:
        train(make_config("gpt", 50, max_skipped_steps=2), tmp_path / "run")
    assert caught.value.exit_code == 11
    assert [row["skipped"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
