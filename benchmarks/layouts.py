"""Every layout equals the serial run: the matrix of tests/parallel/test_layouts.py, as a table of differences.

Each case trains a tiny Transformer in float64 for three steps under a layout and in one process, and compares loss,
gradient norm, gradients, updated weights and validation loss, by the tests' own functions and measures. Cases are
grouped by grid and schedule; each group shows its largest relative differences. The table goes to
``results/layouts.md`` and between the marks in ``docs/parallel.md``.

    python benchmarks/layouts.py                                    # the whole matrix: some 15 minutes on two cores
    python benchmarks/layouts.py --keep kept.json --minutes 9    # in pieces: again until all is there
    python benchmarks/layouts.py --every 20 --dry                   # a quick look, nothing written

Whatever is above the tests' tolerance, or does not end, is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Kept, machine, table, versions, write_result

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "parallel"))

import test_layouts  # noqa: E402 - found on the path just set
import work_layouts  # noqa: E402
from pool import Pool  # noqa: E402

PAGE = ROOT / "docs" / "parallel.md"
MARKED = re.compile(r"(<!-- layouts table: begin -->\n).*(<!-- layouts table: end -->)", re.DOTALL)
QUANTITIES = ("loss", "norm", "gradients", "weights", "validation")
Case = tuple[str, str, str, dict[str, Any], int | None]
"""Group, name, model, layout, microbatches where they are unequal."""


def cases() -> list[Case]:
    """The matrix, and the tests beside it that compare with the serial run."""
    found: list[Case] = []
    for parameter in test_layouts.matrix():
        model, layout = parameter.values
        found.append((group_of(layout), parameter.id, model, layout, None))
    for schedule in ("gpipe", "1f1b", "zero-bubble"):
        for count in (1, 3):
            name = f"8 sequences in {count} microbatches {schedule}"
            layout = {"pp": 2, "schedule": schedule}
            found.append(("pp 2, unequal or few microbatches", name, "gpt2", layout, count))
    for model, schedule, size in (("gpt2", "1f1b", 4), ("llama", "zero-bubble", 1)):
        layout = {"pp": 4, "schedule": schedule, "microbatch": size}
        found.append(("pp 4", f"{model} pp4 {schedule} microbatch {size}", model, layout, None))
    found.append(
        ("pp 2, layers 3 + 1", "gpt2 pp2 split 3,1", "gpt2", {"pp": 2, "split": (3, 1), "microbatch": 2}, None)
    )
    return found


def group_of(layout: dict[str, Any]) -> str:
    """The grid, and the schedule where there is a pipeline."""
    axes = [f"{axis} {layout[axis]}" for axis in ("tp", "pp", "dp") if layout[axis] > 1]
    return ", ".join([*axes, *([layout["schedule"]] if layout["pp"] > 1 else [])])


def measure(pool: Callable[[int], Pool], model: str, layout: dict[str, Any], count: int | None) -> dict[str, Any]:
    """Largest relative difference of each quantity."""
    config = work_layouts.make_config(test_layouts.MODELS[model], layout)
    world = config.layout.tp * config.layout.pp * config.layout.dp
    ranks = pool(world).run("work_layouts:layout", config, count)
    outcomes, gradients, weights, valid = test_layouts.reference(model, "{}")
    assert all(found == ranks[0][0] for found, *_ in ranks), "ranks differ in losses or norms"
    assert [step[2] for step in ranks[0][0]] == [step[2] for step in outcomes], "another count of targets"
    return {
        "loss": max(apart(ours[0], theirs[0]) for ours, theirs in zip(ranks[0][0], outcomes, strict=True)),
        "norm": max(apart(ours[1], theirs[1]) for ours, theirs in zip(ranks[0][0], outcomes, strict=True)),
        "gradients": difference([held for _, held, *_ in ranks], gradients),
        "weights": difference([held for _, _, held, _ in ranks], weights),
        "validation": max(apart(loss, valid) for *_, loss in ranks),
    }


def apart(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)


def difference(held: list[work_layouts.Parts], whole: dict[str, Any]) -> float:
    return test_layouts.difference(test_layouts.assembled(held), whole)[0]


def summary(rows: list[dict[str, Any]]) -> str:
    """A row a group: how many cases, and the largest difference of each quantity."""
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        largest = [max(row[name] for row in members) for name in QUANTITIES]
        lines.append([group, len(members), *map(shown, largest)])
    return table(["layout", "cases", "loss", "gradient norm", "gradients", "weights", "validation loss"], lines)


def shown(value: float) -> str:
    """A difference to one digit; none at all is a plain nought."""
    return f"{value:.0e}" if value else "0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="save each case here, and leave out what is there already")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, to go on with --keep")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="of the cases, take one in so many")
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    options = parser.parse_args()
    kept = Kept(options.keep)
    known = {row["name"] for row in kept.rows if "failed" not in row}
    chosen = [case for case in cases() if options.only in case[1]][:: options.every]
    pools: dict[int, Pool] = {}
    started = time.monotonic()
    for group, name, model, layout, count in chosen:
        if name in known:
            continue
        if time.monotonic() - started > 60 * options.minutes:
            break
        try:
            found = measure(lambda world: pools.setdefault(world, Pool(world)), model, layout, count)
        except AssertionError as error:
            found = {"failed": str(error)[-2000:]}
        kept.add(group=group, name=name, **found)
        told = found.get("failed") or " ".join(shown(found[key]) for key in QUANTITIES)
        print(f"{name}: {told}", file=sys.stderr, flush=True)
    for pool in pools.values():
        pool.stop()
    names = {case[1] for case in chosen}
    rows = list({row["name"]: row for row in kept.rows if row["name"] in names}.values())  # the latest of each
    if len(rows) < len(chosen):
        print(f"{len(rows)} of {len(chosen)} cases measured; the same command goes on")
        return 0
    bad = [row["name"] for row in rows if "failed" in row or not within(row)]
    found_table = summary([row for row in rows if "failed" not in row])
    conditions = (
        f"{len(rows)} cases, {len(bad)} beyond {test_layouts.TOLERANCE:g}{': ' + ', '.join(bad) if bad else ''}. "
        "Largest relative differences from the run in one process, in float64, over three steps. A tensor's difference "
        "is taken against its norm, or, where that is larger, the norm of all over the square root of their number. "
        "Each grid and schedule is run with each model (GPT-2, Llama, BERT), each recompute and, where they "
        "apply, sequence parallelism on and off, ZeRO 0 and 1, whose shards of the gradients are gathered for this."
    )
    if options.dry or len(chosen) < len(cases()):  # a part must not stand for the whole
        print(f"{found_table}\n\n{conditions}")
        return 1 if bad else 0
    write_result("layouts", "Every layout equals the serial run", f"{found_table}\n\n{conditions}")
    text = f"{found_table}\n\n{conditions} Machine: {machine()}; {versions('torch')}.\n"
    if PAGE.exists():
        PAGE.write_text(MARKED.sub(lambda mark: f"{mark[1]}\n{text}\n{mark[2]}", PAGE.read_text("utf-8")), "utf-8")
    return 1 if bad else 0


def within(row: dict[str, Any]) -> bool:
    return all(row[name] <= test_layouts.TOLERANCE for name in QUANTITIES)


if __name__ == "__main__":
    raise SystemExit(main())
