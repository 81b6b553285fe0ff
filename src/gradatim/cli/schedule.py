"""``gradatim schedule NAME``: a pipeline schedule as a timeline, its bubble beside the papers' formula, its memory.

The pictures of the talk: ``naive`` (no pipeline), ``gpipe``, ``1f1b``, ``interleaved``, ``zero-bubble``. What is drawn
is what the pipeline of ``gradatim train`` runs. Numbers are read and added exactly (``0.1`` is a tenth, ``1/3`` a
third), so that where the papers' formulas hold they hold to the last digit.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say, write_file
from gradatim.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gradatim.schedules import Simulation
    from gradatim.schedules.simulate import Time

FILE_WIDTH = 120
"""Columns of a timeline that goes into a file or a pipe, unless COLUMNS says otherwise."""

_NUMBER = re.compile(r"\d{1,15}(\.\d{0,15})?(e[-+]?\d{1,2})?|\.\d{1,15}|\d{1,15}/0*[1-9]\d{0,14}", re.ASCII | re.I)


@click.command(cls=Verb)
@click.argument("name")
@click.option("--stages", required=True, metavar="P", help="Ranks in the pipeline.")
@click.option("--microbatches", required=True, metavar="M", help="Microbatches per step.")
@click.option("--chunks", default="1", metavar="V", show_default=True, help="Model chunks on each rank (interleaved).")
@click.option(
    "--forward",
    default="1",
    metavar="T,…",
    show_default=True,
    help="Time of a forward pass, of one chunk and one microbatch; or a list, one for each of the P·V chunks.",
)
@click.option(
    "--backward",
    default="2",
    metavar="T,…",
    show_default=True,
    help="Likewise of a backward pass; zero-bubble's halves take half of it each.",
)
@click.option("--transfer", default="0", metavar="T", show_default=True, help="Time until a result is on another rank.")
@click.option("--communication", is_flag=True, help="List sends and receives too.")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw the timeline into this file.")
@json_option
def command(
    name: str,
    stages: str,
    microbatches: str,
    chunks: str,
    forward: str,
    backward: str,
    transfer: str,
    communication: bool,
    svg: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Show the pipeline schedule NAME: naive, gpipe, 1f1b, interleaved or zero-bubble.

    Microbatches and chunks count from 0: 2F0 is chunk 2, forward, microbatch 0; B is backward, I and W its halves.
    """
    from gradatim.schedules import build_schedule, draw_svg, draw_text, durations, lower, schedule_problems, simulate
    from gradatim.schedules.timeline import formula

    problems: list[Problem] = []
    options = {"stages": stages, "microbatches": microbatches, "chunks": chunks}
    p, m, v = (_whole(option, text, problems) for option, text in options.items())
    unknown = p if p else 1  # stands for counts that could not be read, and divides as interleaving wants it
    problems += schedule_problems(name, 1 if p is None else p, unknown if m is None else m, 1 if v is None else v)
    entries = p * v if p and v and p > 0 and v > 0 else None
    forwards = _times("forward", forward, problems, entries)
    backwards = _times("backward", backward, problems, entries)
    wait = _times("transfer", transfer, problems)[:1]
    if problems:
        raise ConfigError(*problems)
    assert p and m and v

    schedule = build_schedule(name, p, m, v)
    duration = durations(*(times[0] if len(times) == 1 else times for times in (forwards, backwards)))
    simulation = simulate(schedule, duration, wait[0])
    if svg:
        write_file(svg, draw_svg(simulation))
        say(f"wrote {svg}")
    listed = lower(schedule, duration) if communication else schedule
    found = formula(simulation)
    document = {
        "ranks": listed.text() if as_json else [],
        "makespan": _plain(simulation.makespan),
        "ideal": _plain(simulation.ideal),
        "bubble_overhead": _plain(simulation.bubble_overhead),
        "bubble_formula": None if found[1] is None else _plain(found[1]),
        "peak_in_flight": simulation.peak_in_flight,
    }

    def human() -> list[str | Table]:
        width = shutil.get_terminal_size((FILE_WIDTH, 24)).columns
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        parts: list[str | Table] = [draw_text(simulation, width, colour=colour), ""]
        if communication:
            parts += [f"rank {rank}: {' '.join(actions)}" for rank, actions in enumerate(listed.text())] + [""]
        return [*parts, _facts(simulation, found)]

    emit(document, as_json, human)


def _facts(simulation: Simulation, found: tuple[str, Fraction | None, bool]) -> Table:
    """Makespan, ideal, bubble beside the formula that was found, memory."""
    from gradatim.schedules.timeline import numbers, overhead, quantity

    text, value, agrees = found
    beside = "none known" if value is None else f"{text} = {overhead(value)}"
    if value is not None and not agrees:
        beside += " if all were equal and transfers free"
    what = "microbatches" if simulation.schedule.chunks == 1 else "chunk-microbatches"
    rows = [
        ["makespan", quantity(simulation.makespan), ""],
        ["ideal", quantity(simulation.ideal), "the busiest rank's own work"],
        ["bubble overhead", overhead(simulation.bubble_overhead), beside],
        ["peak in flight", numbers(simulation.peak_in_flight), f"{what}, by rank"],
    ]
    return Table(["", "simulated", "formula"], rows)


def _whole(option: str, text: str, problems: list[Problem]) -> int | None:
    """A count as it was typed, or None and a problem."""
    if re.fullmatch(r"[-+]?[0-9]{1,9}", text.strip()):
        return int(text)
    problems.append(
        Problem(
            where=option, what="this must be a whole number", got=text, allowed="1, 2, 3, …", attempt=f"--{option} 4"
        )
    )
    return None


def _times(option: str, text: str, problems: list[Problem], entries: int | None = 1) -> list[Time]:
    """One time, or with commas as many as ``entries`` (None: not known); exact, whole ones as int."""
    found: list[Time] = []
    for piece in map(str.strip, text.split(",")):
        if _NUMBER.fullmatch(piece):
            time = Fraction(piece)
            found.append(int(time) if time.denominator == 1 else time)
        else:
            what = "a time must be a number, zero or more"
            allowed = "1, 0.5, 1/3" + ("" if entries == 1 else ", or one for each chunk with commas between")
            problems.append(Problem(where=option, what=what, got=piece, allowed=allowed, attempt=f"--{option} 1"))
            found.append(0)
    if entries and len(found) not in (1, entries):
        only = "there is one transfer time" if option == "transfer" else "there must be one time, or one for each chunk"
        allowed = "1" if entries == 1 else f"1 or {entries} (stages · chunks)"
        example = ",".join(["1"] * min(entries, 8)) + (",…" if entries > 8 else "")
        problems.append(
            Problem(
                where=option, what=only, got=f"{len(found)} times", allowed=allowed, attempt=f"--{option} {example}"
            )
        )
    return found


def _plain(value: Time) -> int | float:
    """A number for JSON: whole ones as they are, fractions rounded once."""
    return int(value) if value == int(value) else float(value)
