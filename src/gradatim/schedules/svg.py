"""Timelines as SVG images: the pictures of Narayanan et al. (2021), https://arxiv.org/abs/2104.04473, figures 3 and 4.

Written by hand and small: the boxes of one colour are one path. No styles, identifiers or scripts, so that any number
of these can stand in one page; all text outside the boxes is of a grey that reads on white and on black.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from gradatim.schedules.simulate import Simulation
from gradatim.schedules.timeline import (
    NAMES,
    Axis,
    Bar,
    Part,
    Shares,
    Timelines,
    bars,
    caption,
    filled,
    overview,
    parts,
    shortest,
    timeline_rows,
    title,
)

COLOURS = {"F": (47, 95, 163), "B": (46, 125, 66), "I": (186, 96, 22), "W": (118, 74, 158)}
LIGHTEST = 0.62
"""How far the last chunk's shade is from its colour towards white."""
GREY = "#767676"
"""Contrast of at least 4.1 on white and on the near-black of dark pages."""
IDLE = 'fill="#808080" fill-opacity=".22"'

WIDTH, NARROWEST = 1000, 640
"""Pixels: what a long timeline is cut to, and what caption and legend need."""
WIDEST_BOX = 34
MARGIN, TOP = 58, 34
BOX, PITCH = 20, 24
"""Height of a box, and of a row."""
MOST_RANKS = 16
STRETCH = 4
"""Width of what the overview shows in one colour."""
NARROWEST_BOX = 3
DIGIT = 6.2
"""Width of a digit."""


def draw_svg(simulation: Simulation) -> str:
    """A simulation's timeline as an SVG document, its caption with makespan, ideal, bubble overhead and formula."""
    return timeline_svg({"": timeline_rows(simulation)}, title(simulation), caption(simulation))


def timeline_svg(timelines: Timelines, heading: str, lines: Sequence[str] = (), unit: str = "") -> str:
    """Timelines of (action, start, end) per rank, simulated or measured, below one another on one scale.

    ``heading`` stands above, ``lines`` below, ``unit`` behind the word "time". The numbers in the boxes are
    microbatches. Of a long timeline the middle is left out, of many ranks too.
    """
    drawn = parts(timelines, MOST_RANKS)
    axis = _axis(drawn)
    turns = 1 + max((bar.turn for bar in bars(drawn)), default=0)
    y, body = TOP, []
    for part in drawn:
        if part.heading:
            body.append(_text(0, y + 14, part.heading))
            y += PITCH
        body.append(_rows(part, axis, turns, y))
        y += PITCH * len(part.rows)
    body.append(_ruler(axis, y + 12, unit))
    y += 42
    body.append(_legend(drawn, turns, y))
    for line in lines:
        y += 20
        body.append(_text(0, y, line))
    width = max(MARGIN + axis.width + 4, NARROWEST)
    what = f"A timeline with one row per rank, time to the right. {'. '.join(lines)}."
    size = f'viewBox="-8 0 {_n(width + 16)} {y + 12}" width="{_n(width + 16)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
            f'aria-label="{escape(heading)}" font-family="system-ui, sans-serif" font-size="13" fill="{GREY}">',
            f"<title>{escape(heading)}</title>",
            f"<desc>{escape(what)}</desc>",
            _text(0, 18, heading, 'font-size="15" font-weight="600"'),
            *body,
            "</svg>\n",
        ]
    )


def _axis(drawn: list[Part]) -> Axis:
    """A scale on which the microbatch number fits into short boxes, as wide as is pleasant."""
    makespan = max((part.makespan for part in drawn), default=0)
    digits = len(str(max((bar.action.microbatch for bar in bars(drawn)), default=1)))
    short = float(shortest(drawn))
    least = (DIGIT * digits + 5) / short
    room = WIDTH - MARGIN - 10
    if not makespan:
        return Axis.whole(least, 0)
    scale = max(least, min(room / float(makespan), WIDEST_BOX / short))
    if scale * float(makespan) <= room + 1e-6:
        return Axis.whole(scale, makespan)
    cut = Axis.cut(scale, makespan, room, 24, scale * short)
    return cut if float(filled(drawn)) * scale < cut.head else Axis.whole(room / float(makespan), makespan)


