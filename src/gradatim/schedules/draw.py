"""Timelines as text: a row per rank, time to the right, for terminals and for files.

The picture of Narayanan et al. (2021), https://arxiv.org/abs/2104.04473, figures 3 and 4: forward passes blue,
backward passes green, lighter shades for a rank's later chunks, each with the number of its microbatch. Without colours
an action stands as itself, ``F0`` or ``2F0``, and its kind fills the time it takes. ``svg.py`` draws it as an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby

from gradatim.schedules.actions import Action
from gradatim.schedules.simulate import Simulation, Time
from gradatim.schedules.svg import draw_svg, timeline_svg
from gradatim.schedules.timeline import (
    NAMES,
    Axis,
    Bar,
    Part,
    Shares,
    Timelines,
    bars,
    filled,
    grid,
    overview,
    parts,
    shortest,
    timeline_rows,
)

__all__ = ["draw_svg", "draw_text", "timeline_rows", "timeline_svg", "timeline_text"]

FILL = {"F": " ", "B": "=", "I": "-", "W": "~"}
IDLE = "."
MIXED = "#"
BREAK = " // "
MOST_RANKS = 24
"""Rows drawn; of more ranks the first and the last."""
LONGEST_GRID = 12
"""Most characters that a shortest action may take for all times to be drawn exactly."""

PALETTE = {"F": (25, 33, 75, 153), "B": (28, 35, 78, 157), "I": (130, 172, 214, 222), "W": (91, 134, 176, 218)}
"""Shades of the 256 colours of terminals, by kind, from a rank's first chunk to later ones."""
MIXED_SHADE = 66
DARK = {25, 28, 33, 91, 130, 134}
"""Those of them that carry white digits."""


def draw_text(simulation: Simulation, width: int | None = 100, *, colour: bool = False) -> str:
    """A simulation's timeline in at most ``width`` columns (None: as many as it takes).

    ``colour`` writes ANSI colours instead of letters. A unit of time takes one column or several.
    """
    return timeline_text({"": timeline_rows(simulation)}, width, colour=colour)


def timeline_text(timelines: Timelines, width: int | None = 100, *, colour: bool = False) -> str:
    """Timelines of (action, start, end) per rank, simulated or measured, below one another on one scale."""
    drawn = parts(timelines, MOST_RANKS)
    ranks = max((part.ranks for part in drawn), default=0)
    margin = len(f"rank {max(ranks - 1, 0)} ")
    room = max(width - margin, 12) if width else None
    view = _view(drawn, room, colour)
    lines = []
    for part in drawn:
        lines += [part.heading] if part.heading else []
        for rank, row in part.rows:
            name = f"{'...' if rank is None else f'rank {rank}':{margin}}"
            lines.append(name if rank is None else name + view.row(row, part.makespan))
    mixed = not view.numbered and any(MIXED in line for line in lines)
    return "\n".join([*lines, f"{'time':{margin}}{_ruler(view.axis, room)}", _legend(drawn, view, mixed)])


Cell = tuple[str, int]
"""A character and its background (one of 256 colours; -1 for none)."""


@dataclass(frozen=True, slots=True)
class _View:
    """How the rows of a picture are drawn, the same for all."""

    axis: Axis
    colour: bool
    chunks: int
    """Most chunks of a rank."""
    numbered: bool
    """Each action with its number; otherwise an overview."""
    spaced: bool
    """Actions apart from one another."""

    def label(self, action: Action) -> str:
        """What stands in an action's place: with colours its microbatch, without the chunk too if ranks hold many."""
        if self.colour:
            return f" {action.microbatch}" if self.spaced else str(action.microbatch)
        return str(action) if self.chunks > 1 else f"{action.kind}{action.microbatch}"

    def row(self, row: list[Bar], makespan: Time) -> str:
        """One rank's line, up to the end of its timeline (another may be longer)."""
        cells = self._numbered(row) if self.numbered else [self._stretch(shares) for shares in overview(row, self.axis)]
        cells = cells[: max((round(stop) for _, stop, _ in self.axis.place(0, makespan)), default=0)]
        return _painted(cells) if self.colour else "".join(character for character, _ in cells)

    def _shade(self, kind: str, turn: int) -> int:
        return _shade(kind, turn, self.chunks) if self.colour else -1

    def _numbered(self, row: list[Bar]) -> list[Cell]:
        cells: list[Cell] = [(IDLE, -1)] * round(self.axis.width)
        for bar in row:
            for start, stop, whole in self.axis.place(bar.start, bar.end):
                a, b = round(start), round(stop)
                text = self.label(bar.action) if whole else ""
                text = text if len(text) <= b - a else ""
                filled = text.ljust(b - a, " " if self.colour else FILL[bar.action.kind])
                cells[a:b] = [(character, self._shade(bar.action.kind, bar.turn)) for character in filled]
                if b - a > 1 and (self.spaced or self.colour):
                    cells[b - 1] = (" ", -1)
        if self.axis.tail:
            cells[round(self.axis.head) : round(self.axis.head + self.axis.gap)] = [(c, -1) for c in BREAK]
        return cells

    def _stretch(self, shares: Shares) -> Cell:
        """What a column of the overview shows: what fills most of it."""
        if sum(shares.values()) < 0.5:
            return IDLE, -1
        kinds = [sum(share for (kind, _), share in shares.items() if kind == k) for k in NAMES]
        kind, turn = max(shares, key=lambda key: shares[key])
        if max(kinds) < 0.75 * sum(kinds):
            return MIXED, MIXED_SHADE if self.colour else -1
        return " " if self.colour else kind if turn % 2 == 0 else kind.lower(), self._shade(kind, turn)


