"""In which precision a CPU computes short attention fastest, and what that does to a training step.

    python benchmarks/attention_core.py

Cores (softmax of q kᵀ, times v), forward and backward, causal, of several shapes: given fp32; given bf16 and computed
in it; given bf16 and computed in float32 (``models/layers/core.py`` decides so for fewer than 256 keys). Then passes
of a translator of Transformer-Tiny's shape over 128 pairs of 28 tokens: in fp32, and in bf16 with cores of both kinds.
What is compared takes turns; a ratio is that of one turn.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import torch

from common import spread, table, write_result
from gradatim.config.settings_translators import TransformerConfig
from gradatim.models import build_model
from gradatim.models.layers import core
from gradatim.models.layers.core import attend
from gradatim.models.translator import Translator
from gradatim.text.batches import Source
from gradatim.train.precision import arithmetic, step_arithmetic

SHAPES = [(128, 4, 28, 32), (64, 2, 128, 64), (8, 12, 128, 64), (4, 12, 256, 64), (2, 12, 512, 64), (1, 12, 1024, 64)]
"""Rows, heads, tokens, width of a head."""
WORDS, PAIRS, TOKENS = 5000, 128, 28
CPU = torch.device("cpu")


@contextlib.contextmanager
def cores(in_full: bool) -> Iterator[None]:
    """Cores of half precision all computed in float32, or none."""
    before = core.computed_in_full
    core.computed_in_full = lambda q, k: in_full and q.dtype != torch.float32
    try:
        yield
    finally:
        core.computed_in_full = before


def attention(shape: tuple[int, int, int, int], dtype: torch.dtype, in_full: bool) -> Callable[[], None]:
    """Forward and backward of one core."""
    rows, heads, tokens, width = shape
    q, k, v = (torch.randn(rows, tokens, heads, width, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    grad = torch.randn(rows, tokens, heads, width, dtype=dtype).transpose(1, 2)

    def run() -> None:
        with cores(in_full):
            attend(q, k, v, None, causal=True).backward(grad)

    return run


def tiny_translator(dropout: float) -> Translator:
    """A model of Transformer-Tiny's shape."""
    config = TransformerConfig(d_model=128, n_layers=4, n_heads=4, d_ff=256, activation="relu", dropout=dropout)
    model = build_model(config, WORDS, 128).train()
    assert isinstance(model, Translator)
    return model


def passes(model: Translator, precision: str, inside: Callable[[], AbstractContextManager[None]]) -> Callable[[], None]:
    """Forward, loss and backward of a translator, inside a context."""
    source = Source(torch.randint(1, WORDS, (PAIRS, TOKENS)), torch.full((PAIRS,), TOKENS))
    ids, targets = torch.randint(1, WORDS, (PAIRS, TOKENS)), torch.randint(1, WORDS, (PAIRS, TOKENS))

    def run() -> None:
        model.zero_grad()
        with inside(), step_arithmetic(precision):
            with arithmetic(precision, CPU):
                loss = model.terms(source, ids, targets)
            loss.backward()

    return run


def turns(sides: list[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Seconds of each side in each round, the first of which warms up."""
    found: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for place, run in enumerate(sides):
            started = time.perf_counter()
            run()
            if number:
                found[place].append(time.perf_counter() - started)
    return found


def row(name: str, seconds: list[list[float]]) -> list[str]:
    """Milliseconds of the three sides, and how much sooner the last is done than the second."""
    ratios = [half / ours for half, ours in zip(seconds[1], seconds[2], strict=True)]
    return [name, *(spread([1e3 * value for value in side]) for side in seconds), spread(ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        sides = [attention(shape, torch.float32, False)]
        sides += [attention(shape, torch.bfloat16, in_full) for in_full in (False, True)]
        name = "core: {} rows, {} heads, {} tokens, width {}".format(*shape)
        rows.append(row(name, turns(sides, options.rounds)))
    model = tiny_translator(0.2)
    kinds = [("fp32", False), ("bf16", False), ("bf16", True)]
    sides = [passes(model, precision, partial(cores, in_full)) for precision, in_full in kinds]
    rows.append(row(f"passes of Transformer-Tiny, {PAIRS} pairs of {TOKENS}", turns(sides, options.rounds)))
    columns = ["forward and backward", "fp32, ms", "bf16, ms", "bf16 with float32 cores, ms", "bf16 / the same"]
    body = f"{options.threads} thread, {options.rounds} rounds in turns.\n\n" + table(columns, rows)
    write_result("attention_core", "Short attention in bf16 on a CPU", body)


if __name__ == "__main__":
    main()