def _rows(part: Part, axis: Axis, turns: int, top: float) -> str:
    """Names, idle bars, boxes by colour, and numbers of all ranks."""
    names, idle, boxes, digits = [], [], dict[str, list[str]](), dict[str, list[str]]()
    dense = not axis.tail and float(shortest([part])) * float(axis.scale) < NARROWEST_BOX
    for line, (rank, row) in enumerate(part.rows):
        y = top + line * PITCH
        if rank is None:
            names.append(_text(0, y + 14, "⋮"))
            continue
        names.append(_text(0, y + 14, f"rank {rank}"))
        idle += [_box(a, b, y) for a, b, _ in axis.place(0, part.makespan)]
        if dense:
            for colour, a, b in _stretches(row, axis, turns):
                boxes.setdefault(colour, []).append(_box(a, b, y))
            continue
        for bar in row:
            fill = _shade(bar.action.kind, bar.turn, turns)
            number = str(bar.action.microbatch)
            for a, b, whole in axis.place(bar.start, bar.end):
                boxes.setdefault(_hex(fill), []).append(_box(a, b - min(1, (b - a) / 4), y))
                if whole and b - a > DIGIT * len(number) + 1:
                    digits.setdefault(_ink(fill), []).append(
                        f'<text x="{_n(MARGIN + (a + b - 1) / 2)}" y="{_n(y + 14)}">{number}</text>'
                    )
    paths = [f'<path {IDLE} d="{"".join(idle)}"/>']
    paths += [f'<path fill="{colour}" d="{"".join(found)}"/>' for colour, found in boxes.items()]
    paths += [
        f'<g fill="{ink}" font-size="11" text-anchor="middle">{"".join(found)}</g>' for ink, found in digits.items()
    ]
    return "\n".join([*names, *paths])


def _stretches(row: list[Bar], axis: Axis, turns: int) -> Iterator[tuple[str, float, float]]:
    """A rank in the overview: (colour, from, to), each stretch of the mean colour of what fills it."""
    colours = [_mean(shares, turns) for shares in overview(row, axis, STRETCH)]
    x = 0.0
    for colour, run in groupby(colours):
        stop = min(x + STRETCH * len(list(run)), axis.length)
        if colour:
            yield colour, x, stop
        x = stop


def _mean(shares: Shares, turns: int) -> str:
    """A stretch's colour, in steps, so that neighbours that hardly differ are one; none where all is idle."""
    busy = sum(shares.values())
    if busy < 0.05:
        return ""
    mean = [sum(share * _shade(*key, turns)[i] for key, share in shares.items()) / busy for i in range(3)]
    red, green, blue = (min(round(value / 12) * 12, 255) for value in mean)
    return _hex((red, green, blue)) + ("" if busy > 0.95 else f'" fill-opacity="{max(round(busy * 5), 1) / 5:g}')


def _box(start: float, stop: float, y: float) -> str:
    """A rectangle as part of a path."""
    return f"M{_n(MARGIN + start)} {_n(y)}h{_n(stop - start)}v{BOX}h-{_n(stop - start)}z"


def _shade(kind: str, turn: int, turns: int) -> tuple[int, int, int]:
    """A kind's colour, lighter for later chunks."""
    light = LIGHTEST * turn / max(turns - 1, 1)
    red, green, blue = (round(value + (255 - value) * light) for value in COLOURS[kind])
    return red, green, blue


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _ink(colour: tuple[int, int, int]) -> str:
    """White or black, whichever stands out more (WCAG's relative luminance)."""
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#fff" if luminance < 0.18 else "#000"


def _ruler(axis: Axis, y: float, unit: str) -> str:
    """Times below the rows, and a mark where the middle is left out."""
    marks = [_text(0, y, f"time, {unit}" if unit else "time", 'font-size="11"')]
    ticks = [f'<text x="{_n(MARGIN + x)}" y="{_n(y)}">{text}</text>' for text, x in axis.ticks(60)]
    marks.append(f'<g font-size="11" text-anchor="middle">{"".join(ticks)}</g>')
    if axis.tail:
        x = MARGIN + axis.head + axis.gap / 2
        marks.append(f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="middle">⋯</text>')
        lines = "".join(f"M{_n(x + side)} {TOP}V{_n(y - 14)}" for side in (-4, 4))
        marks.append(f'<path stroke="{GREY}" stroke-dasharray="3 4" d="{lines}"/>')
    return "\n".join(marks)


def _legend(drawn: Sequence[Part], turns: int, y: float) -> str:
    """Colours and what they stand for, of those that occur."""
    x, pieces = 0.0, []
    present: set[str] = {bar.action.kind for bar in bars(drawn)}
    swatches = [
        ([f'fill="{_hex(_shade(k, t, turns))}"' for t in range(min(turns, 8))], n)
        for k, n in NAMES.items()
        if k in present
    ]
    for fills, name in [*swatches, ([IDLE], "idle")]:
        for fill in fills:
            pieces.append(f'<path {fill} d="M{_n(x)} {_n(y - 10)}h12v12h-12z"/>')
            x += 12
        pieces.append(_text(x + 6, y, name))
        x += 6 + 7 * len(name) + 22
    if turns > 1:
        pieces.append(_text(x, y, "lighter: later chunks of a rank"))
    return "".join(pieces)


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}"{" " + more if more else ""}>{escape(text)}</text>'


def _n(value: float) -> str:
    """A number of pixels to a tenth, as short as can be."""
    return f"{value:.1f}".removesuffix(".0")


__all__ = ["Bar", "draw_svg", "timeline_svg"]
