"""Who is heard when ranks fail, and whose fault it is found to be, judged by what ranks left in their folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradatim.config.settings import LayoutConfig
from gradatim.errors import CheckpointError, DataError, HangError, LaunchError, NonFiniteError, Problem
from gradatim.parallel import watch as module
from gradatim.parallel.verdict import RankError, verdict
from gradatim.parallel.watch import Watch, kind_of, records, report_action, report_step, set_watch, witnesses

LAYOUT = LayoutConfig(pp=3, timeout=7)
LOST = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer")
TIMEOUT = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:92] Timed out waiting 7000ms")

Ranks = Callable[[int], list[Watch]]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long here."""
    monkeypatch.setattr(module, "LOOK", 0.02)
    monkeypatch.setattr(module, "GATHER", 0.2)
    monkeypatch.setattr(module, "LINGER", 0.3)


@pytest.fixture
def ended() -> list[tuple[int, int]]:
    """(rank, exit code) of ranks that were ended by their watch."""
    return []


@pytest.fixture
def ranks(tmp_path: Path, ended: list[tuple[int, int]]) -> Iterator[Ranks]:
    """Watches of as many ranks as asked for, in one process."""
    made: list[Watch] = []

    def make(world: int) -> list[Watch]:
        for rank in range(world):
            made.append(Watch(tmp_path, rank, world, end=lambda code, rank=rank: ended.append((rank, code))))
        return made

    yield make
    for watch in made:
        watch.close()


