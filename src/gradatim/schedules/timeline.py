"""What the two pictures of a schedule share: rows of spans, what is left out of long ones, and the words beneath.

A timeline is a row per rank of (action, start, end), simulated or measured: the picture of Narayanan et al. (2021),
https://arxiv.org/abs/2104.04473, figures 3 and 4, time to the right. A long one shows its beginning and its end, if
that is enough to see the pipeline fill and drain (between them a pattern repeats), or else becomes an overview without
numbers. Of many ranks the first and the last are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gradatim.schedules.actions import Action
from gradatim.schedules.build import bubble_formula, formula_text
from gradatim.schedules.simulate import Simulation, Time

Row = Sequence[tuple[Action, Time, Time]]
"""What one rank does: (action, start, end), in any unit of time, from any origin."""

Timelines = Mapping[str, Sequence[Row]]
"""Rows of all ranks under a heading ("simulated", "measured", or nothing), drawn one below the other on one scale."""

NAMES = {"F": "forward", "B": "backward", "I": "backward for inputs", "W": "backward for weights"}
TITLES = {
    "naive": "Model parallelism without a pipeline",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved 1F1B",
    "zero-bubble": "Zero-bubble ZB-H1",
}


def timeline_rows(simulation: Simulation) -> list[Row]:
    """A simulation's rows, without transfers."""
    return [
        [(action, start, end) for action, (start, end) in zip(actions, spans) if action.computes]
        for actions, spans in zip(simulation.schedule.ranks, simulation.spans)
    ]


# --------------------------------------------------------------------------- what is drawn


@dataclass(frozen=True, slots=True)
class Bar:
    """One action, ready to be drawn."""

    action: Action
    turn: int
    """Which of its rank's chunks it is of, in the order of the forward pass."""
    start: Time
    """From the first start of the timeline."""
    end: Time


@dataclass(frozen=True, slots=True)
class Part:
    """A timeline ready to be drawn: bars that take time, from time 0."""

    heading: str
    ranks: int
    """How many there are."""
    rows: list[tuple[int | None, list[Bar]]]
    """(rank, its bars) of those that are drawn; rank None stands for those left out."""
    makespan: Time


MANY = 20_000
"""Bars above which exact times are rounded: nobody sees the difference, and adding fractions is slow."""


def parts(timelines: Timelines, most: int) -> list[Part]:
    """The timelines from their first start on, of at most ``most`` ranks, without transfers and what takes no time."""
    rounded = sum(len(row) for rows in timelines.values() for row in rows) > MANY
    found = []
    for heading, rows in timelines.items():
        first = min((start for row in rows for _, start, _ in row), default=0)
        makespan = max((end for row in rows for _, _, end in row), default=0) - first
        drawn = [(rank, [] if rank is None else _bars(rows[rank], first, rounded)) for rank in shown(len(rows), most)]
        found.append(Part(heading, len(rows), drawn, float(makespan) if rounded else makespan))
    return found


def _bars(row: Row, first: Time, rounded: bool) -> list[Bar]:
    turns = {chunk: turn for turn, chunk in enumerate(sorted({action.chunk for action, _, _ in row}))}
    times = ((a, s - first, e - first) for a, s, e in row if a.computes and e > s)
    if rounded:
        return [Bar(a, turns[a.chunk], float(start), float(end)) for a, start, end in times]
    return [Bar(a, turns[a.chunk], start, end) for a, start, end in times]


def bars(drawn: Iterable[Part]) -> Iterator[Bar]:
    """All bars of all ranks."""
    return (bar for part in drawn for _, row in part.rows for bar in row)


