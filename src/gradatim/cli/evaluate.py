"""``gradatim evaluate RUN``: perplexity and bits per byte of a run's model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gradatim.cli.output import Table, Verb, emit, json_option


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", metavar="PATH", help="A file to judge on [the run's test text, or validation].")
@click.option("--stride", type=click.IntRange(min=1), help="Advance of the windows of a limited context [half of it].")
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(run: Path, text: str | None, stride: int | None, checkpoint: str, as_json: bool) -> None:
    """Judge the model of RUN: each token once, the end of each document included."""
    from gradatim.cli.output import say
    from gradatim.cli.runs import open_run
    from gradatim.errors import ConfigError, DataError, Problem
    from gradatim.evaluate.perplexity import evaluate_file, evaluate_tokens
    from gradatim.text.prepare import prepare

    if text == "":
        raise ConfigError(Problem(where="--text", what="the path is empty", attempt="name a file"))
    opened, model = open_run(run, checkpoint)
    if text is not None:
        result = evaluate_file(model, opened.tokenizer, opened.config.data, Path(text), stride, say)
    else:
        prepared = prepare(opened.config.data, say=say)
        name, file = ("test", prepared.test) if prepared.test is not None else ("validation", prepared.valid)
        if file is None:
            raise DataError(
                Problem(where=str(run), what="the run has neither test nor validation text", attempt="--text FILE")
            )
        if prepared.tokenizer.fingerprint != opened.tokenizer.fingerprint:
            raise DataError(
                Problem(where=str(run), what="the text has changed since the run began", attempt="--text FILE")
            )
        say(f"on the run's {name} text")
        result = evaluate_tokens(model, opened.tokenizer, file.tokens, file.meta.bytes, stride)
    facts = asdict(result)
    emit(
        facts, as_json, lambda: Table(["", "value"], [[name.replace("_", " "), value] for name, value in facts.items()])
    )
