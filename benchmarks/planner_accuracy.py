"""The planner against published runs: error by source, ranking, memory.

    python benchmarks/planner_accuracy.py [--rows SOURCE]

Only rows that no fit has seen count: in sources of 20 rows and more, every other row (the multiplier is fitted on the
rest); in smaller ones each row with a multiplier fitted on the others of its source. The constants were fitted on the
fitted halves of the large sources alone (``planner_fit.py``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from common import table
from gradatim.plan.physics import FITTED, Physics
from planner_fit import ratios
from planner_rows import DATA, Row, halves, rows

MUST = {
    "vtrain_multi": 7.0, "vtrain_single": 7.5, "megatron_2104_table1": 5.0, "megatron_2104_interleaved_175b": 8.0,
    "megatron_2205_table5": 3.5, "megatron_h100_weak": 7.0, "bloom_prequel_a100": 8.0, "simumax_b200": 8.0,
    "mpt_a100_80gb": 8.0,
}  # fmt: skip


def judged(physics: Physics, found: list[Row]) -> tuple[list[Row], Any]:
    """The rows that count and predicted/measured of each, under a multiplier that has not seen it."""
    off = ratios(physics, found)
    if len(found) >= 20:
        _, kept = halves(found)
        return kept, np.median(off[::2]) / off[1::2]
    return found, np.array([np.median(np.delete(off, i)) / off[i] for i in range(len(off))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", action="append", default=[], metavar="SOURCE", help="list this source's rows")
    parser.add_argument("--physics", default="{}", help="other constants, as JSON")
    options = parser.parse_args()
    physics = dataclasses.replace(FITTED, **json.loads(options.physics))
    lines = []
    for name, found in rows(options.data).items():
        kept, off = judged(physics, found)
        errors = 100 * np.abs(off - 1)
        lines.append([name, f"{len(found)}", f"{len(kept)}", f"{errors.mean():.2f}", f"{np.median(errors):.2f}",
                      f"{np.percentile(errors, 90):.1f}", f"{errors.max():.1f}", f"{MUST[name]:g}"])  # fmt: skip
        if name in options.rows:
            for row, x in zip(kept, off):
                print(f"  {row.label:50} {row.seconds:9.3f} s  {100 * (x - 1):+6.1f} %")
    print(table(["source", "rows", "judged", "mean error %", "median", "90th percentile", "largest", "must"], lines))


if __name__ == "__main__":
    main()
