"""The best layout at each of several batches and numbers of devices, and what a whole training would take. No torch.

More devices or a larger batch give a faster step, but not for nothing: past the critical batch size a step learns
hardly more from more data (McCandlish et al. 2018, arXiv:1812.06162). With B sequences a step and a
critical batch of B_crit, what takes S_min steps and N tokens at their best takes

    S = S_min (1 + B_crit / B) steps,  so  N (1 + B / B_crit) tokens,

that is, twice the tokens where B = B_crit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradatim.errors import ConfigError, Problem
from gradatim.plan.architecture import Architecture
from gradatim.plan.charts import Drawing, Mark, beside, document, lines, number
from gradatim.plan.cluster import Cluster, Stack
from gradatim.plan.explain import layout_document, tflops
from gradatim.plan.layouts import KNOBS, Fixed
from gradatim.plan.search import Candidate, best_with, predicted, search
from gradatim.plan.words import GIB, device_text, layout_text
from gradatim.report import page

KINDS = ("schedule", "sequence_parallel", "recompute", "zero")
"""Knobs whose values are kinds: a line each."""
SAME = 1e-3
"""Lines that differ by less are drawn as one."""


@dataclass(frozen=True, slots=True)
class Training:
    """A whole training at one batch."""

    steps: float
    tokens: float
    seconds: float
    gpu_hours: float

    @property
    def days(self) -> float:
        """Of the clock."""
        return self.seconds / 86400


@dataclass(frozen=True, slots=True)
class Point:
    """The best layout of so many devices for a batch, with one value of the knob that is compared."""

    gpus: int
    global_batch: int
    value: Any
    """Of the knob; None where none is compared."""
    candidate: Candidate | None
    """None where nothing is legal or nothing fits,"""
    reason: str
    """which this says."""
    training: Training | None
    """Where tokens were asked for."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """All points, in the order of devices, batches and values."""

    points: list[Point]
    by: str | None
    """The knob that is compared."""
    fixed: Fixed
    tokens: float | None
    critical_batch: float | None


def training(
    step_seconds: float,
    gpus: int,
    global_batch: int,
    context: int,
    tokens: float,
    critical_batch: float | None = None,
) -> Training:
    """What it takes to learn as much as ``tokens`` teach in small batches.

    Args:
        step_seconds: of a step of ``global_batch`` sequences of ``context`` tokens on ``gpus`` devices.
        tokens: N above.
        critical_batch: B_crit in sequences; None: batches of any size learn as much from a token.
    """
    needed = tokens * (1 + global_batch / critical_batch) if critical_batch else tokens
    steps = needed / (global_batch * context)
    seconds = steps * step_seconds
    return Training(steps, needed, seconds, seconds / 3600 * gpus)


def compared(fixed: Fixed) -> str | None:
    """The knob that a sweep compares where none is named: schedules, where stages are fixed and schedules are not."""
    return "schedule" if (fixed.pp or 1) > 1 and fixed.schedule is None and fixed.chunks is None else None


def sweep(
    model: Architecture,
    cluster: Cluster,
    gpus: Sequence[int],
    batches: Sequence[int],
    *,
    fixed: Fixed | None = None,
    stack: Stack | None = None,
    by: str | None = None,
    tokens: float | None = None,
    critical_batch: float | None = None,
) -> Sweep:
    """Search at each number of devices and batch; ``by`` a knob, for the best with each of its values.

    ``fixed`` and ``stack`` are as in ``search``. A point where nothing fits stays, with its reason. Raises ConfigError
    where that is so of all points, or where ``by`` is no knob or is fixed.
    """
    fixed = fixed or Fixed()
    if by is not None and (by not in KNOBS or getattr(fixed, by) is not None):
        free = [knob for knob in KNOBS if getattr(fixed, knob) is None]
        what = "what is fixed is not compared" if by in KNOBS else "there is no such knob"
        raise ConfigError(Problem(where="--by", what=what, got=by, allowed=", ".join(free)))
    by = by or compared(fixed)
    points: list[Point] = []
    for devices in gpus:
        for batch in batches:
            found = search(model, cluster, devices, batch, fixed=fixed, top=1, stack=stack)
            fastest = predicted(found, fixed)
            reason = "" if fastest else "nothing fits" if found.considered else "no layout is legal"
            best: dict[Any, Candidate | None] = {None: fastest[0] if fastest else None}
            if by and fastest:  # which may not fit, where all else is fixed
                best = {getattr(fastest[0].layout, by): fastest[0]}
            if by and found.best:
                best = best_with(found, cluster, model, batch, by)
                best[getattr(found.best[0].layout, by)] = found.best[0]
            for value, candidate in best.items():
                whole = None
                if candidate and tokens:
                    step = candidate.prediction.seconds
                    whole = training(step, devices, batch, model.context, tokens, critical_batch)
                points.append(Point(devices, batch, value, candidate, reason if not candidate else "", whole))
    if not any(point.candidate for point in points):
        tried = f"{', '.join(f'{n:,}' for n in gpus)} devices, batch {', '.join(f'{n:,}' for n in batches)}"
        reasons = ", ".join(sorted({point.reason for point in points}))
        attempt = "plan one of them: it says what would do"
        raise ConfigError(Problem(where="--gpus --global-batch", what=reasons, got=tried, attempt=attempt))
    return Sweep(points, by, fixed, tokens, critical_batch)


# --------------------------------------------------------------------------- tables

COLUMNS = ("gpus", "batch", "layout", "s/step", "TFLOP/s", "MFU %")
TRAINING_COLUMNS = ("steps", "tokens", "days", "GPU hours")


def sweep_columns(swept: Sweep) -> list[str]:
    """Headings of ``sweep_rows``."""
    return [*COLUMNS, *(TRAINING_COLUMNS if swept.tokens else ())]


def sweep_rows(model: Architecture, cluster: Cluster, swept: Sweep) -> list[list[Any]]:
    """A row for each point: numbers as numbers, None where there are none."""
    rows: list[list[Any]] = []
    for point in swept.points:
        row: list[Any] = [point.gpus, point.global_batch]
        if point.candidate:
            rate = tflops(model, cluster, point.candidate, point.global_batch)[0]
            mfu = 100 * rate * 1e12 / cluster.device.peak
            row += [_layout(point.candidate), point.candidate.prediction.seconds, rate, mfu]
        else:
            named = f"{swept.by} {_text(point.value)}: " if point.value is not None else ""
            row += [named + (point.reason or "nothing fits"), None, None, None]
        if swept.tokens:
            whole = point.training
            row += [whole.steps, whole.tokens, whole.days, whole.gpu_hours] if whole else [None] * 4
        rows.append(row)
    return rows


def sweep_document(model: Architecture, cluster: Cluster, swept: Sweep) -> list[dict[str, Any]]:
    """The points as JSON has them."""
    documents = []
    for point in swept.points:
        layout = layout_document(model, cluster, point.candidate, point.global_batch) if point.candidate else None
        one: dict[str, Any] = {"gpus": point.gpus, "global_batch": point.global_batch, "layout": layout}
        if swept.by:
            one[swept.by] = point.value
        if not layout:
            one["reason"] = point.reason or "nothing fits"
        if swept.tokens:
            whole = point.training
            names = ("steps", "tokens", "seconds", "gpu_hours")
            one["training"] = {name: getattr(whole, name) for name in names} if whole else None
        documents.append(one)
    return documents


def sweep_remarks(model: Architecture, cluster: Cluster, swept: Sweep) -> list[str]:
    """Sentences: the highest throughput, the soonest and the cheapest training, and what the batch costs.

    All of these are of layouts that fit.
    """
    done = [point for point in swept.points if point.candidate and point.candidate.fits]
    if not done:
        return ["nothing fits: these layouts, which are fixed, need more memory than a device has"]
    lines = []
    best = max(done, key=lambda p: _rate(model, cluster, p) or 0.0)
    lines.append(f"highest throughput: {_rate(model, cluster, best):.1f} TFLOP/s a device, {_where(best)}")
    trained = [(point, point.training) for point in done if point.training]
    if trained:
        soonest, soon = min(trained, key=lambda pair: pair[1].seconds)
        cheapest, cheap = min(trained, key=lambda pair: pair[1].gpu_hours)
        lines.append(f"soonest: {soon.days:,.4g} days and {soon.gpu_hours:,.0f} GPU hours, {_where(soonest)}")
        lines.append(f"cheapest: {cheap.gpu_hours:,.0f} GPU hours and {cheap.days:,.4g} days, {_where(cheapest)}")
    if trained and swept.tokens and swept.critical_batch:
        most = max(trained, key=lambda pair: pair[1].tokens)
        lines.append(
            f"critical batch {swept.critical_batch:,.0f}: at batch {most[0].global_batch:,} it takes "
            f"{most[1].tokens / swept.tokens:.3g} times the tokens that small batches need"
        )
    return lines


# --------------------------------------------------------------------------- pictures


def sweep_svg(model: Architecture, cluster: Cluster, swept: Sweep, *, name: str = "", hardware: bool = False) -> str:
    """Throughput, and time and cost where tokens were asked for, as one picture.

    ``hardware`` counts what is computed again, as the charts of Narayanan et al. (2021) do.
    """
    heading, under = _headings(swept, name)
    return document(
        _figures(model, cluster, swept, hardware), heading, ". ".join(sweep_remarks(model, cluster, swept)), under
    )


def sweep_html(model: Architecture, cluster: Cluster, swept: Sweep, *, name: str = "", hardware: bool = False) -> str:
    """The same as a self-contained page, with the table."""
    heading, under = _headings(swept, name)
    said = sweep_remarks(model, cluster, swept)
    svg = document(_figures(model, cluster, swept, hardware), heading, ". ".join(said), headed=False)
    sections = [
        page.section("Curves", page.figure(svg, under), *map(page.paragraph, said)),
        page.section("Points", page.table(sweep_columns(swept), sweep_rows(model, cluster, swept))),
    ]
    return page.page(
        heading,
        cluster.description,
        sections,
        "Each point is the fastest layout that fits there, or the one that is fixed.",
    )


def _headings(swept: Sweep, name: str) -> tuple[str, str]:
    gpus, batches = _distinct(swept, "gpus"), _distinct(swept, "global_batch")
    shown = [device_text(gpus[0])] if len(gpus) == 1 else []
    shown += [f"batch {batches[0]:,}"] if len(batches) == 1 else []
    shown += [
        f"{knob.replace('_', ' ')} {_text(getattr(swept.fixed, knob))}"
        for knob in KNOBS
        if getattr(swept.fixed, knob) is not None
    ]
    if swept.tokens:
        shown.append(f"{number(swept.tokens / 1e9)} billion tokens")
        shown += [f"critical batch {swept.critical_batch:,.0f}"] if swept.critical_batch else []
    return name or "sweep", ", ".join(shown)


def _figures(model: Architecture, cluster: Cluster, swept: Sweep, hardware: bool) -> Drawing:
    """One chart of throughput, or three."""
    title = "TFLOP/s a device" + (", recomputation counted" if hardware else "")
    if not swept.tokens:
        return _chart(swept, lambda p: _rate(model, cluster, p, hardware), title, 720, 360)
    drawn: list[tuple[str, Callable[[Point], float | None]]] = [
        (title, lambda p: _rate(model, cluster, p, hardware)),
        ("days to train", lambda p: p.training.days if p.training else None),
        ("thousand GPU hours", lambda p: p.training.gpu_hours / 1000 if p.training else None),
    ]
    return beside([_chart(swept, measure, title, 490, 280) for title, measure in drawn], 2)


def _chart(swept: Sweep, measure: Callable[[Point], float | None], title: str, width: float, height: float) -> Drawing:
    """A measure over devices, batches or sizes, with a line for everything else that varies."""
    across, names = _axis(swept)
    values = list(dict.fromkeys(v for v in map(across, swept.points) if v is not None))
    if all(isinstance(value, int) for value in values):
        values.sort()
        values = _trimmed(values, {across(point) for point in swept.points if point.candidate})
    series: dict[str, list[Mark]] = {}
    for point in swept.points:
        if (swept.by and point.value is None) or across(point) not in values:  # its lines show a gap
            continue
        note = _layout(point.candidate) if point.candidate else point.reason or "nothing fits"
        mark = Mark(values.index(across(point)), measure(point), note)
        series.setdefault(_line_name(swept, point), []).append(mark)
    for marks in series.values():
        there = {mark.x for mark in marks}
        marks += [Mark(x, None, "no layout is legal, or none fits") for x in range(len(values)) if x not in there]
        marks.sort(key=lambda mark: mark.x)
    return lines(
        _merged(series),
        [names(value) for value in values],
        title=title,
        x_label=_axis_label(swept),
        width=width,
        height=height,
    )


def _trimmed(values: list[Any], filled: set[Any]) -> list[Any]:
    """Of values beyond the last at which anything fits, one is enough; likewise before the first."""
    places = [i for i, value in enumerate(values) if value in filled]
    if not places:
        return values
    return values[max(places[0] - 1, 0) : places[-1] + 2]


def _merged(series: dict[str, list[Mark]]) -> dict[str, list[Mark]]:
    """Lines that lie on one another as one, with both names."""
    merged: dict[str, list[Mark]] = {}
    for name, marks in series.items():
        for other, there in merged.items():
            if _alike(marks, there):
                merged = {f"{n}, {name}" if n == other else n: m for n, m in merged.items()}
                break
        else:
            merged[name] = marks
    return merged


def _alike(these: Sequence[Mark], those: Sequence[Mark]) -> bool:
    def near(a: float | None, b: float | None) -> bool:
        return a is b if a is None or b is None else abs(a - b) <= SAME * b

    return [mark.x for mark in these] == [mark.x for mark in those] and all(
        near(a.y, b.y) for a, b in zip(these, those)
    )


def _sized(swept: Sweep) -> bool:
    """Whether the compared knob is a size, and so the axis."""
    return swept.by is not None and swept.by not in KINDS


def _axis(swept: Sweep) -> tuple[Callable[[Point], Any], Callable[[Any], str]]:
    """What stands on the axis, and how its values are written."""
    if not _sized(swept):
        several = len(_distinct(swept, "gpus")) > 1
        return (lambda p: p.gpus if several else p.global_batch), lambda value: f"{value:,}"
    if _tensor_against_pipeline(swept):
        gpus = _distinct(swept, "gpus")[0] // (swept.fixed.dp or 1)
        if swept.by == "tp":
            return (lambda p: p.value), lambda value: f"{gpus // value} · {value}" if value else ""
        return (lambda p: p.value), lambda value: f"{value} · {gpus // value}" if value else ""
    return (lambda p: p.value), _text


def _axis_label(swept: Sweep) -> str:
    if _tensor_against_pipeline(swept):
        return "pipeline · tensor parallel size"
    if _sized(swept):
        return str(swept.by).replace("_", " ")
    return "devices" if len(_distinct(swept, "gpus")) > 1 else "global batch"


def _tensor_against_pipeline(swept: Sweep) -> bool:
    return swept.by in ("tp", "pp") and swept.fixed.dp is not None and len(_distinct(swept, "gpus")) == 1


def _line_name(swept: Sweep, point: Point) -> str:
    """Everything that varies and is not the axis."""
    gpus, batches = len(_distinct(swept, "gpus")) > 1, len(_distinct(swept, "global_batch")) > 1
    words = []
    if swept.by in KINDS and point.value is not None:
        plain = isinstance(point.value, bool | int)
        words.append(f"{swept.by.replace('_', ' ')} {_text(point.value)}" if plain else str(point.value))
    if gpus and _sized(swept):
        words.append(device_text(point.gpus))
    if batches and (gpus or _sized(swept)):
        words.append(f"batch {point.global_batch:,}")
    return ", ".join(words)


def _distinct(swept: Sweep, name: str) -> list[int]:
    return sorted({getattr(point, name) for point in swept.points})


def _layout(candidate: Candidate) -> str:
    """It, and where it does not fit how much it needs."""
    text = layout_text(candidate.layout)
    return text if candidate.fits else f"{text}: does not fit, {max(candidate.memory) / GIB:,.1f} GiB"


def _where(point: Point) -> str:
    assert point.candidate
    return f"batch {point.global_batch:,} on {device_text(point.gpus)}, {layout_text(point.candidate.layout)}"


def _rate(model: Architecture, cluster: Cluster, point: Point, hardware: bool = False) -> float | None:
    return tflops(model, cluster, point.candidate, point.global_batch)[hardware] if point.candidate else None


def _text(value: Any) -> str:
    return str(value).lower()
