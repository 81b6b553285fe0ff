"""Small charts as SVG, by hand: lines over values, columns in layers, one bar of shares. No torch, no matplotlib.

As ``schedules/svg.py`` draws: no styles, identifiers or scripts, so that any number can stand in one page, and text of
a grey that reads on white and on black. A chart is a ``Drawing`` with its size; ``document`` puts several together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

GREY = "#767676"
COLOURS = ("#2f5fa3", "#ba6016", "#2e7d42", "#a23b6b", "#764a9e", "#0e8a94", "#8a7a1f", "#7a5a4a")
"""Contrast of at least 4 on white; each keeps its place."""
FAINT = 'stroke="#808080" stroke-opacity=".25"'
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 30, 44
"""Room around the plot for numbers, title and names."""
LETTER = 6.0
UPRIGHT = 11
"""Pixels of a column in which a number can stand upright."""
"""Width of a letter of 11 pixels, about."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A piece of a picture."""

    body: str
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line; ``y`` None says that there is none at this value."""

    x: int
    """Place of its value on the axis."""
    y: float | None
    note: str = ""
    """What is shown when it is pointed at."""
    chosen: bool = False
    """Stands out."""


def lines(
    series: Mapping[str, Sequence[Mark]],
    names: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    width: float = 490,
    height: float = 250,
    top: float | None = None,
    joined: bool = True,
) -> Drawing:
    """Lines over values that stand at equal distances; a cross on the axis where a value has no point.

    Without ``joined`` the values are kinds, between which there is nothing: each point stands on a stem.
    """
    highest = max((m.y for marks in series.values() for m in marks if m.y is not None), default=1.0)
    axis = Scale(top or highest, height - TOP - BOTTOM)
    room = width - LEFT - RIGHT
    step = room / max(len(names), 1)
    base = TOP + axis.length

    def place(x: int) -> float:
        return LEFT + (x + 0.5) * step

    body = [_text(0, 14, title, 'font-size="13" font-weight="600"'), *_rules(axis, width)]
    most = max((len(name) for name in names), default=1) * LETTER + 6
    every = max(1, math.ceil(most / step))
    body += [
        _text(place(i), base + 15, name, MIDDLE) for i, name in enumerate(names) if i % every == 0 or len(names) <= 2
    ]
    if x_label:
        body.append(_text(LEFT + room / 2, base + 32, x_label, MIDDLE))
    if y_label:
        body.append(_text(width - RIGHT, 14, y_label, 'font-size="11" text-anchor="end"'))
    for colour, marks in zip(_colours(len(series)), series.values()):
        body += _line(marks, colour, place, axis, base, joined)
    drawn = Drawing("\n".join(body), width, height)
    if len(series) < 2:
        return drawn
    return below(drawn, key(dict(zip(series, _colours(len(series)))), width))


def _line(
    marks: Sequence[Mark], colour: str, place: Callable[[int], float], axis: Scale, base: float, joined: bool
) -> list[str]:
    """One line with its points."""
    body, path, begun = [], [], False
    for mark in marks:
        x = place(mark.x)
        if mark.y is None:
            begun = False
            cross = f"M{_n(x - 4)} {_n(base - 12)}l8 8m0 -8l-8 8"
            body.append(f'<path stroke="{GREY}" fill="none" d="{cross}">{_note(mark)}</path>')
            continue
        y = base - axis.at(mark.y)
        path.append(f"{'L' if begun else 'M'}{_n(x)} {_n(y)}" if joined else f"M{_n(x)} {_n(base)}V{_n(y)}")
        begun = True
        size = 5.5 if mark.chosen else 3.5
        ring = f' stroke="{colour}" stroke-opacity=".35" stroke-width="5"' if mark.chosen else ""
        body.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{size}" fill="{colour}"{ring}>{_note(mark)}</circle>')
        if mark.chosen:
            body.append(_text(x, y - 12, number(mark.y), MIDDLE))
    if path:
        body.insert(0, f'<path fill="none" stroke="{colour}" stroke-width="1.8" d="{"".join(path)}"/>')
    return body


def columns(
    layers: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str,
    limit: float,
    limit_name: str,
    width: float = 1000,
    height: float = 260,
) -> Drawing:
    """Columns side by side, each in layers, below a dashed limit.

    A total stands in its column, upright where it is too wide for that; of columns too narrow for either the title
    says the least and the most.
    """
    count = max(map(len, layers.values()))
    totals = [sum(values[i] for values in layers.values()) for i in range(count)]
    axis = Scale(max(*totals, limit), height - TOP - BOTTOM)
    base, room = TOP + axis.length, width - LEFT - RIGHT
    step = min(room / count, 72)
    thick = step * 0.72
    if thick < UPRIGHT and count > 1:
        title += f": {number(min(totals))} to {number(max(totals))}"
    body = [_text(0, 14, title, 'font-size="13" font-weight="600"'), *_rules(axis, LEFT + step * count + RIGHT)]
    under = [0.0] * count
    for colour, values in zip(_colours(len(layers)), layers.values()):
        pieces = []
        for i, value in enumerate(values):
            x, a, b = LEFT + (i + 0.5) * step - thick / 2, axis.at(under[i]), axis.at(under[i] + value)
            under[i] += value
            if b - a > 0.05:
                pieces.append(f"M{_n(x)} {_n(base - b)}h{_n(thick)}V{_n(base - a)}h-{_n(thick)}z")
        body.append(f'<path fill="{colour}" d="{"".join(pieces)}"/>')
    every = max(1, math.ceil(5 * LETTER / step))
    for i, total in enumerate(totals):
        x = LEFT + (i + 0.5) * step
        if i % every == 0:
            body.append(_text(x, base + 15, str(i), MIDDLE))
        y, long = base - axis.at(total), len(number(total)) * LETTER
        inside = axis.at(total) > 20  # above, it would run into the limit
        if long <= thick:
            body.append(_text(x, y + (14 if inside else -4), number(total), WHITE if inside else MIDDLE))
        elif thick >= UPRIGHT and axis.at(total) > long + 8:
            turned = f'{UPWARD} transform="rotate(-90 {_n(x + 4)} {_n(y + 4)})"'
            body.append(_text(x + 4, y + 4, number(total), turned))
    high = base - axis.at(limit)
    stop = LEFT + step * count + RIGHT
    body.append(f'<path stroke="#c0392b" stroke-dasharray="5 4" d="M{LEFT} {_n(high)}H{_n(stop)}"/>')
    beyond = stop + 200 < width
    body.append(_text(stop + 6 if beyond else LEFT + 4, high + (4 if beyond else -5), limit_name, SMALL))
    body.append(_text(LEFT + step * count / 2, base + 32, x_label, MIDDLE))
    return below(Drawing("\n".join(body), width, height), key(dict(zip(layers, _colours(len(layers)))), width))


def shares(parts: Mapping[str, float], *, title: str, unit: str, width: float = 1000) -> Drawing:
    """A whole as one bar of parts, those that are wide enough with their share in it."""
    whole = sum(parts.values())
    x, body = 0.0, [_text(0, 14, title, 'font-size="13" font-weight="600"')]
    colours = dict(zip(parts, _colours(len(parts))))
    for name, value in parts.items():
        long = (width - RIGHT) * value / whole if whole else 0.0
        if long < 0.05:
            continue
        share = f"{100 * value / whole:.0f} %"
        note = f"<title>{escape(f'{name}: {value:.4g} {unit}, {share}')}</title>"
        body.append(f'<path fill="{colours[name]}" d="M{_n(x)} 24h{_n(long)}v26h-{_n(long)}z">{note}</path>')
        if long > len(share) * LETTER + 8:
            body.append(_text(x + long / 2, 41, share, WHITE))
        x += long
    named = {f"{name} {value:.3g} {unit}": colours[name] for name, value in parts.items() if value > 0.0005 * whole}
    return below(Drawing("\n".join(body), width, 58), key(named, width))


# --------------------------------------------------------------------------- putting together


def key(names: Mapping[str, str], width: float) -> Drawing:
    """Colours and what they stand for, in as many rows as it takes."""
    x, y, body = 0.0, 12.0, []
    for name, colour in names.items():
        long = 18 + 6.4 * len(name) + 18
        if x and x + long > width:
            x, y = 0.0, y + 18
        body.append(f'<path fill="{colour}" d="M{_n(x)} {_n(y - 10)}h12v12h-12z"/>{_text(x + 18, y, name, SMALL)}')
        x += long
    return Drawing("".join(body), width, y + 10)


def below(*drawings: Drawing, gap: float = 0) -> Drawing:
    """One under the other."""
    y, body = 0.0, []
    for drawing in drawings:
        body.append(_moved(drawing, 0, y))
        y += drawing.height + gap
    return Drawing("\n".join(body), max(d.width for d in drawings), y - gap)


def beside(drawings: Sequence[Drawing], each_row: int, gap: float = 20) -> Drawing:
    """In rows of so many."""
    rows = []
    for start in range(0, len(drawings), each_row):
        x, body, row = 0.0, [], drawings[start : start + each_row]
        for drawing in row:
            body.append(_moved(drawing, x, 0))
            x += drawing.width + gap
        rows.append(Drawing("\n".join(body), x - gap, max(d.height for d in row)))
    return below(*rows, gap=gap / 2)


def embedded(svg: str) -> Drawing:
    """An SVG document as a piece of another; its view box says its size."""
    found = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg)
    assert found
    width, height = map(float, found.groups())
    inner = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inner = re.sub(r"<title>.*?</title>\s*<desc>.*?</desc>", "", inner, count=1, flags=re.DOTALL)
    return Drawing(inner, width, height)


def titled(drawing: Drawing, title: str) -> Drawing:
    """With a title above."""
    return below(Drawing(_text(0, 14, title, 'font-size="13" font-weight="600"'), drawing.width, 24), drawing)


def document(drawing: Drawing, heading: str, what: str, under: str = "", *, headed: bool = True) -> str:
    """A whole SVG file; ``under`` stands below the heading, ``what`` tells it to those who do not see it."""
    top = (56 if under else 36) if headed else 4
    width, height = drawing.width + 16, drawing.height + top + 8
    words = [_text(0, 20, heading, 'font-size="15" font-weight="600"'), _text(0, 40, under)] if headed else []
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
            f'role="img" aria-label="{escape(heading)}" font-family="system-ui, sans-serif" font-size="13" '
            f'fill="{GREY}">',
            f"<title>{escape(heading)}</title>",
            f"<desc>{escape(what)}</desc>",
            *words,
            _moved(drawing, 0, top),
            "</svg>\n",
        ]
    )


# --------------------------------------------------------------------------- small things

SMALL = 'font-size="12"'
MIDDLE = 'font-size="11" text-anchor="middle"'
WHITE = f'{MIDDLE} fill="#fff"'
UPWARD = 'font-size="11" text-anchor="end" fill="#fff"'


@dataclass(frozen=True, slots=True)
class Scale:
    """From 0 to above ``most`` over ``length`` pixels, with round numbers."""

    most: float
    length: float

    @property
    def every(self) -> float:
        """Distance of the rules: 1, 2 or 5 times a power of ten, three to eight of them."""
        power = 10.0 ** math.floor(math.log10(max(self.most, 1e-12) / 7))
        return next(power * n for n in (1, 2, 5, 10) if self.most / (power * n) <= 7)

    @property
    def end(self) -> float:
        """Value at the top."""
        return max(self.most * 1.12, self.every)

    def at(self, value: float) -> float:
        """Pixels above 0."""
        return value / self.end * self.length


def _rules(axis: Scale, stop: float) -> list[str]:
    """Lines across, with their numbers."""
    body, n = [], 0
    while n * axis.every <= axis.end * (1 + 1e-9):
        y = TOP + axis.length - axis.at(n * axis.every)
        body.append(f'<path {FAINT} d="M{LEFT} {_n(y)}H{_n(stop - RIGHT)}"/>')
        body.append(_text(LEFT - 6, y + 4, f"{n * axis.every:,.6g}", 'font-size="11" text-anchor="end"'))
        n += 1
    return body


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _note(mark: Mark) -> str:
    return f"<title>{escape(mark.note)}</title>" if mark.note else ""


def _moved(drawing: Drawing, x: float, y: float) -> str:
    return f'<g transform="translate({_n(x)} {_n(y)})">{drawing.body}</g>' if x or y else drawing.body


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}"{" " + more if more else ""}>{escape(text)}</text>'


def _n(value: float) -> str:
    """A number of pixels to a tenth, as short as can be."""
    return f"{value:.1f}".removesuffix(".0")
