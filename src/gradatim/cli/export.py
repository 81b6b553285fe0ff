"""``gradatim export RUN DIR --format hf|peft|arpa``: a run's model for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gradatim.cli.output import Verb, emit, json_option, say


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["hf", "peft", "arpa"]), help="What to write [arpa of n-grams, else hf]."
)
@click.option(
    "--shard-size",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="GB",
    help="hf: largest file of weights.",
)
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(run: Path, directory: Path, form: str | None, shard_size: float, checkpoint: str, as_json: bool) -> None:
    """Write the model of RUN into DIRECTORY.

    hf: a Hugging Face directory of a GPT-2, Llama or BERT, what adapters add included. peft: a run's low-rank
    adapters alone. arpa: model.arpa and tokenizer.json of an n-gram model.
    """
    from gradatim.cli.runs import find_run, open_run
    from gradatim.errors import ConfigError, Problem
    from gradatim.interop.arpa import write_arpa
    from gradatim.interop.beside import remember
    from gradatim.models.ngram import NgramModel

    found = find_run(run, checkpoint)
    form = form or ("arpa" if found.config.model.kind == "ngram" else "hf")
    if form != "arpa":
        from gradatim.interop.huggingface.write import export_directory
        from gradatim.interop.huggingface.write_adapters import export_adapters

        held = found.checkpoint(checkpoint, say)
        exported = (
            export_directory(found, held, directory, round(shard_size * 10**9))
            if form == "hf"
            else export_adapters(found, held, directory)
        )
        if form == "hf":
            remember(directory, found.config.data)
        text = f"{directory}: {exported.architecture}, {exported.parameters:,} parameters, {', '.join(exported.files)}"
        emit(asdict(exported), as_json, lambda: text)
        return
    if found.config.model.kind != "ngram":
        what, attempt = "only n-grams fit into an ARPA file", "gradatim train ngram, or --format hf"
        got = f"a model of kind {found.config.model.kind}"
        raise ConfigError(Problem(where=str(run), what=what, got=got, allowed="kind ngram", attempt=attempt))
    opened, model = open_run(run, checkpoint)
    assert isinstance(model, NgramModel)
    path = directory / "model.arpa"
    write_arpa(model, opened.tokenizer, path)
    opened.tokenizer.save(directory / "tokenizer.json")
    remember(directory, opened.config.data)
    sizes = [len(table.word) for table in model.tables]
    emit(
        {"file": str(path), "order": model.order, "ngrams": sizes},
        as_json,
        lambda: f"{path}: {sum(sizes):,} n-grams up to order {model.order}",
    )
