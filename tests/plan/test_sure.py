"""How sure a prediction is: figures as the results' pages have them, what no run had, and devices all but full."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import load_model
from gradatim.plan.cluster import cluster_names, load_cluster
from gradatim.plan.layouts import without_limits
from gradatim.plan.search import search
from gradatim.plan.sure import beyond_stack, close_to_full, how_sure, others_beyond

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SOURCES = {
    "selene-2021": ("megatron_2104_table1", "megatron_2104_interleaved_175b"),
    "selene-2022": ("megatron_2205_table5",),
    "eos-h100": ("megatron_h100_weak",),
    "vtrain-a100": ("vtrain_multi", "vtrain_single"),
    "jean-zay-a100": ("bloom_prequel_a100",),
    "mpt-a100-80gb": ("mpt_a100_80gb",),
    "b200-8": ("simumax_b200",),
}
WIDE = LayoutConfig(tp=8, pp=4, dp=4, chunks=2, schedule="interleaved", microbatch=1, sequence_parallel=True, zero=1)


def cells(page: str, first: str, count: int) -> list[list[str]]:
    """Rows of a page's tables, by their first cell and how many they have."""
    rows = (line.strip("| ").split(" | ") for line in (RESULTS / page).read_text("utf-8").splitlines())
    return [row for row in rows if re.fullmatch(first, row[0]) and len(row) == count]


@pytest.mark.parametrize("name", SOURCES)
def test_runs_are_those_that_were_judged(name: str) -> None:
    judged = {row[0]: int(row[2]) for row in cells("planner_accuracy.md", r"\w+", 10) if row[2].isdecimal()}
    stack = load_cluster(name).stack
    assert stack.runs == sum(judged[source] for source in SOURCES[name])
    assert f"half of {stack.runs} measured runs" in how_sure(load_cluster(name), LayoutConfig(microbatch=1))


def test_nanotron_is_as_its_best_layouts() -> None:
    rows, stack = cells("planner_accuracy.md", r"[138]\.\d\d", 8), load_cluster("nanotron-h100").stack
    off = [abs(float(row[5])) / 100 for row in rows]
    peaks = [abs(float(row[7]) / float(row[6]) - 1) for row in rows]
    devices = [int(row[1]) for row in rows]
    assert stack.error == pytest.approx((statistics.median(off), np.percentile(off, 90)))
    assert stack.memory_error == pytest.approx((statistics.median(peaks), max(peaks)), abs=0.005)
    assert (stack.runs, stack.seen) == (len(rows), (min(devices), max(devices)))


@pytest.mark.parametrize(
    ("cluster", "change", "had"),
    [
        ("selene-2021", {}, ["sequence parallelism", "ZeRO-1"]),
        ("selene-2022", {}, []),
        ("selene-2022", {"schedule": "zero-bubble", "chunks": 1, "zero": 3}, ["the schedule zero-bubble", "ZeRO-3"]),
        ("nanotron-h100", {"recompute": "full", "split": (1, 2)}, ["the schedule interleaved", "full recomputation"]),
        ("mpt-a100-80gb", {"zero": 0}, ["the schedule interleaved", "sequence parallelism", "replicas without ZeRO"]),
    ],
)
def test_what_no_run_had(cluster: str, change: dict[str, object], had: list[str]) -> None:
    machine, layout = load_cluster(cluster), replace(WIDE, **change)  # type: ignore[arg-type]
    beyond = beyond_stack(machine.stack, layout)
    assert [thing for thing in beyond if not thing.startswith("stages split")] == had
    assert ("no measured run of this stack had" in how_sure(machine, layout)) is bool(beyond)


def test_runs_of_a_machine_that_the_accuracy_page_has_not() -> None:
    (judged,) = cells("planner_unseen.md", "MPT, 8 to 512 H100", 9)
    stack = load_cluster("mpt-h100-80gb").stack
    assert stack.error == pytest.approx((float(judged[4]) / 100, float(judged[5]) / 100))
    assert (stack.multiplier, stack.runs) == (float(judged[8]), int(judged[2]))


