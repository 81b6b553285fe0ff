"""Places that launchers give by their variables, and what is refused before anybody waits for anybody."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from gradatim.config.settings import LayoutConfig
from gradatim.errors import ConfigError, LaunchError
from gradatim.parallel.place import FIRST_PORT, Place, first_host, given_place, refuse_other_world, tasks_per_node

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node7",
    "MASTER_PORT": "4242",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0", "SLURM_NODELIST": "gpu[003-004]", "SLURM_TASKS_PER_NODE": "4,3",
}  # fmt: skip


def test_torchrun() -> None:
    assert given_place(TORCHRUN) == Place(5, 8, 1, 4, "node7", 4242, "torchrun")
    plain = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert given_place(plain) == Place(1, 2, 1, 2, "127.0.0.1", 29500, "torchrun")


def test_slurm() -> None:
    assert given_place(SLURM) == Place(5, 7, 1, 3, "gpu003", FIRST_PORT + 123456 % 20_000, "Slurm")
    named = given_place({**SLURM, "MASTER_ADDR": "login", "MASTER_PORT": "99"})
    assert named is not None
    assert (named.address, named.port) == ("login", 99)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "2"},  # nobody said where to meet
        {"SLURM_NTASKS": "4"},  # a shell that salloc opened
        {**SLURM, "SLURM_STEP_ID": "4294967291"},  # the batch script itself
        {**{k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}, "ENVIRONMENT": "BATCH"},  # likewise
        {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},  # one task: a machine to start workers on
    ],
)
def test_no_group_to_join(environment: dict[str, str]) -> None:
    assert given_place(environment) is None


@pytest.mark.parametrize(
    ("change", "where"), [({"RANK": "x"}, "RANK"), ({"RANK": "8"}, "torchrun"), ({"MASTER_PORT": "99999"}, "torchrun")]
)
def test_variables_that_make_no_sense(change: dict[str, str], where: str) -> None:
    with pytest.raises(LaunchError) as caught:
        given_place({**TORCHRUN, **change})
    assert caught.value.problems[0].where == where


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("gpu[003-007,011],login1", "gpu003"),
        ("a[1,3]b,c", "a1b"),
        ("n1,n2", "n1"),
        ("rack[2]-node", "rack2-node"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_per_node() -> None:
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("2") == [2]


def test_another_world_is_refused_with_what_would_do() -> None:
    place = Place(0, 6, 0, 6, "here", 1, "torchrun")
    refuse_other_world(LayoutConfig(tp=2, dp=3), place)
    with pytest.raises(ConfigError) as caught:
        refuse_other_world(LayoutConfig(tp=2, dp=2), place)
    (problem,) = caught.value.problems
    assert problem.got == "tp 2 · pp 1 · dp 2 = 4, started 6"
    assert problem.attempt == "--layout.dp 3"
    with pytest.raises(ConfigError) as caught:
        refuse_other_world(LayoutConfig(tp=4), place)
    assert caught.value.problems[0].attempt == "torchrun --nproc-per-node 4"


@pytest.mark.parametrize("mistake", [["--layout.dp", "4"], ["--layout.tp", "3", "--model.n_heads", "4"]])
def test_each_rank_refuses_and_the_first_one_says_why(mistake: list[str]) -> None:
    """A wrong world, and a layout that ``check`` refuses: before torch is loaded, once, exit code 2 on every rank."""
    started = time.monotonic()
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-m", "gradatim", "train", "gpt", *mistake]
        ranks.append(
            subprocess.Popen(
                command, env={**os.environ, **place}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    told = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2]
    assert [out for out, _ in told] == ["", ""]
    assert told[0][1].startswith("error: ")
    assert told[1][1] == ""
    assert time.monotonic() - started < 20
