"""What a report says of a run of several ranks: who stood where, and the pipeline, measured beside simulated.

The last step's timeline is what ``parallel/engine.py`` leaves in a run's ``logs/``. It is drawn as ``gradatim
schedule`` draws, both timelines on one scale, so what transfers and waiting cost is what the upper one has in addition.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from gradatim.config.derived import microbatch_count, world_size
from gradatim.config.grid import rank_map
from gradatim.config.settings import LayoutConfig, RunConfig
from gradatim.parallel.engine import SAVED_TIMELINE
from gradatim.parallel.timeline import bubble
from gradatim.report import figures, page
from gradatim.schedules import Schedule, build_schedule, simulate, timeline_svg
from gradatim.schedules.timeline import Row, title
from gradatim.shapes.split import layers_of_chunks


@dataclass(frozen=True, slots=True)
class Recorded:
    """A step of one pipeline: rows of (action, start, end) in milliseconds, per rank."""

    schedule: Schedule
    measured: list[Row]
    simulated: list[Row]
    bubble_measured: float
    bubble_simulated: float


def layout_text(layout: LayoutConfig) -> str:
    """A layout in a line: the axes, and the settings that differ from what one process does."""
    words = [f"tp {layout.tp} × pp {layout.pp} × dp {layout.dp}"]
    if layout.pp > 1:
        words.append(layout.schedule + (f", {layout.chunks} chunks per rank" if layout.chunks > 1 else ""))
    if layout.microbatch is not None:
        words.append(f"microbatch {layout.microbatch}")
    words += ["sequence parallel"] if layout.sequence_parallel else []
    words += [f"zero {layout.zero}"] if layout.zero else []
    words += [f"recompute {layout.recompute}"] if layout.recompute != "none" else []
    return ", ".join(words)


def layout_sections(directory: Path, config: RunConfig, vocabulary: int, rows: list[dict[str, Any]]) -> list[str]:
    """Sections for a run of several ranks; none for one process.

    Args:
        directory: of the run.
        config: its settings, those it last ran with.
        vocabulary: of its tokenizer, which a split by cost depends on.
        rows: its metrics.
    """
    if world_size(config.layout) == 1:
        return []
    told = escape("\n".join(rank_map(config.layout, layers_of_chunks(config, vocabulary))))
    sections = [page.section("Ranks", f'<p class="text">{told}</p>')]
    if config.layout.pp > 1:
        recorded = read_timeline(directory / "logs" / SAVED_TIMELINE, config)
        parts = [page.figure(draw(recorded), CAPTION)] if recorded else [page.paragraph(MISSING)]
        over_steps = {
            label: [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            for label, key in (("measured", "bubble_measured"), ("simulated", "bubble_simulated"))
        }
        if any(over_steps.values()):
            drawing = figures.curves(
                over_steps, title="Bubble overhead by step", x_label="step", y_label="bubble overhead"
            )
            parts.append(page.figure(drawing, "Time lost in the pipeline, against the busiest rank's own work."))
        sections.append(page.section("Pipeline", *parts))
    return sections


CAPTION = (
    "The last step before a checkpoint, in the first rank's pipeline. Above as it ran; below the same schedule with "
    "every action as long as it was, and free transfers. What the upper one has in addition went into transfers and "
    "waiting."
)
MISSING = "No timeline of this layout was recorded yet: the first checkpoint leaves one."


def draw(recorded: Recorded) -> str:
    """Both timelines, one below the other on one scale."""
    timelines = {
        f"measured: bubble overhead {recorded.bubble_measured:.3f}": recorded.measured,
        f"simulated: bubble overhead {recorded.bubble_simulated:.3f}": recorded.simulated,
    }
    return timeline_svg(timelines, title(simulate(recorded.schedule)), unit="ms")


def read_timeline(path: Path, config: RunConfig) -> Recorded | None:
    """The timeline that a run left; None where there is none, a damaged one, or one of an earlier layout."""
    layout = config.layout
    schedule = build_schedule(layout.schedule, layout.pp, microbatch_count(config), layout.chunks)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["actions"] != schedule.text():
            return None
        measured, simulated = (_spans(found[name], schedule) for name in ("measured", "simulated"))
        bubbles = bubble(measured), bubble(simulated)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    return Recorded(schedule, _rows(schedule, measured), _rows(schedule, simulated), *bubbles)


def _spans(ranks: Any, schedule: Schedule) -> list[list[tuple[float, float]]]:
    """Starts and ends as numbers, one pair for each action."""
    found = [[(float(start), float(end)) for start, end in rank] for rank in ranks]
    if [len(rank) for rank in found] != [len(actions) for actions in schedule.ranks]:
        raise ValueError("another number of spans than of actions")
    return found


def _rows(schedule: Schedule, spans: list[list[tuple[float, float]]]) -> list[Row]:
    return [
        [(action, 1000 * start, 1000 * end) for action, (start, end) in zip(actions, rank)]
        for actions, rank in zip(schedule.ranks, spans)
    ]
