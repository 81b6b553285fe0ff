"""Ranks that die, raise or hang: everybody ends in time, nobody is left, the first to fail and its action are named."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradatim.config import config_to_yaml
from gradatim.config.settings import LayoutConfig, RunConfig
from gradatim.errors import DataError, GradatimError, HangError, LaunchError
from gradatim.parallel.launch import launch

WORK = Path(__file__).parents[1] / "parallel"
MakeConfig = Callable[..., RunConfig]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("how", "expected", "words"),
    [
        ("kill", LaunchError, "rank 1, stage 1, step 3, action 1F3: the process died (SIGKILL)"),
        ("data", DataError, "text.bin: the text is damaged (rank 1, stage 1, step 3, action 1F3)"),
        ("hang", HangError, "rank 1, stage 1, step 3, action 1F3: the other ranks waited in vain for this one"),
        ("stop", HangError, "got: no answer at all"),
    ],
)
def test_the_rank_and_its_action_are_named_and_nobody_is_left(
    how: str, expected: type[GradatimError], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(WORK))
    timeout = 6.0
    started = time.monotonic()
    arguments = {"how": how, "pids": str(tmp_path)}
    with pytest.raises(expected) as caught:
        launch("work_launch:fail", arguments, LayoutConfig(pp=2, timeout=timeout), tmp_path)
    assert words in str(caught.value)
    assert time.monotonic() - started < 60
    pids = [int((tmp_path / rank).read_text()) for rank in "01"]
    assert not any(map(alive, pids))
    assert capfd.readouterr().out == ""
    if expected is HangError:
        assert "exchange" in (tmp_path / "failure-rank0.txt").read_text()  # where the other one waited


# --------------------------------------------------------------------------- the command


def start(directory: Path, recipe: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gradatim", "train", str(recipe), "--run", str(directory), "--json", *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def start_group(directory: Path, recipe: Path) -> list[subprocess.Popen[str]]:
    """Two ranks as torchrun starts them, though nobody ends one when the other does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    return [start(directory, recipe, RANK=rank, LOCAL_RANK=rank, **common) for rank in "01"]


def workers_of(parent: int) -> list[int]:
    """The workers' processes, by rank."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                stat, environment = (path / "stat").read_text(), (path / "environ").read_bytes()
            except OSError:
                continue
            if stat.rpartition(")")[2].split()[1] == str(parent):
                rank = [part for part in environment.split(b"\0") if part.startswith(b"RANK=")]
                found.update({int(text[5:]): int(path.name) for text in rank})
    return [found[rank] for rank in sorted(found)]


def wait_for_rows(process: subprocess.Popen[str], directory: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    path = directory / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def error_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    document = json.loads(out)["error"]
    assert document["exit_code"] == process.returncode
    assert isinstance(document, dict)
    return document


@pytest.fixture
def endless(make_config: MakeConfig, tmp_path: Path) -> Path:
    """A run of two ranks that ends when it is told to."""
    config = make_config(
        "gpt", 100_000, layout__dp=2, layout__timeout=60, checkpoint__every=10**6, evaluation__every=10**6
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config_to_yaml(config), encoding="utf-8")
    return recipe


def test_a_killed_rank_ends_the_command_with_its_name(endless: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", endless)
    wait_for_rows(process, tmp_path / "run", 3)
    workers = workers_of(process.pid)
    os.kill(workers[1], signal.SIGKILL)
    (problem,) = error_of(process)["problems"]
    assert process.returncode == LaunchError.exit_code
    assert problem["where"].startswith("rank 1, replica 1, step ")
    assert problem["what"] == "the process died (SIGKILL)"
    assert not any(map(alive, workers))


def test_a_stopped_run_saves_and_resumes_in_one_process(endless: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", endless)
    wait_for_rows(process, tmp_path / "run", 3)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGTERM)
    (problem,) = error_of(process)["problems"]
    assert process.returncode == 10
    step = int(problem["what"].split("after step ")[1].split(";")[0])
    assert not any(map(alive, workers))
    resumed = start(tmp_path / "run", endless, "--resume", "--steps", str(step + 2), "--layout.dp", "1")
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    before, now = "saved under the layout dp 2, microbatch 3", "it is microbatch 3 from here on"
    assert f"continuing after step {step}, {before}; {now}, as the command and its recipe say" in err
    assert json.loads(out)["step"] == step + 2


def test_workers_do_not_outlive_a_launcher_that_is_killed(endless: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", endless)
    wait_for_rows(process, tmp_path / "run", 3)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_workers_do_not_outlive_a_launcher_that_is_killed_while_they_start(endless: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", endless)
    until = time.monotonic() + 60
    while len(workers := workers_of(process.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_in_a_group_that_others_started_one_rank_tells(endless: Path, tmp_path: Path) -> None:
    """A rank killed, a signal to all, a run that exists: one document each time, equal exit codes."""
    run = tmp_path / "run"
    ranks = start_group(run, endless)
    wait_for_rows(ranks[0], run, 3)
    ranks[1].kill()
    (problem,) = error_of(ranks[0])["problems"]
    assert ranks[0].returncode == 5
    assert problem["where"].startswith("rank 1, replica 1, step ")
    assert problem["what"] == "the process died"
    ranks[1].communicate()

    ranks = start_group(tmp_path / "other", endless)
    wait_for_rows(ranks[0], tmp_path / "other", 3)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM after step" in error_of(ranks[0])["problems"][0]["what"]
    out, _ = ranks[1].communicate(timeout=60)
    assert [rank.returncode for rank in ranks] == [10, 10]
    assert out == ""

    ranks = start_group(run, endless)
    assert "runs are never overwritten" in error_of(ranks[0])["problems"][0]["what"]
    out, err = ranks[1].communicate(timeout=60)
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert (out, err) == ("", "")
