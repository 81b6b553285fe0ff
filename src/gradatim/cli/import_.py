"""``gradatim import FILE RUN``: a model of another program as a run, to be asked and judged like our own."""

from __future__ import annotations

from pathlib import Path

import click

from gradatim.cli.output import Verb, emit, json_option


@click.command(cls=Verb)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="The tokenizer.json beside the file, if the words are its tokens.",
)
@json_option
def command(source: Path, run: Path, tokenizer: Path | None, as_json: bool) -> None:
    """Make RUN from SOURCE, an ARPA file or a directory that holds model.arpa (as KenLM or gradatim export writes it).

    Without --tokenizer the file's words are taken as words of text separated by white space.
    """
    from gradatim.errors import DataError, Problem
    from gradatim.interop.arpa import import_arpa

    if source.is_dir():
        tokenizer = tokenizer or (source / "tokenizer.json" if (source / "tokenizer.json").is_file() else None)
        source = source / "model.arpa"
    if not source.is_file():
        raise DataError(
            Problem(
                where=str(source), what="there is no such file", allowed="an ARPA file or a directory with model.arpa"
            )
        )
    model = import_arpa(source, run, tokenizer)
    sizes = [len(table.word) for table in model.tables]
    emit(
        {"run": str(run), "order": model.order, "ngrams": sizes},
        as_json,
        lambda: f"{run}: {sum(sizes):,} n-grams up to order {model.order}",
    )
