"""One training under several seeds: what differs between runs that differ by chance alone, as mean and deviation.

A fine-tuned model's figures depend on the seed (of the new head's weights, of the order of rows, of dropout) by more
than many a method gains (Dodge et al. 2020, arXiv:2002.06305), so one run's are no figures.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.cli.output import Table, say
from gradatim.config.settings import RunConfig
from gradatim.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gradatim.train import TrainResult

COUNTS = ("rows", "cut", "words", "words_cut")
"""Figures that are the same in every run."""


def read_seeds(text: str) -> list[int]:
    """``0,1,2`` as numbers. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if re.fullmatch(r"\d{1,10}", part) and int(part) < 2**32]
    if len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        raise ConfigError(Problem(where="--seeds", what="these are no seeds, each once", got=text,
                                  allowed="whole numbers from 0, separated by commas",
                                  attempt="--seeds 0,1,2,3,4"))  # fmt: skip
    return seeds


def train_seeds(
    config: RunConfig, directory: Path, seeds: list[int], train: Callable[[RunConfig, Path], TrainResult]
) -> dict[str, Any]:
    """Train under each seed in a folder of its own, and judge what was tuned for a task.

    Args:
        config: of all of them.
        directory: holds ``seed-0``, ``seed-1``, …
        seeds: which.
        train: makes or continues one run.
    """
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        own = directory / f"seed-{seed}"
        say(f"seed {seed}")
        result = train(replace(config, seed=seed), own)
        row: dict[str, Any] = {"seed": seed, **asdict(result)}
        if config.task.kind != "none" and _has_held_out(config):
            row["evaluation"] = _judged(own)
        runs.append(row)
    figures = [_figures(run) for run in runs]
    names = [name for name in figures[0] if all(figure.get(name) is not None for figure in figures)]
    columns = {name: [figure[name] for figure in figures] for name in names}
    return {
        "run": str(directory),
        "seeds": seeds,
        "runs": runs,
        "mean": {name: statistics.fmean(column) for name, column in columns.items()},
        "deviation": {name: _deviation(column) for name, column in columns.items()},
    }


def _has_held_out(config: RunConfig) -> bool:
    from gradatim.text.table import names_of

    return bool(names_of(config.data, "test") or names_of(config.data, "valid"))


def _judged(directory: Path) -> dict[str, Any]:
    from gradatim.cli.evaluate import judge_task
    from gradatim.train import Run

    return judge_task(Run.open(directory), "best", None, 1)


def _figures(run: dict[str, Any]) -> dict[str, float]:
    own = {"training_loss": run["loss"], "valid_loss": run["valid_loss"], "best_valid_loss": run["best_valid_loss"]}
    judged = {
        name: value
        for name, value in run.get("evaluation", {}).items()
        if isinstance(value, float) and name not in COUNTS
    }
    return {**own, **judged}


def _deviation(column: list[float]) -> float | None:
    """The sample's standard deviation; None of one run."""
    return statistics.stdev(column) if len(column) > 1 else None


def seeds_table(document: dict[str, Any]) -> Table:
    """Each figure of each run, with mean and deviation."""
    figures = [_figures(run) for run in document["runs"]]
    rows = [
        [name.replace("_", " "), *(figure[name] for figure in figures), mean, document["deviation"][name]]
        for name, mean in document["mean"].items()
    ]
    return Table(["", *(f"seed {seed}" for seed in document["seeds"]), "mean", "deviation"], rows)
