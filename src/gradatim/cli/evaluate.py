"""``gradatim evaluate RUN``: perplexity and bits per byte of a run's model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gradatim.cli.output import Table, Verb, emit, json_option


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", metavar="PATH", help="A file to judge on [the run's test text, or validation].")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Advance of the windows of a limited context, at most all of it [half of it].",
)
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(run: Path, text: str | None, stride: int | None, checkpoint: str, as_json: bool) -> None:
    """Judge the model of RUN: each token once, the end of each document included."""
    from gradatim.cli.output import say
    from gradatim.cli.runs import open_run
    from gradatim.errors import ConfigError, DataError, Problem
    from gradatim.evaluate.perplexity import evaluate_file, evaluate_tokens
    from gradatim.text.prepare import prepare
    from gradatim.text.sources import brings_its_own_splits

    if text == "":
        raise ConfigError(Problem(where="--text", what="the path is empty", attempt="name a file"))
    opened, model = open_run(run, checkpoint)
    if stride is not None and model.context is None:
        say("the model reads the text in one go, so --stride changes nothing")
    elif stride is not None and model.context is not None and stride > model.context:
        raise ConfigError(Problem(where="--stride", what="windows further apart than they are long skip tokens",
                                  got=str(stride), allowed=f"1 to {model.context}, the context",
                                  attempt=f"--stride {model.context}"))  # fmt: skip
    if text is not None:
        result = evaluate_file(model, opened.tokenizer, opened.config.data, Path(text), stride, say)
    else:
        data = opened.config.data
        if not (data.test or data.valid or brings_its_own_splits(data.train)):
            raise DataError(
                Problem(where=str(run), what="the run has neither test nor validation text", attempt="--text FILE")
            )
        prepared = prepare(data, say=say)
        name, file = ("test", prepared.test) if prepared.test is not None else ("validation", prepared.valid)
        assert file is not None
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
