"""What the ranks of the launch tests do: agree, die, raise, hang."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gradatim.errors import DataError, Interrupted, Problem
from gradatim.parallel.agree import tell
from gradatim.parallel.launch import Group
from gradatim.parallel.watch import report_action, report_step
from gradatim.train.signals import StopRequest


def exchange(value: float = 1.0) -> float:
    """One collective of all ranks."""
    total = torch.tensor([value])
    dist.all_reduce(total)
    return float(total)


def add_ranks(group: Group, first: float) -> dict[str, Any]:
    """Print where nobody may see it; the sum over ranks of ``first`` + rank, and what each knows of itself."""
    print("not on the parent's standard output")
    total = exchange(first + group.mesh.rank)
    return {"sum": total, "world": group.mesh.world, "threads": torch.get_num_threads(), "pid": os.getpid()}


def fail(group: Group, how: str, rank: int = 1, pids: str = "") -> None:
    """Steps of one collective each; in step 3 the given rank fails in its action 1F3."""
    if pids:
        (Path(pids) / str(group.mesh.rank)).write_text(str(os.getpid()))
    for step in range(1, 6):
        report_step(step)
        report_action("0F0")
        exchange()
        if step == 3 and group.mesh.rank == rank:
            report_action("1F3")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif how == "hang":
                time.sleep(600)
            elif how == "data":
                raise DataError(Problem(where="text.bin", what="the text is damaged", attempt="prepare it again"))
            elif how == "memory":
                raise MemoryError("of 640 kB")
            else:
                raise ValueError("of nobody's expectation")


def until_stopped(group: Group, started: str) -> None:
    """Steps until the ranks agree to stop; the file says that signals are awaited, and names who got one."""
    with StopRequest() as stop:
        Path(started, f"{group.mesh.rank}.started").touch()
        step = 0
        while not tell(bool(stop), group.mesh):
            step += 1
            report_step(step)
            exchange()
            time.sleep(0.01)
    Path(started, f"{group.mesh.rank}.stopped").write_text(f"{step} {stop}")
    raise Interrupted(Problem(where="here", what=f"stopped after step {step}", attempt="--resume"))
