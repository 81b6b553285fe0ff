"""``gradatim complete RUN PROMPT``: let the model go on writing."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from gradatim.cli.output import Verb, emit, json_option, say


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--max-new", type=click.IntRange(min=1), default=64, show_default=True, help="Most tokens to add.")
@click.option("--beams", type=click.IntRange(min=1), default=1, show_default=True, help="Search with this many beams.")
@click.option(
    "--length-penalty", type=float, default=1.0, show_default=True, help="Beams compare log-probability / length^this."
)
@click.option(
    "--temperature", type=float, help="0 takes the likeliest token [0, or 1 where another sampling option is given]."
)
@click.option("--top-k", type=int, help="Only the k likeliest tokens.")
@click.option("--top-p", type=float, help="Only the likeliest tokens that together hold this probability.")
@click.option("--min-p", type=float, help="Only tokens at least this fraction as likely as the likeliest.")
@click.option(
    "--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1 discourages tokens that occurred."
)
@click.option("--n", type=click.IntRange(min=1), default=1, show_default=True, help="How many completions.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random draws.")
@click.option("--stop", multiple=True, help="End at this text and cut it off; may be repeated.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(
    run: Path, prompt: str, max_new: int, beams: int, length_penalty: float, temperature: float | None,
    top_k: int | None, top_p: float | None, min_p: float | None, repetition_penalty: float, n: int, seed: int,
    stop: tuple[str, ...],
    checkpoint: str, as_json: bool,
) -> None:  # fmt: skip
    """Complete PROMPT with the model of RUN: greedily, by sampling, or by beam search."""
    from gradatim.errors import ConfigError, Problem

    filters = {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p, "--min-p": min_p}
    asked = [name for name, value in filters.items() if value is not None]
    problems = []
    if beams > 1 and asked:
        problems.append(Problem(where=", ".join(asked), what="beam search does not sample", attempt="leave out either"))
    unread = {"--stop": bool(stop), "--repetition-penalty": repetition_penalty != 1}
    problems += [
        Problem(where=name, what="beam search does not read this", attempt=f"leave out {name} or --beams")
        for name, given in unread.items()
        if beams > 1 and given
    ]
    if beams > 1 and n > beams:
        problems.append(Problem(where="--n", what="there are not so many beams", got=str(n), allowed=f"1 to {beams}"))
    if not -10 <= length_penalty <= 10:  # also refuses NaN
        problems.append(
            Problem(where="--length-penalty", what="out of range", got=str(length_penalty), allowed="-10 to 10")
        )

    if "" in stop:
        problems.append(Problem(where="--stop", what="the text to end at is empty", attempt="leave it out"))

    from gradatim.decode.sampling import Sampling

    if temperature is None:
        temperature = 1.0 if asked or (n > 1 and beams == 1) else 0.0
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                        repetition_penalty=repetition_penalty, seed=seed)  # fmt: skip
    problems += sampling.problems()
    if problems:
        raise ConfigError(*problems)

    from gradatim.cli.runs import open_run
    from gradatim.decode.beam import beam_search
    from gradatim.decode.generate import generate
    from gradatim.evaluate.score import unknown_tokens

    opened, model = open_run(run, checkpoint)
    if unknown := unknown_tokens(opened.tokenizer.encode(prompt), opened.tokenizer):
        say(f"tokens of the prompt that this model does not know: {unknown}")
    streams = not as_json and n == 1 and beams == 1 and sys.stdout.isatty()
    # Words and WordPiece have no token for the space before what follows.
    spaced = prompt[-1:].strip() and opened.tokenizer.token_bytes(opened.tokenizer.boundary) is None
    shown = prompt + " " if spaced else prompt
    if streams:
        print(shown, end="", flush=True)
    started = time.perf_counter()
    if beams > 1:
        found, dropped = beam_search(
            model, opened.tokenizer, prompt, beams=beams, max_new=max_new, n_best=n, alpha=length_penalty
        )
    else:
        show = (lambda _, text: print(text, end="", flush=True)) if streams else None
        found, dropped = generate(
            model, opened.tokenizer, prompt, max_new=max_new, n=n, sampling=sampling, stop=stop, show=show
        )
    seconds = time.perf_counter() - started
    if not as_json and any(completion.ended and not completion.text.strip() for completion in found):
        say("the model ended the document at once: nothing follows in what it learned; --temperature 1 draws, "
            "--n 3 shows several")  # fmt: skip
    if dropped:
        say(f"the prompt is longer than the model's context: its first {dropped} tokens were not read")
    if streams:
        print()
        return
    document = {
        "completions": [asdict(completion) for completion in found],
        "tokens_per_second": sum(completion.tokens for completion in found) / seconds,
        "prompt_tokens_dropped": dropped,
    }
    emit(document, as_json, lambda: "\n\n".join(shown + completion.text for completion in found))