def _view(drawn: list[Part], room: int | None, colour: bool) -> _View:
    """The most telling view that fits: numbers and space, numbers, both ends with numbers, or an overview."""
    makespan = max((part.makespan for part in drawn), default=0)
    chunks = 1 + max((bar.turn for bar in bars(drawn)), default=0)
    view = _View(Axis.whole(1, 0), colour, chunks, numbered=True, spaced=True)
    if not makespan:
        return view
    for spaced in (True, False):
        view = replace(view, spaced=spaced)
        axis, step = _axis(drawn, view, makespan, room)
        if room is None or axis.length <= room:
            return replace(view, axis=axis)
        cut = Axis.cut(axis.scale, makespan, room, len(BREAK), step)
        if not spaced and filled(drawn) * axis.scale < cut.head:
            return replace(view, axis=cut)
    unit = grid(drawn)
    fits = unit and makespan / unit <= (room or 0)
    scale = 1 / unit if unit and fits else Fraction(room or 1) / Fraction(makespan)
    return replace(view, axis=Axis.whole(scale, makespan), numbered=False)


def _axis(drawn: list[Part], view: _View, makespan: Time, room: int | None) -> tuple[Axis, float]:
    """A scale on which short actions hold their label, and the columns of a unit.

    It is exact where all times are multiples of a common unit that is not much shorter than the actions.
    """
    actions = [bar.action for bar in bars(drawn)]
    longest = Action(max(action.chunk for action in actions), "F", max(action.microbatch for action in actions))
    need = len(view.label(longest)) + (view.spaced or view.colour)
    unit, short = grid(drawn), shortest(drawn)
    if unit and (columns := -(-need * unit // short)) * short / unit <= max(LONGEST_GRID, need):
        return Axis.whole(columns / unit, makespan), float(columns)
    least = need / float(short)
    fill = min(room / float(makespan), 3 * least) if room else least
    return Axis.whole(max(least, fill), makespan), 1.0


def _painted(cells: list[Cell]) -> str:
    """The cells with ANSI colours, a sequence wherever the colour changes."""
    text = ""
    for shade, run in groupby(cells, key=lambda cell: cell[1]):
        characters = "".join(character for character, _ in run)
        text += f"\x1b[2m{characters}\x1b[0m" if shade < 0 else _swatch(characters, shade)
    return text


def _swatch(text: str, shade: int) -> str:
    return f"\x1b[48;5;{shade};38;5;{231 if shade in DARK else 16}m{text}\x1b[0m"


def _shade(kind: str, turn: int, chunks: int) -> int:
    """A kind's colour, lighter for later chunks; two chunks are two shades apart."""
    shades = PALETTE[kind]
    return shades[(2 * turn if chunks == 2 else turn) % len(shades)]


def _ruler(axis: Axis, room: int | None) -> str:
    """Times below their columns."""
    line = ""
    for text, x in axis.ticks(10):
        fits = room is None or round(x) + len(text) <= room
        if fits and round(x) >= len(line) + (1 if line else 0):
            line = line.ljust(round(x)) + text
    return line


def _legend(drawn: list[Part], view: _View, mixed: bool) -> str:
    """Which colour or letter is what, of those that occur."""
    present = {bar.action.kind for bar in bars(drawn)}
    kinds = [kind for kind in NAMES if kind in present]
    mixture = ["several in turns"] if mixed else []
    if not view.colour:
        words = [f"{kind} {NAMES[kind]}" for kind in kinds] + [f"{IDLE} idle"] + [f"{MIXED} {text}" for text in mixture]
        if view.chunks > 1:
            words.append("2F0 is chunk 2, microbatch 0" if view.numbered else "small letters: every other chunk")
        return ", ".join(words)
    turns = range(min(view.chunks, len(PALETTE["F"])))
    swatches = ["".join(_swatch("  ", _shade(k, turn, view.chunks)) for turn in turns) + f" {NAMES[k]}" for k in kinds]
    swatches += [f"{_swatch(MIXED, MIXED_SHADE)} {text}" for text in mixture]
    return "   ".join([*swatches, f"{IDLE} idle", *(["lighter: later chunks"] if view.chunks > 1 else [])])
