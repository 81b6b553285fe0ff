"""``gradatim evaluate RUN``: perplexity and bits per byte of a run's model; of a BERT, its blanks and pairs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say

if TYPE_CHECKING:
    from gradatim.text.tokenfile import TokenFile
    from gradatim.train import Run


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
    """Judge the model of RUN: each token once, the end of each document included; of a BERT, blanks and pairs."""
    from gradatim.cli.runs import find_run
    from gradatim.errors import ConfigError, Problem
    from gradatim.evaluate.perplexity import evaluate_file, evaluate_tokens

    if text == "":
        raise ConfigError(Problem(where="--text", what="the path is empty", attempt="name a file"))
    opened = find_run(run, checkpoint)
    if opened.config.model.kind == "bert":
        if stride is not None:
            what = "this model reads rows, not windows that advance"
            raise ConfigError(Problem(where="--stride", what=what, attempt="leave --stride out"))
        found = _blanks(opened, checkpoint, text)
        emit(found, as_json, lambda: _table(found))
        return
    model = opened.model(checkpoint, say)
    if stride is not None and model.context is None:
        say("the model reads the text in one go, so --stride changes nothing")
    elif stride is not None and model.context is not None and stride > model.context:
        raise ConfigError(Problem(where="--stride", what="windows further apart than they are long skip tokens",
                                  got=str(stride), allowed=f"1 to {model.context}, the context",
                                  attempt=f"--stride {model.context}"))  # fmt: skip
    if text is not None:
        result = evaluate_file(model, opened.tokenizer, opened.config.data, Path(text), stride, say)
    else:
        file = _held_out(opened)
        result = evaluate_tokens(model, opened.tokenizer, file.tokens, file.meta.bytes, stride)
    facts = asdict(result)
    emit(facts, as_json, lambda: _table(facts))


def _table(facts: dict[str, Any]) -> Table:
    return Table(["", "value"], [[name.replace("_", " "), value] for name, value in facts.items()])


def _held_out(run: Run) -> TokenFile:
    """The run's test text, or its validation text."""
    from gradatim.errors import DataError, Problem
    from gradatim.text.prepare import prepare
    from gradatim.text.sources import brings_its_own_splits

    where, data = str(run.directory), run.config.data
    if not (data.test or data.valid or brings_its_own_splits(data.train)):
        raise DataError(
            Problem(where=where, what="the run has neither test nor validation text", attempt="--text FILE")
        )
    prepared = prepare(data, say=say)
    name, file = ("test", prepared.test) if prepared.test is not None else ("validation", prepared.valid)
    assert file is not None
    if prepared.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise DataError(Problem(where=where, what="the text has changed since the run began", attempt="--text FILE"))
    say(f"on the run's {name} text")
    return file


def _blanks(run: Run, checkpoint: str, text: str | None) -> dict[str, Any]:
    """The figures of a model that fills in blanks and judges pairs."""
    import tempfile
    from dataclasses import replace

    from gradatim.evaluate.masked import evaluate_masked
    from gradatim.models.bert import BERT
    from gradatim.text.pairs import MaskedRows
    from gradatim.text.prepare import prepare

    config = run.config
    model = run.network(checkpoint, say)
    assert isinstance(model, BERT)
    with tempfile.TemporaryDirectory() as folder:
        if text is None:
            file = _held_out(run)
        else:
            own = replace(config.data.tokenizer, path=str(run.directory / "tokenizer.json"))
            data = replace(config.data, train=(text,), valid=(), test=(), tokenizer=own)
            file = prepare(data, Path(folder) / "text", say).train
        rows = MaskedRows(
            file, run.tokenizer, model.config, config.context, config.global_batch, config.seed, config.data.packing
        )
        return asdict(evaluate_masked(model, rows))
