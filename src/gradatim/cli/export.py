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
        raise ConfigError(Problem(where=str(run), what="only n-grams fit into an ARPA file", got=opened.config.model.kind,
                                  allowed="a run of kind ngram", attempt="gradatim train ngram"))  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.arpa"
    write_arpa(model, opened.tokenizer, path)
    opened.tokenizer.save(directory / "tokenizer.json")
    sizes = [len(table.word) for table in model.tables]
    emit(
        {"file": str(path), "order": model.order, "ngrams": sizes},
        as_json,
        lambda: f"{path}: {sum(sizes):,} n-grams up to order {model.order}",
    )
