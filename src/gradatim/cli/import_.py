"""``gradatim import FILE RUN``: a model of another program as a run, to be asked and judged like our own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gradatim.cli.output import Verb, emit, json_option, say
from gradatim.config.origin import is_hugging_face, is_run

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that are a part of what is imported."""


@click.command(cls=Verb)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="The tokenizer.json beside the file, if the words are its tokens.",
)
@click.option(
    "--document",
    type=click.Choice(["line", "blank-line", "file"]),
    help="What a document is in texts that the model will judge [as exported from here; else a line (ARPA) or a file].",
)
@json_option
def command(source: Path, run: Path, tokenizer: Path | None, document: str | None, as_json: bool) -> None:
    """Make RUN from SOURCE: a Hugging Face directory, an ARPA file, or a directory that holds model.arpa.

    ARPA: without --tokenizer, and but for what was exported from here, the file's words are taken as words of text
    separated by white space.
    """
    from gradatim.errors import ConfigError, DataError, Problem
    from gradatim.interop.arpa import import_arpa
    from gradatim.interop.beside import remembered

    if is_run(source) and not is_hugging_face(source):
        attempt = f"use it as it is, as in: gradatim evaluate {source}"
        raise ConfigError(Problem(where=str(source), what="this is a run already", attempt=attempt))
    if source.is_dir() and not (source / "model.arpa").is_file():
        if tokenizer is not None:
            what = "a Hugging Face directory brings its own tokenizer.json"
            raise ConfigError(Problem(where="--tokenizer", what=what, attempt="leave --tokenizer out"))
        from gradatim.interop.huggingface.load import import_directory

        found = import_directory(source, run, say, document)
        text = f"{run}: {found.architecture}, {found.parameters:,} parameters, tokenizer: {found.tokenizer}"
        emit(asdict(found), as_json, lambda: text)
        return
    if source.suffix in WEIGHTS:
        raise DataError(Problem(where=str(source), what="weights alone do not say what model they are of",
                                allowed="the directory that holds them and config.json",
                                attempt=f"gradatim import {source.parent} {run}"))  # fmt: skip
    if source.is_dir():
        source = source / "model.arpa"
        tokenizer = tokenizer or _beside(source)
    elif tokenizer is None and remembered(source.parent) is not None and (tokenizer := _beside(source)):
        say(f"its words are tokens of {tokenizer}")
    if not source.is_file():
        raise DataError(
            Problem(
                where=str(source), what="there is no such file", allowed="an ARPA file, or a Hugging Face directory"
            )
        )
    model = import_arpa(source, run, tokenizer, document)
    sizes = [len(table.word) for table in model.tables]
    emit(
        {"run": str(run), "order": model.order, "ngrams": sizes},
        as_json,
        lambda: f"{run}: {sum(sizes):,} n-grams up to order {model.order}",
    )


def _beside(file: Path) -> Path | None:
    path = file.with_name("tokenizer.json")
    return path if path.is_file() else None
