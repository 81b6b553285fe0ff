"""A self-contained HTML page: no script, no font, no picture from elsewhere; every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6675; --paper: #fbfaf7; --card: #ffffff; --line: #e2ded4; --mark: #b4552d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #a5a8ae; --paper: #15181d; --card: #1d2127; --line: #343a43; --mark: #e59b76; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 Georgia, "Iowan Old Style", "Times New Roman", serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; }
p.lead { color: var(--soft); margin-top: 0; font-size: 1.08rem; } p { max-width: 46rem; }
table { border-collapse: collapse; width: 100%; font: 14px/1.5 system-ui, sans-serif; background: var(--card); }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.best td { font-weight: 600; } .scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
figure { margin: 1rem 0; padding: 1rem; background: #ffffff; color: #1d2430; border: 1px solid var(--line); border-radius: 8px; }
figure svg { max-width: 100%; height: auto; } figcaption { color: #5d6675; font: 14px/1.5 system-ui, sans-serif; margin-top: .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font: 14px/1.5 system-ui, sans-serif; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.prompt { color: var(--soft); } .text { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; }
footer { margin-top: 3rem; color: var(--soft); font: 13px/1.5 system-ui, sans-serif; border-top: 1px solid var(--line); padding-top: 1rem; }
@media print { body { background: #fff; color: #000; } figure, table { break-inside: avoid; } }
"""


def page(title: str, lead: str, sections: Sequence[str], footer: str) -> str:
    """The whole document; sections are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        + "\n".join(sections)
        + f"\n<footer>{escape(footer)}</footer>\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A heading with what belongs to it."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str) -> str:
    """Plain prose."""
    return f"<p>{escape(text)}</p>"


def figure(svg: str, caption: str) -> str:
    """A drawing with its caption."""
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], best: int | None = None) -> str:
    """Rows under headings, numbers to the right, row ``best`` emphasised."""
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]

    def cell(value: object, i: int, tag: str = "td") -> str:
        kind = ' class="number"' if numeric[i] else ""
        return f"<{tag}{kind}>{escape(number(value))}</{tag}>"

    head = "".join(cell(name, i, "th") for i, name in enumerate(columns))
    body = "\n".join(
        ('<tr class="best">' if n == best else "<tr>") + "".join(cell(v, i) for i, v in enumerate(row)) + "</tr>"
        for n, row in enumerate(rows)
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Names with their values."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(number(value))}</dd>" for name, value in pairs) + "</dl>"
    )


def number(value: object) -> str:
    """A value as people write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        # Trailing zeros stay: 1.950 beside 1.876 is a measured nought.
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
    return str(value)