def shortest(drawn: Iterable[Part]) -> Time:
    """The shortest duration that a picture must have room for. Outliers do not count: measured times have some.

    An outlier is shorter than half of what all but a tenth of the bars last.
    """
    lengths = sorted(bar.end - bar.start for bar in bars(drawn))
    if not lengths:
        return 1
    usual = lengths[len(lengths) // 10]
    return next(length for length in lengths if 2 * length >= usual)


def grid(drawn: Iterable[Part]) -> Fraction | None:
    """The coarsest unit of which every start and end is a multiple; None for measured times (floats)."""
    times = {time for bar in bars(drawn) for time in (bar.start, bar.end)}
    if not times or any(isinstance(time, float) for time in times):
        return None
    fractions = [Fraction(time) for time in times]
    below = math.lcm(*(time.denominator for time in fractions))
    return Fraction(math.gcd(*(int(time * below) for time in fractions)), below)


def filled(drawn: Iterable[Part]) -> Time:
    """When the last rank begins its first backward pass: until then the pipeline fills."""
    rows = [row for part in drawn for _, row in part.rows]
    return max((min((bar.start for bar in row if bar.action.kind != "F"), default=0) for row in rows), default=0)


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a time stands in the picture, in characters or pixels, and what of a long timeline is left out."""

    scale: Time
    """Characters or pixels per unit of time."""
    length: float
    """Of the whole timeline."""
    head: float
    """How much is shown from the start; all of it if ``tail`` is 0."""
    tail: float = 0
    """How much is shown at the end."""
    gap: float = 0
    """Width of the break between the two."""

    @classmethod
    def whole(cls, scale: Time, makespan: Time) -> Axis:
        """Show everything."""
        length = float(makespan * scale)
        return cls(scale, length, length)

    @classmethod
    def cut(cls, scale: Time, makespan: Time, room: float, gap: float, step: float) -> Axis:
        """Show as many whole ``step``s at either end as ``room`` has space for."""
        half = max((room - gap) / 2 // step, 1) * step
        return cls(scale, float(makespan * scale), half, half, gap)

    @property
    def width(self) -> float:
        """Of what is shown."""
        return self.head + self.gap + self.tail

    def place(self, start: Time, end: Time) -> Iterator[tuple[float, float, bool]]:
        """From where to where an interval is seen, if at all, and whether it is seen from its beginning to its end."""
        a, b = float(start * self.scale), float(end * self.scale)
        if a < self.head:
            yield a, min(b, self.head), b <= self.head
        shift = self.length - self.width
        if self.tail and b > self.length - self.tail:
            yield max(a, self.length - self.tail) - shift, b - shift, a >= self.length - self.tail

    def ticks(self, apart: float) -> Iterator[tuple[str, float]]:
        """Round times and where they stand, at least ``apart`` from one another."""
        if not self.length:
            return
        least = apart / float(self.scale)
        power = 10.0 ** math.floor(math.log10(least))
        every = next(power * n for n in (1, 2, 5, 10) if power * n >= least * (1 - 1e-9))
        for i in range(int(self.length / float(self.scale) / every + 1e-9) + 1):
            x = i * every * float(self.scale)
            if x <= self.head:
                yield f"{i * every:.6g}", x
            elif self.tail and x >= self.length - self.tail:
                yield f"{i * every:.6g}", x - self.length + self.width


Shares = dict[tuple[str, int], float]
"""(kind, turn): how much of a stretch of time."""


def overview(row: Iterable[Bar], axis: Axis, step: float = 1) -> list[Shares]:
    """What fills each stretch of ``step`` characters or pixels of an uncut timeline."""
    stretches: list[Shares] = [{} for _ in range(math.ceil(axis.length / step - 1e-9))]
    scale = float(axis.scale) / step
    for bar in row:
        a, b = float(bar.start) * scale, float(bar.end) * scale
        for i in range(int(a), min(math.ceil(b), len(stretches))):
            key = (bar.action.kind, bar.turn)
            stretches[i][key] = stretches[i].get(key, 0) + min(b, i + 1) - max(a, i)
    return stretches


def shown(ranks: int, most: int) -> list[int | None]:
    """The ranks to draw, all if there are at most ``most``; None stands for those left out."""
    if ranks <= most:
        return list(range(ranks))
    last = most // 2
    return [*range(most - last), None, *range(ranks - last, ranks)]


# --------------------------------------------------------------------------- what is said


def quantity(value: Time) -> str:
    """A number for people: 33, 3/8, 0.34167."""
    if isinstance(value, float):
        return f"{value:.5g}"
    exact = Fraction(value)
    return f"{exact}" if exact.denominator <= 1000 else f"{float(exact):.5g}"


def overhead(value: Time) -> str:
    """A bubble overhead for people: 0.375 (3/8)."""
    exact = quantity(value)
    return f"{float(value):.4g} ({exact})" if "/" in exact else exact


def formula(simulation: Simulation) -> tuple[str, Fraction | None, bool]:
    """The papers' formula of its bubble overhead, that formula's value, and whether the simulation agrees.

    It need not: the formulas are for equal chunks and free transfers.
    """
    schedule = simulation.schedule
    times: dict[str, set[Time]] = {}
    for actions, spans in zip(schedule.ranks, simulation.spans):
        for action, (start, end) in zip(actions, spans):
            if action.computes:
                times.setdefault(action.kind, set()).add(end - start)
    equal = all(len(found) == 1 for found in times.values())
    one = {kind: Fraction(found.pop()) for kind, found in times.items()} if equal else {}
    backward = sum((one[kind] for kind in "BIW" if kind in one), Fraction(0))
    passes: dict[str, Fraction] = {"forward": one["F"], "backward": backward} if "F" in one else {}
    value = bubble_formula(schedule.name, schedule.stages, schedule.microbatches, schedule.chunks, **passes)
    agrees = value is not None and math.isclose(value, simulation.bubble_overhead, rel_tol=1e-9)
    return formula_text(schedule.name, **passes), value, agrees


def title(simulation: Simulation, whole: int = 0) -> str:
    """What is seen: schedule, stages, microbatches (the first of a ``whole`` that has more), chunks."""
    schedule = simulation.schedule
    counts = [(schedule.stages, "stage", "stages"), (schedule.microbatches, "microbatch", "microbatches")]
    if schedule.chunks > 1:
        counts.append((schedule.chunks, "", "chunks per rank"))
    words = [f"{count:,} {one if count == 1 else more}" for count, one, more in counts]
    if whole > schedule.microbatches:
        words[1] = f"the first {schedule.microbatches:,} of {whole:,} microbatches"
    return f"{TITLES.get(schedule.name, schedule.name)}: {', '.join(words)}"


def caption(simulation: Simulation, unit: str = "") -> list[str]:
    """Makespan, ideal and bubble overhead beside the formula, and the memory high-water: two lines."""
    text, value, agrees = formula(simulation)
    line = f"makespan {quantity(simulation.makespan)} {unit}".rstrip() + ", "
    line += f"ideal {quantity(simulation.ideal)} {unit}".rstrip() + ", "
    line += f"bubble overhead {overhead(simulation.bubble_overhead)}"
    if agrees:
        line += f" = {text}"
    elif value is not None:
        line += f"; {text} = {overhead(value)} if all were equal and transfers free"
    return [line, in_flight_text(simulation)]


def in_flight_text(simulation: Simulation) -> str:
    """The memory high-water: what each rank holds at a time, at most."""
    noun = "microbatches" if simulation.schedule.chunks == 1 else "chunk-microbatches"
    return f"most {noun} in flight, by rank: {numbers(simulation.peak_in_flight)}"


def numbers(values: Sequence[int], most: int = 16) -> str:
    """Numbers in a row, the middle of many left out."""
    return " ".join("…" if rank is None else str(values[rank]) for rank in shown(len(values), most))
