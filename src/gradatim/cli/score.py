"""``gradatim score RUN SENTENCE…``: which sentence is likeliest to be said."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say, visible


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("sentences", nargs=-1, required=True)
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(run: Path, sentences: tuple[str, ...], checkpoint: str, as_json: bool) -> None:
    """Log-probability of each SENTENCE, its end included, under the model of RUN; likeliest first."""
    from gradatim.cli.runs import open_run
    from gradatim.evaluate.score import score_sentences

    opened, model = open_run(run, checkpoint)
    scores = score_sentences(model, opened.tokenizer, sentences)
    if any(score.unknown for score in scores):
        say("sentences with unknown words are not comparable with others: all unknown words are one word to this model")
    emit(
        [asdict(score) for score in scores],
        as_json,
        lambda: Table(
            ["sentence", "log-probability", "tokens", "perplexity", "unknown"],
            [
                [visible(score.text), score.log_probability, score.tokens, score.perplexity, score.unknown]
                for score in scores
            ],
        ),
    )
