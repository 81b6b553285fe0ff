"""Writes the tables of ``docs/config.md`` from the settings themselves: ``python docs/settings.py``.

A test holds the page to it.
"""

from __future__ import annotations

import re
from pathlib import Path

from gradatim.config.describe import sections

PAGE = Path(__file__).parent / "config.md"
MARKED = re.compile(r"(<!-- settings: begin[^>]*-->\n).*(<!-- settings: end -->)", re.DOTALL)


def page() -> str:
    """The page as it should be."""
    tables = []
    for title, rows in sections():
        cells = ["| setting | meaning [default] |", "|---|---|"]
        for flag, sentence in rows:
            name, _, allowed = flag.removeprefix("--").partition(" ")
            allowed = allowed.replace("|", "\\|")
            cells.append(f"| `{name}` {allowed} | {sentence} |")
        tables.append(f"## {title}\n\n" + "\n".join(cells) + "\n")
    return MARKED.sub(lambda found: f"{found[1]}\n" + "\n".join(tables) + f"\n{found[2]}", PAGE.read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
