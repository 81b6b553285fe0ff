"""Fit the planner's eight constants and each stack's multiplier to published runs.

    python benchmarks/planner_fit.py            # prints them; they stand in plan/physics.py and plan/clusters/*.yaml

The constants see every other row of the four large sources (``planner_rows.FITTED_SOURCES``) and none of the others. A
multiplier is the median of measured over predicted on its own source's fitted rows. The loss of a source is the mean
and the median of |predicted/measured − 1|, halved, each error capped; the search is Nelder and Mead's (1965) within
physical bounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.plan.memory import stage_memory
from gradatim.plan.physics import FITTED, Physics
from gradatim.plan.predict import part_times, predict
from planner_rows import DATA, FITTED_SOURCES, Row, cluster, halves, rows

BOUNDS = {
    "tile_intensity": (0.0, 60.0), "fill": (0.0, 600.0), "wave": (0.0, 1.0), "memory": (0.5, 0.92),
    "launch": (2e-6, 50e-6), "kernel": (0.0, 25e-6), "link": (0.3, 0.85), "network": (0.5, 0.95),
}  # fmt: skip
"""What is physically possible: shares below 1 as such figures are measured, times of launches between 2 and 50 µs."""
CAP = 0.3
"""Errors count no more than this: some published runs were disturbed."""
WEIGHT = {"vtrain_multi": 2.0}
"""The one source that sweeps layouts across nodes counts for more."""


def predicted(row: Row, physics: Physics) -> float:
    """Seconds without the stack's multiplier; of several layouts the fastest that fits."""
    where = cluster(row.cluster)
    plain = dataclasses.replace(where, stack=dataclasses.replace(where.stack, multiplier=1.0, multiplier_one_node=None))
    fits = [
        layout
        for layout in row.layouts
        if len(row.layouts) == 1
        or max(stage.total for stage in stage_memory(where.stack, row.model, layout, row.global_batch))
        <= where.device.memory
    ]
    return min(predict(plain, row.model, layout, row.global_batch, physics).seconds for layout in fits)


def ratios(physics: Physics, found: list[Row]) -> Any:
    """Measured over predicted."""
    return np.array([row.seconds / predicted(row, physics) for row in found])


def loss(point: Any, data: dict[str, list[Row]]) -> float:
    inside = np.clip(point, 0, 1)
    physics = at(inside)
    part_times.cache_clear()
    total = 0.0
    for name, found in data.items():
        off = ratios(physics, found)
        errors = np.minimum(np.abs(np.median(off) / off - 1), CAP)
        total += WEIGHT.get(name, 1.0) * float(errors.mean() + np.median(errors)) / 2
    return total / len(data) + float(np.abs(point - inside).sum())


def at(point: Any) -> Physics:
    values = {name: float(low + x * (high - low)) for x, (name, (low, high)) in zip(point, BOUNDS.items())}
    return dataclasses.replace(FITTED, **values)


def simplex(data: dict[str, list[Row]], start: Any, turns: int) -> Any:
    """Nelder and Mead's search."""
    points = [start] + [start + 0.15 * (1 if start[i] < 0.5 else -1) * np.eye(len(start))[i] for i in range(len(start))]
    losses = [loss(point, data) for point in points]
    for turn in range(turns):
        order = np.argsort(losses)
        points, losses = [points[i] for i in order], [losses[i] for i in order]
        centre = np.mean(points[:-1], axis=0)
        tried = centre + (centre - points[-1])
        result = loss(tried, data)
        if result < losses[0]:
            further = centre + 2 * (centre - points[-1])
            better = loss(further, data)
            points[-1], losses[-1] = (further, better) if better < result else (tried, result)
        elif result < losses[-2]:
            points[-1], losses[-1] = tried, result
        else:
            tried = centre + 0.5 * (points[-1] - centre)
            result = loss(tried, data)
            if result < losses[-1]:
                points[-1], losses[-1] = tried, result
            else:
                points = [points[0], *(points[0] + 0.5 * (point - points[0]) for point in points[1:])]
                losses = [losses[0], *(loss(point, data) for point in points[1:])]
        if turn % 25 == 0:
            print(f"turn {turn}: {min(losses):.5f}", flush=True)
    return np.clip(points[int(np.argmin(losses))], 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--turns", type=int, default=250)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--start", default="{}", help="constants to start from, as JSON")
    options = parser.parse_args()
    every = rows(options.data)
    # of the 720 small runs a sixth will do: they differ little from their neighbours
    data = {name: halves(every[name])[0] for name in FITTED_SOURCES}
    data["vtrain_single"] = data["vtrain_single"][::3]
    values = dataclasses.asdict(FITTED) | json.loads(options.start)
    point = np.array([(values[name] - low) / (high - low) for name, (low, high) in BOUNDS.items()])
    for _ in range(options.restarts):
        point = simplex(data, point, options.turns)
    physics = at(point)
    print(json.dumps(dataclasses.asdict(physics)))
    for name, found in every.items():
        fitted = halves(found)[0] if len(found) >= 20 else found
        print(f"{name:32} {fitted[0].cluster:16} multiplier {np.median(ratios(physics, fitted)):.3f}")


if __name__ == "__main__":
    main()
