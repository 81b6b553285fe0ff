"""A plan as a picture: the winner's timeline, its time and memory, and what each knob is worth. No torch.

The timeline is the schedule itself, run with the predicted times of each chunk (``predict.pipeline_times``): what is
idle there is the bubble of the table. Against each knob stands the fastest layout that has its value and fits, all
other knobs free.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.charts import Drawing, Mark, below, beside, columns, document, embedded, lines, shares, titled
from gradatim.plan.cluster import Cluster, Stack
from gradatim.plan.explain import CAUSES, RANKING, ranking, rejections, remarks, tflops
from gradatim.plan.layouts import FREE, KNOBS, Fixed
from gradatim.plan.memory import StageMemory, stage_memory
from gradatim.plan.predict import multiplier, pipeline_times
from gradatim.plan.search import Candidate, Found, best_with, search
from gradatim.plan.words import GIB, device_text, layout_text
from gradatim.report import page
from gradatim.schedules import build_schedule, durations, simulate, timeline_rows, timeline_svg
from gradatim.schedules.timeline import caption, in_flight_text, overhead, quantity, title

MOST = 30_000
"""Actions of a timeline; of a longer step the first microbatches are drawn, as many as show its pattern."""
KINDS = ("schedule", "sequence_parallel", "recompute", "zero")
"""Knobs whose values are kinds, not sizes."""
FACTORS = (1 / 4, 1 / 2, 1, 2, 4)
"""Batches that are compared, against the one asked for."""


def plan_svg(
    model: Architecture,
    cluster: Cluster,
    found: Found,
    global_batch: int,
    *,
    fixed: Fixed = FREE,
    stack: Stack | None = None,
    name: str = "",
) -> str:
    """One picture of a search's result, whose ``best`` is not empty.

    ``fixed`` and ``stack`` are what the search was given; ``name`` opens the heading.
    """
    pieces = [drawing for _, drawing, _ in panels(model, cluster, found, global_batch, fixed, stack)]
    heading, under = _headings(name, found.best[0], global_batch)
    said = ". ".join(remarks(model, cluster, found, global_batch))
    return document(below(*pieces, gap=18), heading, said, under)


def plan_html(
    model: Architecture,
    cluster: Cluster,
    found: Found,
    global_batch: int,
    *,
    fixed: Fixed = FREE,
    stack: Stack | None = None,
    name: str = "",
) -> str:
    """The same as a self-contained page, with the table of layouts and what is said of the winner."""
    rows = ranking(model, cluster, found.best, global_batch)
    sections = [
        page.section("Layouts", page.table(RANKING, rows, best=0)),
        page.section("The winner", *(page.paragraph(line) for line in remarks(model, cluster, found, global_batch))),
    ]
    for heading, drawing, note in panels(model, cluster, found, global_batch, fixed, stack):
        sections.append(page.section(heading, page.figure(document(drawing, heading, note, headed=False), note)))
    left_out = "; ".join(rejections(found)) or "none"
    footer = f"{found.considered:,} layouts considered in {found.seconds:.2f} s; left out: {left_out}."
    heading, under = _headings(name, found.best[0], global_batch)
    return page.page(heading, f"{under}. {cluster.description}", sections, footer)


def _headings(name: str, winner: Candidate, global_batch: int) -> tuple[str, str]:
    """What was asked for, and what came out."""
    layout = winner.layout
    devices = layout.tp * layout.pp * layout.dp
    return f"{name or 'plan'}: batch {global_batch:,}, {device_text(devices)}", f"fastest: {layout_text(layout)}"


def panels(
    model: Architecture, cluster: Cluster, found: Found, global_batch: int, fixed: Fixed, stack: Stack | None
) -> list[tuple[str, Drawing, str]]:
    """What is drawn: heading, drawing, and a sentence below it."""
    winner = found.best[0]
    drawn = [("Time of a step", step_shares(winner), "Where the seconds of a step go on the busiest rank.")]
    if winner.layout.pp > 1:
        note = "Each stage with the times predicted for it; a transfer that holds its sender up is part of the box."
        drawn.append(("Timeline", timeline(model, cluster, winner.layout, global_batch), note))
    note = "The most that a rank of each stage holds at a time."
    drawn.append(("Memory", memory_columns(model, cluster, winner.layout, global_batch), note))
    if found.columns is not None:
        note = "The fastest layout with each value of a knob, the others free; the winner stands out."
        drawn.append(("Knobs", knobs(model, cluster, found, global_batch, fixed, stack), note))
    return drawn


def step_shares(winner: Candidate) -> Drawing:
    """Seconds of a step by cause."""
    parts = {cause: winner.prediction.breakdown[cause] for cause in CAUSES}
    return shares(parts, title=f"a step of {winner.prediction.seconds:.4g} s", unit="s")


def timeline(model: Architecture, cluster: Cluster, layout: LayoutConfig, global_batch: int) -> Drawing:
    """The schedule with the predicted times, in milliseconds."""
    assert layout.microbatch
    whole = global_batch // layout.dp // layout.microbatch
    shown = whole
    if 2 * whole * layout.chunks * layout.pp > MOST:
        groups = max(3, MOST // (2 * layout.chunks * layout.pp**2))
        shown = min(whole, groups * layout.pp)
    scale = 1000 * multiplier(cluster, layout)
    times = pipeline_times(cluster, model, layout, global_batch)
    forward, backward = ([scale * seconds for seconds in part] for part in times.occupied)
    schedule = build_schedule(layout.schedule, layout.pp, shown, layout.chunks)
    simulation = simulate(schedule, durations(forward, backward), transfer=scale * times.beside)
    said = caption(simulation, "ms")
    if shown < whole:
        makespan, ideal = scale * times.step(layout, whole), simulation.ideal * whole / shown
        said = [
            f"the whole step: makespan {quantity(makespan)} ms, ideal {quantity(ideal)} ms, "
            f"bubble overhead {overhead(makespan / ideal - 1)}",
            f"drawn is a step of its first {shown:,} microbatches: the rest repeats the pattern",
            in_flight_text(simulation),
        ]
    return embedded(timeline_svg({"": timeline_rows(simulation)}, title(simulation, whole), said, unit="ms"))


def memory_columns(model: Architecture, cluster: Cluster, layout: LayoutConfig, global_batch: int) -> Drawing:
    """Gibibytes on a rank of each stage, by what they hold."""
    stages = stage_memory(cluster.stack, model, layout, global_batch)
    layers = {part.name: [getattr(stage, part.name) / GIB for stage in stages] for part in fields(StageMemory)}
    limit = cluster.device.memory / GIB
    return columns(
        {name: values for name, values in layers.items() if max(values) > 0},
        title="GiB by stage",
        x_label="stage",
        limit=limit,
        limit_name=f"{limit:,.1f} GiB: {cluster.device.name}",
    )


def knobs(
    model: Architecture, cluster: Cluster, found: Found, global_batch: int, fixed: Fixed, stack: Stack | None
) -> Drawing:
    """Throughput against each knob that has more than one value, and against the batch."""
    winner = found.best[0]
    curves: dict[str, list[Value]] = {}
    for knob in KNOBS:
        best = best_with(found, cluster, model, global_batch, knob)
        own = getattr(winner.layout, knob)
        best[own] = winner
        if len(best) > 1:
            curves[knob] = [
                Value(str(value).lower(), candidate, global_batch, value == own) for value, candidate in best.items()
            ]
    devices = winner.layout.tp * winner.layout.pp * winner.layout.dp
    batches: list[Value] = []
    for batch in sorted({max(1, round(factor * global_batch)) for factor in FACTORS}):
        if batch == global_batch:
            batches.append(Value(f"{batch:,}", winner, batch, True))
            continue
        other = search(model, cluster, devices, batch, fixed=fixed, top=1, stack=stack)
        batches.append(Value(f"{batch:,}", other.best[0] if other.best else None, batch, False))
    curves["global batch"] = batches
    rates = {knob: [value.rate(model, cluster) for value in curve] for knob, curve in curves.items()}
    top = max(rate for curve in rates.values() for rate in curve if rate is not None)
    drawings = []
    for knob, curve in curves.items():
        marks = [Mark(i, rate, v.note, v.chosen) for i, (v, rate) in enumerate(zip(curve, rates[knob]))]
        names = [value.name for value in curve]
        drawings.append(
            lines(
                {"": marks},
                names,
                title=knob.replace("_", " "),
                x_label="",
                width=320,
                height=190,
                top=top,
                joined=knob not in KINDS,
            )
        )
    return titled(beside(drawings, 3), "TFLOP/s a device, against each knob")


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a knob, and the best there is with it."""

    name: str
    candidate: Candidate | None
    global_batch: int
    chosen: bool

    def rate(self, model: Architecture, cluster: Cluster) -> float | None:
        """TFLOP/s a device."""
        return tflops(model, cluster, self.candidate, self.global_batch)[0] if self.candidate else None

    @property
    def note(self) -> str:
        """The layout."""
        return layout_text(self.candidate.layout) if self.candidate else "nothing fits"
