"""``gradatim report RUN --out FILE.html``: one self-contained page about a run or a ladder of runs."""

from __future__ import annotations

from pathlib import Path

import click

from gradatim.cli.output import Verb, emit, json_option, write_file


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The HTML file to write.")
@json_option
def command(run: Path, out: Path, as_json: bool) -> None:
    """Write a report about RUN, a run directory or a folder with ladder.json (as gradatim demo leaves)."""
    from gradatim.report.ladder import FILE, ladder_report
    from gradatim.report.run import run_report

    text = ladder_report(run) if (run / FILE).is_file() else run_report(run)
    write_file(out, text)
    emit({"file": str(out), "bytes": len(text.encode())}, as_json, lambda: str(out))
