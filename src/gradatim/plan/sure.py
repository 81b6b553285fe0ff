"""How far a prediction can be trusted: errors seen on measured runs, and what none of those runs had. No torch."""

from __future__ import annotations

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster, Stack, cluster_names, load_cluster
from gradatim.plan.search import Found, best_within
from gradatim.plan.words import GIB, device_text, layout_text

TIGHT = 0.05
"""Share of a device's memory below which what is left free is told."""
CALIBRATED = (18, (0.033, 0.068), (0.063, 0.153))
"""Layouts that ``benchmarks/planner_calibrated.py`` trained, median and largest error on each of two machines."""
OTHERS = "nanotron-h100"
"""The packaged cluster with most measured peaks, which stands in where a stack has none."""


def how_sure(cluster: Cluster, layout: LayoutConfig) -> str:
    """The error of time seen on measured runs of this stack, or that there were none like this layout."""
    stack = cluster.stack
    if stack.error is None:
        return f"how sure: {_never_compared(cluster)}"
    median, most = stack.error
    runs = f"{stack.runs:,} measured runs" if stack.runs else "the measured runs"
    told = f"half of {runs} of this stack were within {100 * median:.1f} % of what is predicted, "
    told += f"nine of ten within {100 * most:.0f} %"
    devices = layout.tp * layout.pp * layout.dp
    if stack.seen:
        seen = f"{stack.seen[0]:,} to {device_text(stack.seen[1])}"
        if stack.seen[0] == stack.seen[1]:
            seen = f"all on {device_text(stack.seen[0])}"
        told += f" ({seen}{')' if stack.seen[0] <= devices <= stack.seen[1] else '; this is outside)'}"
    beyond = beyond_stack(stack, layout)
    if beyond:
        had = " or ".join(beyond)
        return f"how sure: no measured run of this stack had {had}, which it cannot run; of what it can, {told}"
    return f"how sure: {told}"


def _never_compared(cluster: Cluster) -> str:
    """What is known where no run of this stack was compared: what calibrated files reach, or how stacks differ."""
    if cluster.calibrated:
        layouts, (near, far), (other_near, other_far) = CALIBRATED
        return (
            f"its times were measured; on one machine half of {layouts} layouts trained were within "
            f"{100 * near:.0f} % of what such a file predicts, all within {100 * far:.0f} %; on another "
            f"{100 * other_near:.0f} and {100 * other_far:.0f} %"
        )
    known = [load_cluster(name).stack for name in cluster_names()]
    others = [stack.multiplier for stack in known if stack.error is not None]
    own = cluster.stack.multiplier
    times = "" if own == 1 else f", times {own:g}"
    return (
        f"no measured run of this stack has been compared (its multiplier is {own:g}; those of {len(others)} packaged "
        f"stacks that were: {min(others):g} to {max(others):g}); time some steps, and set stack.multiplier to measured "
        f"over predicted{times}"
    )


def beyond_stack(stack: Stack, layout: LayoutConfig) -> list[str]:
    """What a layout has that this software cannot do."""
    beyond = []
    if layout.pp > 1 and layout.schedule not in stack.schedules:
        beyond.append(f"the schedule {layout.schedule}")
    elif layout.chunks > stack.chunks:
        beyond.append(f"{layout.chunks} chunks on a rank")
    if layout.sequence_parallel and not stack.sequence_parallel:
        beyond.append("sequence parallelism")
    if layout.dp > 1 and layout.zero not in stack.zero:
        beyond.append(f"ZeRO-{layout.zero}" if layout.zero else "replicas without ZeRO")
    if layout.recompute not in stack.recompute and (stack.selects or layout.recompute != "selective"):
        beyond.append(f"{layout.recompute} recomputation" if layout.recompute != "none" else "no recomputation")
    if isinstance(layout.split, str) and layout.pp > 1 and layout.split not in stack.splits:
        beyond.append(f"stages split {layout.split}")
    return beyond


def others_beyond(cluster: Cluster, found: Found) -> list[str]:
    """Which of the slower layouts shown have what no measured run had, where ``--stack any`` lets them in."""
    beyond = {place: beyond_stack(cluster.stack, shown.layout) for place, shown in enumerate(found.best, 1)}
    places = [str(place) for place, things in beyond.items() if things and place > 1]
    if not places or beyond[1]:
        return []
    had = dict.fromkeys(thing for each in beyond.values() for thing in each)
    return [f"rank {', '.join(places)}: with {' or '.join(had)}, which this stack cannot run: no measured run had that"]


def close_to_full(model: Architecture, cluster: Cluster, found: Found, global_batch: int) -> list[str]:
    """Where the winner all but fills a device: how far planned peaks were off, and what leaves more room."""
    winner, limit = found.best[0], cluster.device.memory
    free = 1 - max(winner.memory) / limit
    if not 0 <= free < TIGHT:
        return []
    error = cluster.stack.memory_error
    told = "peaks of this stack's measured runs were"
    if error is None:
        error = load_cluster(OTHERS).stack.memory_error
        told = f"no measured run of this stack told its peak; those of {OTHERS} were"
        assert error is not None
    line = (
        f"memory is close: {100 * free:.1f} % of a device is left; {told} off by {100 * error[0]:.1f} % in the median "
    )
    line += f"and {100 * error[1]:.0f} % at most; "
    roomy = best_within(found, cluster, model, global_batch, (1 - TIGHT) * limit)
    if roomy is None:
        return [f"{line}no layout leaves {100 * TIGHT:.0f} %"]
    places = [place for place, shown in enumerate(found.best, 1) if shown.layout == roomy.layout]
    where = f"rank {places[0]}" if places else "not among those shown"
    return [
        f"{line}the fastest that leaves {100 * TIGHT:.0f} % is {where}, {roomy.prediction.seconds:.4g} s a step: "
        f"{layout_text(roomy.layout)}, {max(roomy.memory) / GIB:,.1f} GiB"
    ]