def test_memory_as_allocated() -> None:
    off = [abs(float(row[3])) / 100 for row in cells("planner_memory.md", r"t \d, p \d, d \d", 4)]
    error = load_cluster("b200-8").stack.memory_error
    assert len(off) == 4 and error == pytest.approx((statistics.median(off), max(off)), abs=0.0005)


@pytest.mark.parametrize("multiplier", [1.0, 1.1])
def test_a_stack_of_which_no_run_was_compared(multiplier: float) -> None:
    """Says how far packaged ones are from the physics alone, and how to measure one's own."""
    cluster = load_cluster("gradatim-h100")
    own = replace(cluster, stack=replace(cluster.stack, multiplier=multiplier))
    told = how_sure(own, LayoutConfig(microbatch=1))
    compared = [load_cluster(name).stack for name in cluster_names()]
    others = [stack.multiplier for stack in compared if stack.error]
    assert f"its multiplier is {multiplier:g}; those of {len(others)}" in told
    assert f"{min(others):g} to {max(others):g}" in told
    assert told.endswith("measured over predicted" if multiplier == 1 else "measured over predicted, times 1.1")


def test_a_calibrated_machine_has_its_pages_errors() -> None:
    told = how_sure(load_cluster("cpu"), LayoutConfig(microbatch=1))
    found = []
    for page in ("planner_calibrated.md", "planner_calibrated_amx.md"):
        match = re.search(r"median ([\d.]+) %, largest ([\d.]+) %", (RESULTS / page).read_text("utf-8"))
        assert match
        found.append([float(figure) for figure in match.groups()])
    (near, far), (other, furthest) = found
    assert f"within {near:.0f} % of" in told and f"all within {far:.0f} %" in told
    assert told.endswith(f"on another {other:.0f} and {furthest:.0f} %")


def test_slower_layouts_that_no_run_had() -> None:
    model, cluster = load_model("gpt3-175b")[0], load_cluster("selene-2022")
    free = search(model, cluster, 1024, 1536, top=10, stack=without_limits(cluster.stack))
    (line,) = others_beyond(cluster, free)
    foreign = [c.layout.schedule == "zero-bubble" or c.layout.split == "by-cost" for c in free.best]
    places = [str(place) for place, found in enumerate(foreign, 1) if found]
    assert line.startswith(f"rank {', '.join(places)}: with ") and "the schedule zero-bubble" in line
    assert others_beyond(cluster, replace(free, best=free.best[:1])) == []
    assert others_beyond(cluster, search(model, cluster, 1024, 1536, top=5)) == []


def test_runs_of_one_size() -> None:
    assert "(all on 8 devices)" in how_sure(load_cluster("b200-8"), LayoutConfig(dp=8, microbatch=1))
    assert "(all on 8 devices; this is outside)" in how_sure(load_cluster("b200-8"), LayoutConfig(microbatch=1))


def test_a_device_that_is_all_but_full() -> None:
    """The layout that leaves room is the fastest there is on devices so much smaller."""
    model, cluster = load_model("gpt3-175b")[0], load_cluster("selene-2022")
    found = search(model, cluster, 1024, 1536, top=3)
    (line,) = close_to_full(model, cluster, found, 1536)
    smaller = replace(cluster, device=replace(cluster.device, memory=0.95 * cluster.device.memory))
    best = search(model, smaller, 1024, 1536, top=1).best[0]
    assert found.best[1].layout == best.layout and f"rank 2, {best.prediction.seconds:.4g} s a step" in line
    assert "2.3 % of a device is left" in line and "nanotron-h100" in line
    roomy = replace(cluster, device=replace(cluster.device, memory=2 * cluster.device.memory))
    assert close_to_full(model, roomy, replace(found, best=found.best[2:]), 1536) == []
