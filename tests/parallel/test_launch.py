"""Starting ranks, by ourselves and in groups that others started: real processes, few and small."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gradatim.config.settings import LayoutConfig
from gradatim.errors import Interrupted
from gradatim.parallel.agree import exchange, tell
from gradatim.parallel.launch import launch
from gradatim.parallel.mesh import single
from gradatim.parallel.place import threads_of_rank

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers find ``work_launch.py``; this machine's threads are theirs to share."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_own_workers(capfd: pytest.CaptureFixture[str]) -> None:
    before, handlers = dict(os.environ), signal.getsignal(signal.SIGTERM)
    answer = launch("work_launch:add_ranks", {"first": 1.5}, LayoutConfig(dp=2))
    assert answer["sum"] == 4.0
    assert answer["world"] == 2
    assert answer["threads"] == threads_of_rank(2)
    assert gone(answer["pid"])
    captured = capfd.readouterr()
    assert captured.out == ""  # it is the parent's alone
    said = captured.err.replace("not on the parent's standard output", "said")
    assert "".join(said.split()) == "said" * 2  # torch says nothing of its own; two processes may mix their line ends
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) == handlers


def test_a_signal_reaches_each_worker_once_and_all_stop_at_the_same_step(tmp_path: Path) -> None:
    def send() -> None:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("*.started"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted, match="stopped after step"):
        launch("work_launch:until_stopped", {"started": str(tmp_path)}, LayoutConfig(dp=2))
    sender.join()
    steps = [path.read_text().split() for path in sorted(tmp_path.glob("*.stopped"))]
    assert len(steps) == 2
    assert steps[0][0] == steps[1][0]
    assert steps[0][1] == "SIGTERM"


def test_alone_there_is_nobody_to_agree_with() -> None:
    assert tell({"stop": True}, single()) == {"stop": True}
    assert exchange(1, single()) == [1]


# --------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``train`` on a few lines, for a second."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"the more i read the more i like it and learn else than {number}" for number in range(60)]
    (folder / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    fields = {
        "data.train": folder / "train.txt", "data.document": "line", "data.tokenizer.kind": "char",
        "data.cache": folder / "cache", "model.d_model": 16, "model.n_layers": 2, "model.n_heads": 2,
        "model.d_ff": 32, "steps": 4, "context": 8, "global_batch": 4, "optimizer.warmup": 1, "layout.dp": 2,
        "layout.timeout": 60,
    }  # fmt: skip
    return ["train", "gpt", *(part for name, value in fields.items() for part in (f"--{name}", str(value)))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gradatim", *arguments, "--json"]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_one_command_trains_in_its_own_workers_under_torchrun_and_under_slurm(
    recipe: list[str], tmp_path: Path
) -> None:
    """The same losses each time; one answer; the map of ranks once."""

    def answer_of(out: str) -> dict[str, Any]:
        (document,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert document["step"] == 4
        assert document["layout"]["dp"] == 2
        assert isinstance(document, dict)
        return document

    own = start([*recipe, "--run", str(tmp_path / "own")])
    out, err = own.communicate(timeout=100)
    assert own.returncode == 0, err
    assert out.count("\n") == 1
    assert answer_of(out)["run"] == str(tmp_path / "own")
    assert err.count("dp 0+1: sum gradients, every step") == 1

    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    # The two dashes: on Python 3.11 torchrun else takes --run for a short form of its own --run-path.
    command = [
        sys.executable,
        *torchrun,
        "-m",
        "--",
        "gradatim",
        *recipe,
        "--layout.sequence_parallel",
        "true",
        "--run",
        str(tmp_path / "torchrun"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    answer_of(done.stdout)
    assert done.stderr.count("note: layout.sequence_parallel true has no effect") == 1  # by the first rank
    assert done.stderr.count("dp 0+1: sum gradients, every step") == 1

    common = {"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost", "SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0"}
    ranks = [
        start(
            [*recipe, "--run", str(tmp_path / "slurm")], **common, SLURM_PROCID=rank, SLURM_LOCALID=rank,
            MASTER_PORT=str(port),
        )
        for port in [free_port()]
        for rank in ("0", "1")
    ]  # fmt: skip
    told = [process.communicate(timeout=100) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told
    answer_of(told[0][0])
    assert told[1] == ("", "")
    assert losses(tmp_path / "own") == losses(tmp_path / "torchrun") == losses(tmp_path / "slurm")
