"""What the workers do for test_continue.py: whole runs of the loop, and checkpoints that change their layout."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

from work_layouts import mesh_of

from gradatim.config.settings import RunConfig
from gradatim.parallel.engine import LayoutEngine
from gradatim.text.prepare import prepare
from gradatim.train import train
from gradatim.train.manifest import Manifest
from gradatim.train.metrics import MetricsLog


def run(rank: int, world: int, config: RunConfig, directory: str, resume: bool) -> tuple[dict[str, Any], str]:
    """A rank's part of ``gradatim train``: the result, and what is said."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        result = train(
            config, Path(directory), resume, lambda line: print(line, file=told), mesh=mesh_of(config.layout)
        )
    return {"step": result.step, "valid_loss": result.valid_loss}, told.getvalue()


def run_with_a_full_log(rank: int, world: int, config: RunConfig, directory: str) -> tuple[dict[str, Any], str]:
    """``run``, the first rank's metrics not reaching the disk before the first checkpoint."""
    real, calls = MetricsLog.sync, []

    def sync(log: MetricsLog) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(log)

    with mock.patch.object(MetricsLog, "sync", sync):
        return run(rank, world, config, directory, False)


def save_without_logs(rank: int, world: int, config: RunConfig, folder: str, manifest: Manifest) -> None:
    """Checkpoints of a pipeline whose logs are gone, and then cannot be made."""
    logs = Path(folder) / "logs"
    engine = LayoutEngine(config, prepare(config.data), mesh_of(config.layout), logs)
    engine.step(0)
    engine.save(Path(folder), dataclasses.replace(manifest, step=1))
    if rank == 0:
        shutil.rmtree(logs)
        logs.touch()
    engine.save(Path(folder), dataclasses.replace(manifest, step=2))


def agree(rank: int, world: int, config: RunConfig) -> list[bool]:
    """What is agreed upon when nobody is told to stop, and when the last rank alone is."""
    engine = LayoutEngine(config, prepare(config.data), mesh_of(config.layout))
    return [engine.agreed(False), engine.agreed(rank == world - 1), engine.agreed(False)]


def move(
    rank: int, world: int, config: RunConfig, checkpoints: str, to: str, manifest: Manifest
) -> tuple[list[int], float]:
    """Load the newest checkpoint under this layout and save it elsewhere at once; the samples and loss that follow."""
    engine = LayoutEngine(config, prepare(config.data), mesh_of(config.layout))
    found, rejected = engine.newest(Path(checkpoints))
    assert found is not None
    assert not rejected
    counters = engine.load(found)
    engine.save(Path(to), manifest)
    samples = engine.samples(counters.step)
    return samples, engine.step(counters.step).loss
