"""``gradatim calibrate --out FILE``: measure this machine as a cluster that ``gradatim plan MODEL FILE`` reads.

Each process is a device, with the threads that a rank of training has: an even share of the cores. What is measured are
this project's own operations (``parallel/calibrate.py``), so the file is good for training here, in fp32 on CPUs.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict
from pathlib import Path

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say
from gradatim.errors import ConfigError, LaunchError, Problem
from gradatim.plan import here

MOST = 64
"""Processes that are measured at most; more are predicted from these."""


@click.command(cls=Verb)
@click.option("--nproc", metavar="N", help="Processes, each of which is a device [as many as cores, at most 8].")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The cluster file to write.")
@json_option
def command(nproc: str | None, out: Path, as_json: bool) -> None:
    """Measure this machine: products, blocks, updates, and messages between processes; in a minute or two."""
    processes = _processes(nproc)
    _refuse(out)
    say(f"measuring with {processes} process{'es' if processes > 1 else ''}; the machine should do nothing else")
    started = time.perf_counter()

    from gradatim.parallel.calibrate import calibrate
    from gradatim.plan.cluster import cluster_to_yaml
    from gradatim.plan.measured import cluster_of

    answer = calibrate(processes)
    cluster = cluster_of(answer, _name(), here.memory() / processes)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    draft.write_text(cluster_to_yaml(cluster), encoding="utf-8")
    draft.replace(out)
    seconds = time.perf_counter() - started
    measured = cluster.measured

    def table() -> Table:
        large = {name: getattr(measured, name)[-1] for name in ("sum", "send", "reduce") if getattr(measured, name)}
        rows: list[list[object]] = [
            ["processes", processes],
            ["threads of each", answer["threads"]],
            ["matrix products, GFLOP/s each", round(cluster.device.matmul / 1e9, 1)],
            ["time of a process alone, as a share of its time when all work", round(measured.alone, 3)],
            *([f"{name}, GB/s", round(size / took / 1e9, 2)] for name, (size, took) in large.items()),
            ["seconds of measuring", round(seconds, 1)],
        ]
        return Table(["", "value"], rows, title=str(out))

    emit({"out": str(out), "seconds": seconds, **asdict(cluster)}, as_json, table)


def _processes(text: str | None) -> int:
    if text is None:
        return here.processes()
    if re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= MOST:
        return int(text)
    raise ConfigError(
        Problem(
            where="--nproc", what="this is no number of processes", got=text or "nothing", allowed=f"1 … {MOST}",
            attempt="--nproc 2",
        )
    )  # fmt: skip


def _refuse(out: Path) -> None:
    """Say before measuring what would go wrong after it."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "this is a folder" if out.is_dir() else "there is no such folder"
        raise ConfigError(
            Problem(
                where=f"--out {out}", what=what, allowed="a file in a folder that is there", attempt="--out here.yaml"
            )
        )
    if not os.access(out.absolute().parent, os.W_OK):
        what = "files may not be written in this folder"
        raise LaunchError(Problem(where=f"--out {out}", what=what, attempt="name a file elsewhere"))


def _name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text("utf-8"), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else "CPU"
