"""``gradatim next RUN PROMPT``: what the model expects to come next."""

from __future__ import annotations

from pathlib import Path

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say, visible

BAR = 30


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many to show.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(run: Path, prompt: str, top: int, checkpoint: str, as_json: bool) -> None:
    """Show the distribution over the token after PROMPT, likeliest first."""
    from gradatim.cli.runs import open_run
    from gradatim.decode.generate import next_tokens
    from gradatim.evaluate.score import unknown_tokens

    opened, model = open_run(run, checkpoint)
    if model.context is not None and (dropped := len(opened.tokenizer.encode(prompt)) + 1 - model.context) > 0:
        say(f"the prompt is longer than the model's context: its first {dropped} tokens were not read")
    if unknown := unknown_tokens(opened.tokenizer.encode(prompt), opened.tokenizer):
        say(f"tokens of the prompt that this model does not know: {unknown}")
    found = [(opened.tokenizer.token_text(i), p) for i, p in next_tokens(model, opened.tokenizer, prompt, top)]
    emit(
        [{"text": text, "probability": p} for text, p in found],
        as_json,
        lambda: Table(["next", "probability", ""], [[visible(text), p, bar(p)] for text, p in found]),
    )


def bar(share: float) -> str:
    """As long as the share, to an eighth of a character."""
    whole, eighths = divmod(round(share * BAR * 8), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()
