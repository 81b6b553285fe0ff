"""Figures as SVG text, to be placed into a page: curves over time, over text, over steps, and bars."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "gradatim",  # equal input gives an equal file
}

Curve = Sequence[tuple[float, float]]


@contextmanager
def _figure(height: float = 4.2) -> Iterator[tuple[Figure, Any]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Scaled by the page rather than fixed, and with a name for those who cannot see it.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%" role="img"', text, count=1)
    return text.replace(">", f' aria-label="{title}">', 1)


def curves(
    series: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    order: Sequence[str] = (),
) -> str:
    """Lines with a mark at each measured point, a lone point as a larger mark.

    ``order`` names all curves of several figures, so that each keeps its colour.
    """
    with _figure() as (figure, axes):
        names = list(order) or list(series)
        for name, points in series.items():
            if not points:
                continue
            colour = COLOURS[names.index(name) % len(COLOURS)]
            x, y = zip(*points, strict=True)
            many = len(points) > 40
            axes.plot(x, y, color=colour, label=name, linewidth=1.8, marker="" if many else "o",
                      markersize=8 if len(points) == 1 else 4.5)  # fmt: skip
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif all(isinstance(x, int) for points in series.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) > 1:
            axes.legend(frameon=False, ncols=2)
        return _svg(figure, title)


def bars(values: Mapping[str, float], *, title: str, x_label: str) -> str:
    """Horizontal bars, each with its number."""
    with _figure(0.45 * len(values) + 1.0) as (figure, axes):
        names = list(values)
        drawn = axes.barh(
            range(len(names)), list(values.values()), color=[COLOURS[i % len(COLOURS)] for i in range(len(names))]
        )
        axes.bar_label(drawn, fmt="%.3f", padding=4)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlabel(x_label)
        return _svg(figure, title)
