"""``layout: auto`` on the command line: for how many processes, and what a run that goes on keeps. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from gradatim.config import load
from gradatim.config.derived import world_size
from gradatim.config.load import Loaded
from gradatim.config.settings import LayoutConfig, RunConfig
from gradatim.errors import ConfigError, Problem
from gradatim.parallel.place import Place

F = TypeVar("F", bound=Callable[..., Any])


def nproc_option(function: F) -> F:
    """Add ``--nproc``; the verb receives ``nproc: str | None``."""
    sentence = "Processes that layout auto is chosen for [the cluster's; else one for each core, at most 8]."
    return click.option("--nproc", metavar="N", help=sentence)(function)


def settled(
    loaded: Loaded,
    nproc: str | None,
    say: Callable[[str], None],
    *,
    place: Place | None = None,
    run: Path | None = None,
) -> RunConfig:
    """The config of a recipe without problems, its layout chosen where that is ``auto``; ``say`` hears which and why.

    Args:
        loaded: what became of the recipe.
        nproc: the number of processes as it was typed.
        say: called once where the layout is ``auto``, not at all elsewhere.
        place: of a group that somebody else started, whose size counts.
        run: directory of a run that goes on, whose layout stays.

    Raises:
        ConfigError: there is no such layout, or ``nproc`` is another number than the group or the stated layout has.
    """
    config = loaded.config
    world = None if nproc is None else _processes(nproc)
    have = place.world if place else world_size(config.layout) if loaded.auto is None else None
    if None not in (world, have) and world != have:
        whose = f"{place.launcher} started" if place else "the layout has"
        attempt = "leave --nproc out" if place else "--layout auto, or leave --nproc out"
        what = f"{whose} another number of processes"
        raise ConfigError(Problem(where="--nproc", what=what, got=str(world), allowed=str(have), attempt=attempt))
    if loaded.auto is None:
        return config
    world = have or world
    kept = _kept(run, config, loaded.auto, world) if run else None
    if kept is not None:
        say("layout auto: the run keeps its own")
        return replace(config, layout=kept)
    if place is not None and place.local_world != place.world and config.cluster is None:
        what = "over several machines layout auto has to be told what they are"
        raise ConfigError(Problem(where="cluster", what=what, got="null", attempt="--cluster eos-h100"))

    from gradatim.plan.auto import choose_layout

    choice = choose_layout(config, loaded.auto, world)
    say(f"layout auto: {choice.why}")
    return replace(config, layout=choice.layout)


def _processes(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,7}", text) and int(text):
        return int(text)
    what = "this is no number of processes"
    raise ConfigError(
        Problem(where="--nproc", what=what, got=text or "nothing", allowed="1, 2, 3, …", attempt="--nproc 2")
    )


def _kept(run: Path, config: RunConfig, stated: frozenset[str], world: int | None) -> LayoutConfig | None:
    """A run's own layout, unless it contradicts what is stated now; a damaged file is told of by whoever opens it."""
    written = run / "config.yaml"
    if not written.is_file():
        return None
    before = load(written, to_train=False)
    layout = before.config.layout
    if before.problems or before.auto is not None or world not in (None, world_size(layout)):
        return None
    if any(getattr(layout, name) != getattr(config.layout, name) for name in stated):
        return None
    return replace(layout, timeout=config.layout.timeout, check=config.layout.check)