def test_a_record_survives_its_process(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\nfrom gradatim.parallel.watch import *\n"
        "set_watch(Watch(pathlib.Path(sys.argv[1]), 2, 3))\nreport_step(7)\n"
        "report_action('1F3')\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    record = records(tmp_path)[2]
    assert done.returncode == -9
    assert record.action == "step 7, action 1F3"
    assert not record.alive
    assert 0 <= time.time() - record.when < 60


def test_reporting_is_cheap_and_harmless_without_a_watch(ranks: Ranks) -> None:
    report_action("1F3")
    report_step(1)
    (watch,) = ranks(1)
    set_watch(watch)
    report_step(3)
    started = time.perf_counter()
    for _ in range(1000):
        report_action("0B12")
    assert time.perf_counter() - started < 0.1  # 2 µs each on an idle machine
    set_watch(None)
    assert records(watch.folder)[0].action == "step 3, action 0B12"
    assert records(watch.folder)[0].alive
    watch.report("x" * 10_000)
    assert records(watch.folder)[0].pid == os.getpid()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (LOST, "lost"),
        (TIMEOUT, "hang"),
        (RuntimeError("shape mismatch"), "error"),
        (ValueError("timed out"), "error"),
        (ConnectionResetError(104, "Connection reset by peer"), "lost"),
        (MemoryError(), "error"),
    ],
)
def test_kinds_of_errors(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def test_the_first_error_is_heard_and_its_consequences_are_not(ranks: Ranks, ended: list[tuple[int, int]]) -> None:
    first, second, third = ranks(3)
    second.step = "step 7"
    second.report("action 1F3")
    assert second.fail(DataError(Problem(where="x.bin", what="it is damaged", got="3", allowed="4", attempt="prepare")))
    assert not first.fail(LOST)
    assert not third.fail(ValueError("later"))
    error = verdict(first.folder, LAYOUT, {0: 1, 1: 1, 2: 1})
    assert isinstance(error, DataError)
    assert error.problems == (
        Problem(
            where="x.bin", what="it is damaged (rank 1, stage 1, step 7, action 1F3)", got="3", allowed="4",
            attempt="prepare",
        ),
    )  # fmt: skip
    time.sleep(0.6)
    assert {code for _, code in ended} == {3}  # as the first one's


def test_a_lost_connection_waits_for_its_cause(ranks: Ranks) -> None:
    first, second, _ = ranks(3)
    assert first.fail(LOST)  # nobody says why
    assert isinstance(verdict(first.folder, LAYOUT, {0: 1}), LaunchError)
    assert "connection to another rank was lost" in str(verdict(first.folder, LAYOUT, {0: 1}))
    died = verdict(first.folder, LAYOUT, {0: 1, 1: -9})
    assert isinstance(died, LaunchError)
    assert died.problems[0].where == "rank 1, stage 1"
    assert died.problems[0].what == "the process died (SIGKILL)"
    assert second.rank not in witnesses(first.folder) or witnesses(first.folder)[1].kind == "peer"


def test_a_death_without_a_word_goes_before_what_others_say(ranks: Ranks) -> None:
    (first,) = ranks(1)
    assert first.fail(RuntimeError("half a tensor"))
    error = verdict(first.folder, LAYOUT, {0: 1, 1: -11})
    assert isinstance(error, LaunchError)
    assert error.problems[0].what == "the process died (SIGSEGV)"


def test_of_a_hang_the_silent_the_busy_or_the_oldest_is_named(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = ranks(3)
    monkeypatch.setattr(module, "where", lambda frame: ("attention.py:33 in forward", False))
    second.report("action 1F3")
    assert third.fail(TIMEOUT)
    error = verdict(first.folder, LAYOUT, {2: 1})
    assert isinstance(error, HangError)
    (problem,) = error.problems
    assert problem.got == "at attention.py:33 in forward"
    assert problem.allowed == "7 seconds (layout.timeout)"
    assert problem.where.startswith("rank 0, stage 0")  # both others are busy, this one for longer
    (first.folder / "1.json").unlink()
    error = verdict(first.folder, LAYOUT, {2: 1})
    assert error.problems[0].where == "rank 1, stage 1, action 1F3"  # type: ignore[attr-defined]
    assert error.problems[0].got == "no answer at all"  # type: ignore[attr-defined]


def test_errors_are_rebuilt_as_what_they_were(ranks: Ranks) -> None:
    (watch,) = ranks(1)

    def shown(error: Exception) -> Exception:
        for path in watch.folder.glob("*.json"):
            path.unlink()
        watch._claim(module.testify(0, error, "step 1, action 0F0"))
        return verdict(watch.folder, LayoutConfig(), {0: 1})

    full = shown(OSError(28, "No space left on device", "/data"))
    assert isinstance(full, OSError)
    assert (full.errno, full.filename) == (28, "/data")
    missing = shown(ModuleNotFoundError("No module named 'wandb'", name="wandb"))
    assert isinstance(missing, ModuleNotFoundError)
    assert missing.name == "wandb"
    assert isinstance(shown(MemoryError("of 640 kB")), MemoryError)
    assert isinstance(shown(CheckpointError(Problem(where="a", what="b"))), CheckpointError)
    odd = shown(KeyError("qkv"))
    assert isinstance(odd, RankError)
    assert str(odd) == "rank 0, step 1, action 0F0: KeyError: 'qkv'"
    assert "KeyError" in odd.__notes__[0]
    spent = shown(NonFiniteError(Problem(where="step 3", what="not finite once too often")))
    assert str(spent) == "step 3: not finite once too often"  # all ranks come to it at once


def test_workers_that_end_before_they_begin(tmp_path: Path) -> None:
    error = verdict(tmp_path, LAYOUT, {0: 1, 1: 1})
    assert isinstance(error, LaunchError)
    assert "rank 0: 1, rank 1: 1" in str(error)


def test_a_rank_whose_launcher_was_gone_before_it_looked_ends(tmp_path: Path) -> None:
    ended: list[int] = []
    watches = [
        Watch(tmp_path, rank, 2, end=lambda code, rank=rank: ended.append(10 * rank + code), parent=parent)  # type: ignore[misc]
        for rank, parent in enumerate([os.getppid(), os.getpid()])
    ]
    time.sleep(0.3)
    for watch in watches:
        watch.close()
    assert set(ended) == {15}
