"""What the workers do for test_continue.py: whole runs of the loop, and checkpoints that change their layout."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from work_layouts import mesh_of

from gradatim.config.settings import RunConfig
from gradatim.parallel.engine import LayoutEngine
from gradatim.text.prepare import prepare
from gradatim.train import train
from gradatim.train.manifest import Manifest


def run(rank: int, world: int, config: RunConfig, directory: str, resume: bool) -> tuple[dict[str, Any], str]:
    """A rank's part of ``gradatim train``: the result, and what is said."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        result = train(
            config, Path(directory), resume, lambda line: print(line, file=told), mesh=mesh_of(config.layout)
        )
    return {"step": result.step, "valid_loss": result.valid_loss}, told.getvalue()


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
