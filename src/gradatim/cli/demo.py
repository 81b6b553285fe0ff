"""``gradatim demo``: the first rungs of the ladder on real text, in a few minutes, compared fairly.

Six models learn from the documentation that comes with Python, through one vocabulary of byte pairs, one after the
other so that each has the machine to itself; the same held-out bytes judge them all, and each completes the same
prompt. Runs that are finished are reused.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say, write_file
from gradatim.config import load_config
from gradatim.config.settings import NgramConfig

if TYPE_CHECKING:
    from gradatim.report.ladder import Ladder, Rung
    from gradatim.text.prepare import Prepared
    from gradatim.train import Run, TrainResult

RUNGS = {
    "bigram": "bigram",
    "Kneser-Ney 5-gram": "ngram",
    "fixed window": "window",
    "RNN": "rnn",
    "LSTM": "lstm",
    "GPT": "demo",
}
"""Name of each rung and its recipe."""
PROMPT = "The function returns"
FRACTIONS = (8, 4, 2, 1)
"""N-grams are counted on an eighth, a quarter, a half and all of the text."""


@click.command(cls=Verb)
@click.option(
    "--run-root",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Where the runs are kept.",
)
@click.option("--fresh", is_flag=True, help="Start again in a new folder beside --run-root; nothing is deleted.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Shorten the networks' training to this many steps, for a quick look."
)
@click.option("--prompt", default=PROMPT, show_default=True, help="What every rung completes.")
@json_option
def command(run_root: Path, fresh: bool, steps: int | None, prompt: str, as_json: bool) -> None:
    """Train the ladder from bigram to GPT on Python's own documentation, compare, complete a prompt, write a report."""
    from gradatim.report.ladder import Ladder, ladder_report
    from gradatim.text.prepare import prepare

    if fresh:
        run_root = unused(run_root)
    prepared = prepare(load_config(RUNGS["GPT"], {}).data, say=say)
    test = prepared.test
    assert test is not None  # the embedded corpus has a test part
    sha256 = next(iter(prepared.report["sha256"].values()))
    train_bytes, test_bytes = prepared.train.meta.bytes, test.meta.bytes
    say(f"python-manual: {train_bytes:,} bytes to learn from, {test_bytes:,} to be judged on, sha256 {sha256}")
    rungs = [_rung(name, recipe, run_root, steps, prompt, prepared) for name, recipe in RUNGS.items()]
    ladder = Ladder(
        corpus="python-manual", sha256=sha256, train_bytes=train_bytes, test_bytes=test_bytes,
        vocabulary=prepared.tokenizer.vocab_size, prompt=prompt, rungs=rungs,
    )  # fmt: skip
    ladder.save(run_root)
    out = run_root / "report.html"
    write_file(out, ladder_report(run_root))
    emit({**asdict(ladder), "report": str(out)}, as_json, lambda: [*_shown(ladder), f"report: {out}"])


def _rung(name: str, recipe: str, root: Path, steps: int | None, prompt: str, prepared: Prepared) -> Rung:
    """Train (or find) one rung and measure it."""
    from gradatim.evaluate.perplexity import evaluate_tokens
    from gradatim.report.ladder import Rung
    from gradatim.train import Run, train

    config = load_config(recipe, {})
    if steps is not None and not isinstance(config.model, NgramConfig):
        config = load_config(recipe, {"steps": str(steps)})
    # One text and one vocabulary for all, whatever becomes of a recipe.
    config = replace(config, data=load_config(RUNGS["GPT"], {}).data)
    directory = root / recipe
    found = Run(directory).exists
    say(f"\n{name} ({directory})" + (": found; steps that are done are not repeated" if found else ""))
    result = train(config, directory, resume=True, say=say)
    run = Run.open(directory)
    model = run.model("best")
    test = prepared.test
    assert test is not None
    judged = evaluate_tokens(model, run.tokenizer, test.tokens, test.meta.bytes)
    say(f"test: {judged.bits_per_byte:.3f} bits per byte")
    by_seconds, by_bytes = _curves(run, result, prepared)
    return Rung(
        name=name, run=str(directory), parameters=result.parameters, seconds=result.seconds,
        tokens_per_second=result.tokens_per_second or 0.0, perplexity=judged.perplexity,
        bits_per_byte=judged.bits_per_byte, by_seconds=by_seconds, by_bytes=by_bytes,
        completions=_completions(run, prompt),
    )  # fmt: skip


