"""Where this process stands in a group that somebody else started: torchrun, or Slurm's srun. No torch.

Without such a group there is nothing to join, and a layout of several ranks starts its own workers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gradatim.config.derived import world_size
from gradatim.config.settings import LayoutConfig
from gradatim.errors import ConfigError, LaunchError, Problem

FIRST_PORT, PORTS = 15_000, 20_000
"""Slurm names no port, so jobs take one by their number, below those that systems hand out (32768 and up)."""
NO_STEP = 0xFFFF_FF00
"""Step numbers from here on are Slurm's own: the batch script, an interactive shell."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rank of a group of processes."""

    rank: int
    world: int
    local_rank: int
    """Its number among those of this machine."""
    local_world: int
    address: str
    """The machine on which the ranks find each other."""
    port: int
    launcher: str
    """Who started it, to people."""


def given_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that a launcher's variables give this process; None where there is no group to join.

    Raises:
        LaunchError: the variables make no sense together.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return _torchrun(environment)
    if {"SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys() and _is_step(environment):
        return _slurm(environment)
    return None


def _torchrun(environment: Mapping[str, str]) -> Place:
    world = _number(environment, "WORLD_SIZE")
    return _checked(
        Place(
            rank=_number(environment, "RANK"),
            world=world,
            local_rank=_number(environment, "LOCAL_RANK", environment["RANK"]),
            local_world=_number(environment, "LOCAL_WORLD_SIZE", str(world)),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT", "29500"),
            launcher="torchrun",
        )
    )


def _is_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process. In a batch script Slurm sets the same variables, but nobody else is there;
    and a step of a single task is a machine that was reserved, on which a layout may start its own workers.
    """
    if environment["SLURM_NTASKS"] == "1":
        return False
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID"))
    if step is None:
        return environment.get("ENVIRONMENT") != "BATCH"
    return not step.isdecimal() or int(step) < NO_STEP


def _slurm(environment: Mapping[str, str]) -> Place:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST")
    nodes = nodes or environment.get("SLURM_JOB_NODELIST", "")
    world = _number(environment, "SLURM_NTASKS")
    job, step = (_number(environment, name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    counts = tasks_per_node(per_node)
    node = _number(environment, "SLURM_NODEID", "0")
    return _checked(
        Place(
            rank=_number(environment, "SLURM_PROCID"),
            world=world,
            local_rank=_number(environment, "SLURM_LOCALID", environment["SLURM_PROCID"]),
            local_world=counts[node] if node < len(counts) else world,
            address=environment.get("MASTER_ADDR") or first_host(nodes),
            port=_number(environment, "MASTER_PORT", str(FIRST_PORT + (job + 97 * step) % PORTS)),
            launcher="Slurm",
        )
    )


def first_host(nodes: str) -> str:
    """The first machine of a list as Slurm writes it: ``gpu[003-007,011],login1`` begins with ``gpu003``."""
    found = re.match(r"([^,\[\]]*)(?:\[([^\]]*)\])?([^,\[]*)", nodes)
    if found is None or not found[0]:
        return "127.0.0.1"
    before, inside, after = found[1], found[2], found[3]
    return before + (re.split(r"[-,]", inside)[0] if inside else "") + after


def tasks_per_node(text: str) -> list[int]:
    """``4(x2),3`` → 4, 4, 3."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in found for _ in range(int(times or 1))]


def _number(environment: Mapping[str, str], name: str, otherwise: str = "") -> int:
    text = environment.get(name, otherwise)
    if not re.fullmatch(r"\d{1,9}|42949\d{5}", text, re.ASCII):
        raise LaunchError(
            Problem(
                where=name,
                what="the launcher's variable is no number",
                got=text or "nothing",
                allowed="0, 1, 2, …",
                attempt=f"unset {name}, or start through torchrun or srun",
            )
        )
    return int(text)


def _checked(place: Place) -> Place:
    if place.rank < place.world and place.local_rank < place.world and 0 < place.port < 1 << 16:
        return place
    raise LaunchError(
        Problem(
            where=place.launcher,
            what="the launcher's variables contradict each other",
            got=f"rank {place.rank} of {place.world}, local rank {place.local_rank}, port {place.port}",
            allowed="a rank below the world's size",
            attempt="start through torchrun or srun",
        )
    )


def refuse_other_world(layout: LayoutConfig, place: Place) -> None:
    """Hold a group to the layout's size; each rank finds the same.

    Raises:
        ConfigError: tp · pp · dp is another number.
    """
    wanted = world_size(layout)
    if wanted == place.world:
        return
    flag = {"torchrun": "torchrun --nproc-per-node", "Slurm": "srun --ntasks"}[place.launcher]
    model = layout.tp * layout.pp
    if place.world % model == 0:
        attempt = f"--layout.dp {place.world // model}"
    else:
        attempt = f"{flag} {wanted}"
    raise ConfigError(
        Problem(
            where="layout.tp layout.pp layout.dp",
            what=f"the layout has another number of ranks than {place.launcher} started",
            got=f"tp {layout.tp} · pp {layout.pp} · dp {layout.dp} = {wanted}, started {place.world}",
            allowed=f"{place.world}",
            attempt=attempt,
        )
    )


def before_torch(place: Place) -> None:
    """Set what torch reads when it is loaded: threads, and no stack traces of the network's own when a rank is gone."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_rank(place.local_world)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def threads_of_rank(local_world: int) -> int:
    """Threads that a rank computes with: an even share of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_world)
