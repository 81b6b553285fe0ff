"""Rows of tables by the names of their columns: .jsonl, .csv, .tsv, .parquet, Hugging Face data sets.

A .csv file has a first line of names and may quote; a .tsv file has one unless ``data.columns`` names its columns, and
does not quote. Text is mended, and that counted, as everywhere (``sources.py``).
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradatim.config.settings import DataConfig
from gradatim.errors import DataError, Problem
from gradatim.text.pairs import hugging_face_rows, parquet_rows
from gradatim.text.sources import Tally, files_of, json_rows, lines_of, mend

Row = dict[str, Any]
MADE = {"small-opinions": "gradatim.text.opinions"}
"""Embedded tables: a module with ``corpus() -> {split: [row, …]}``."""
LONGEST_CELL = 1 << 24
"""Characters of the longest cell of a .csv file; the library's own limit is shorter than an article."""


def names_of(data: DataConfig, split: str) -> tuple[str, ...]:
    """The tables of a split; embedded ones bring their own validation and test rows where no others are named."""
    own = all(name in MADE for name in data.train) and not data.valid and not data.test
    return data.train if own else tuple(getattr(data, split))


def table_rows(names: tuple[str, ...], split: str, data: DataConfig, tally: Tally) -> Iterator[tuple[str, Row]]:
    """Every row of some tables with its place (``file:line``).

    Raises:
        DataError: a file that is missing, or not of the form its name promises.
        LaunchError: a package that this kind of source needs is not installed.
    """
    for name in names:
        if name in MADE:
            own = importlib.import_module(MADE[name]).corpus()[split]
            yield from _objects(((f"{name} row {number}", row) for number, row in enumerate(own, start=1)), tally)
            continue
        if name.startswith("hf:"):
            rows = ((f"{name} row {number}", row) for number, row in enumerate(hugging_face_rows(name, split), start=1))
            yield from _objects(rows, tally)
            continue
        files = files_of(name)
        if not files:
            raise DataError(Problem(where=f"data.{split}", what="there is no such file", got=name,
                                    allowed=f"a .jsonl, .csv, .tsv or .parquet file, hf:NAME, {', '.join(MADE)}",
                                    attempt="check the path"))  # fmt: skip
        for path in files:
            yield from rows_of_file(path, data.columns, tally)


def rows_of_file(
    path: Path, columns: tuple[str, ...], tally: Tally, perhaps: str | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of one file; ``columns`` names those of a .tsv file without a line of names.

    The column ``perhaps`` may be missing there.
    """
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _objects(json_rows(path, tally), tally)
    elif path.suffix == ".parquet":
        numbered = enumerate(parquet_rows(path), start=1)
        yield from _objects(((f"{path} row {number}", row) for number, row in numbered), tally)
    elif path.suffix == ".csv":
        yield from _separated(path, tally)
    elif path.suffix in (".tsv", ".txt"):
        yield from _tabs(path, columns, tally, perhaps)
    else:
        raise DataError(Problem(where=str(path), what="no table is known by this ending",
                                allowed=".jsonl, .jsonl.gz, .csv, .tsv, .txt, .parquet"))  # fmt: skip


def _objects(rows: Iterator[tuple[str, Any]], tally: Tally) -> Iterator[tuple[str, Row]]:
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(Problem(where=where, what="a row of a table is an object with named fields",
                                    got=type(row).__name__, allowed='{"text": …, "label": …}'))  # fmt: skip
        yield where, {name: mend(value, tally) if isinstance(value, str) else value for name, value in row.items()}


def _tabs(path: Path, columns: tuple[str, ...], tally: Tally, perhaps: str | None = None) -> Iterator[tuple[str, Row]]:
    names = list(columns)
    with path.open("rb") as file:
        for number, line in enumerate(lines_of(file, tally), start=1):
            cells = line.rstrip("\n").split("\t")
            if number == 1 and (not names or _names_them(cells, names, perhaps)):
                names = cells
                continue
            if number == 1 and perhaps is not None and perhaps in names and len(cells) == len(names) - 1:
                names.remove(perhaps)
            if not line.strip():
                tally.dropped["empty lines"] += 1
                continue
            yield f"{path}:{number}", _named(names, cells, f"{path}:{number}")


def _names_them(cells: list[str], names: list[str], perhaps: str | None) -> bool:
    """Whether a first line names the columns, in whatever order."""
    lacks = [perhaps] if perhaps is not None and perhaps in names and perhaps not in cells else []
    return sorted([*cells, *lacks]) == sorted(names)


def _separated(path: Path, tally: Tally) -> Iterator[tuple[str, Row]]:
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open("rb") as file:
            reader = csv.reader(lines_of(file, tally), strict=True)
            names: list[str] = []
            try:
                for cells in reader:
                    if not names:
                        names = cells
                    elif any(cells):
                        where = f"{path}:{reader.line_num}"
                        yield where, _named(names, cells, where)
                    else:
                        tally.dropped["empty lines"] += 1
            except csv.Error as error:
                raise DataError(Problem(where=f"{path}:{reader.line_num}", what=f"this is not CSV: {error}",
                                        attempt='quote cells that hold commas: "…"')) from None  # fmt: skip
    finally:
        csv.field_size_limit(before)


def _named(names: list[str], cells: list[str], where: str) -> Row:
    if len(cells) != len(names):
        raise DataError(Problem(where=where, what="this row has not one cell for each column",
                                got=f"{len(cells)} cells", allowed=f"{len(names)}: {', '.join(names)[:200]}",
                                attempt="cells of .tsv are separated by single tabs, of .csv by commas"))  # fmt: skip
    return dict(zip(names, cells))
