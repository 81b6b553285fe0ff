"""``gradatim export RUN DIR --format arpa``: a run's model for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from gradatim.cli.output import Verb, emit, json_option


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["arpa"]), default="arpa", show_default=True, help="What to write.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(run: Path, directory: Path, form: str, checkpoint: str, as_json: bool) -> None:
    """Write the model of RUN into DIRECTORY (for arpa: model.arpa and tokenizer.json)."""
    from gradatim.cli.runs import open_run
    from gradatim.errors import ConfigError, Problem
    from gradatim.interop.arpa import write_arpa
    from gradatim.models.ngram import NgramModel

    opened, model = open_run(run, checkpoint)
    if not isinstance(model, NgramModel):
        what, attempt = "only n-grams fit into an ARPA file", "gradatim train ngram"
        got = f"a model of kind {opened.config.model.kind}"
        raise ConfigError(Problem(where=str(run), what=what, got=got, allowed="kind ngram", attempt=attempt))
    path = directory / "model.arpa"
    write_arpa(model, opened.tokenizer, path)
    opened.tokenizer.save(directory / "tokenizer.json")
    sizes = [len(table.word) for table in model.tables]
    emit(
        {"file": str(path), "order": model.order, "ngrams": sizes},
        as_json,
        lambda: f"{path}: {sum(sizes):,} n-grams up to order {model.order}",
    )
