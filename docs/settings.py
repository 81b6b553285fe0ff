"""Writes the tables of ``config.md`` and ``plan.md`` from the settings themselves: ``python docs/settings.py``.

A test holds the pages to it.
"""

from __future__ import annotations

import re
from pathlib import Path

from gradatim.config.describe import sections, settings
from gradatim.plan.cluster import Cluster

PAGE = Path(__file__).parent / "config.md"
CLUSTERS = Path(__file__).parent / "plan.md"
MARKED = re.compile(r"(<!-- settings: begin[^>]*-->\n).*(<!-- settings: end -->)", re.DOTALL)


def page() -> str:
    """The page of a recipe's settings as it should be."""
    tables = []
    for title, rows in sections():
        cells = ["| setting | meaning [default] |", "|---|---|"]
        for flag, sentence in rows:
            name, _, allowed = flag.removeprefix("--").partition(" ")
            cells.append(f"| `{name}` {_cell(allowed)} | {sentence} |")
        tables.append(f"## {title}\n\n" + "\n".join(cells) + "\n")
    return _between(PAGE, "\n".join(tables))


def clusters() -> str:
    """The page of the planner as it should be: fields of a cluster file, but for ``measured``, which is calibrate's."""
    cells = ["| field | meaning | default |", "|---|---|---|"]
    for setting in settings(Cluster):
        if not setting.path.startswith("measured."):
            sentence = _cell(setting.sentence).replace("``", "`")
            cells.append(f"| `{setting.path}` {_cell(setting.metavar)} | {sentence} | {_short(setting.default)} |")
    return _between(CLUSTERS, "\n".join(cells) + "\n")


def _between(path: Path, text: str) -> str:
    return MARKED.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", path.read_text("utf-8"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _short(default: str) -> str:
    """A large or small number as people write it, anything else as it is."""
    try:
        return f"{float(default):g}" if "." in default or "e" in default else default
    except ValueError:
        return default.strip('"')


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    CLUSTERS.write_text(clusters(), encoding="utf-8")