def unused(root: Path) -> Path:
    """``root``, or the first of root-2, root-3, … that does not exist."""
    number, path = 1, root
    while path.exists():
        number += 1
        path = root.with_name(f"{root.name}-{number}")
    return path


def _curves(
    run: Run, result: TrainResult, prepared: Prepared
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Bits per byte of the validation text against seconds of training and against bytes read."""
    import time

    import numpy as np

    from gradatim.evaluate.likelihood import log_probs
    from gradatim.models.ngram import fit_ngram
    from gradatim.report.ladder import bits_per_byte
    from gradatim.train.metrics import read_metrics

    valid, train = prepared.valid, prepared.train
    assert valid is not None
    tokens, text_bytes, boundary = valid.meta.tokens, valid.meta.bytes, prepared.tokenizer.boundary
    bytes_per_token = train.meta.bytes / train.meta.tokens
    config = run.config.model
    if isinstance(config, NgramConfig):
        by_seconds, by_bytes = [], []
        for part in FRACTIONS:
            # Whole documents, as many as make up this part of the tokens.
            end = int(np.searchsorted(train.document_starts, train.meta.tokens // part))
            some = train.tokens[: train.document_starts[end]]
            started = time.perf_counter()
            model = fit_ngram(config, some, prepared.tokenizer.vocab_size, boundary)
            seconds = time.perf_counter() - started
            bits = bits_per_byte(float(-log_probs(model, valid.tokens, boundary).mean()), tokens, text_bytes)
            by_bytes.append((len(some) * bytes_per_token, bits))
            by_seconds = [(seconds, bits)]
        return by_seconds, by_bytes
    rows = [row for row in read_metrics(run.metrics) if row.get("valid_loss") is not None]
    return (
        [(row["seconds"], bits_per_byte(row["valid_loss"], tokens, text_bytes)) for row in rows],
        [(row["tokens"] * bytes_per_token, bits_per_byte(row["valid_loss"], tokens, text_bytes)) for row in rows],
    )


def _completions(run: Run, prompt: str) -> dict[str, str]:
    """The prompt completed greedily, by sampling and by beam search."""
    from gradatim.decode.beam import beam_search
    from gradatim.decode.generate import generate
    from gradatim.decode.sampling import Sampling

    model, tokenizer = run.model("best"), run.tokenizer
    greedy, _ = generate(model, tokenizer, prompt, max_new=24)
    sampled, _ = generate(model, tokenizer, prompt, max_new=24, sampling=Sampling(temperature=0.8, top_p=0.95))
    searched, _ = beam_search(model, tokenizer, prompt, beams=4, max_new=24)
    return {"greedy": greedy[0].text, "sampled": sampled[0].text, "beam": searched[0].text}


def _shown(ladder: Ladder) -> list[str | Table]:
    columns = ["rung", "parameters", "seconds", "tokens/s", "perplexity", "bits per byte"]
    rows = [
        [r.name, r.parameters, round(r.seconds, 1), round(r.tokens_per_second), r.perplexity, r.bits_per_byte]
        for r in ladder.rungs
    ]
    told = [
        [r.name, way, " ".join((ladder.prompt + text).split())]
        for r in ladder.rungs
        for way, text in r.completions.items()
    ]
    return ["", Table(columns, rows, "the same held-out bytes for all"), "", Table(["rung", "decoding", "text"], told)]
