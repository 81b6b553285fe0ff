"""What drawing dropout's masks by 16 bits a value gains on a CPU.

    python benchmarks/dropout.py

Forward and backward of dropout alone, beside PyTorch's own (which draws a mask's values one by one), and passes of a
translator of Transformer-Tiny's shape over 128 pairs of 28 tokens with each, in one thread. What is compared takes
turns; a ratio is that of one turn.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch

from attention_core import CPU, PAIRS, TOKENS, passes, tiny_translator, turns
from common import spread, table, write_result
from gradatim.models.layers import dropout as layer
from gradatim.train.precision import speed_notes

SHAPES = [(16, 64, 128), (64, 128, 128), (8, 1024, 768)]
SHARE = 0.3


@contextlib.contextmanager
def masks(by_bits: bool) -> Iterator[None]:
    """Drawn by 16 bits a value, or by PyTorch."""
    before = layer.drawn_by_16_bits
    layer.drawn_by_16_bits = lambda x, kept: by_bits
    try:
        yield
    finally:
        layer.drawn_by_16_bits = before


def alone(shape: tuple[int, ...], dtype: torch.dtype, by_bits: bool) -> Callable[[], None]:
    """Forward and backward of dropout."""
    x, grad = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)

    def run() -> None:
        with masks(by_bits):
            layer.dropout(x, SHARE, training=True).backward(grad)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rows = []
    for precision, dtype in precisions.items():
        for shape in SHAPES:
            sides = [alone(shape, dtype, by_bits) for by_bits in (False, True)]
            rows.append(row(f"dropout of {' × '.join(map(str, shape))}, {precision}", turns(sides, options.rounds)))
    for precision in precisions:
        if speed_notes(precision, CPU):
            continue  # minutes a pass
        model = tiny_translator(SHARE)
        sides = [passes(model, precision, partial(masks, by_bits)) for by_bits in (False, True)]
        name = f"passes of Transformer-Tiny, {PAIRS} pairs of {TOKENS}, {precision}"
        rows.append(row(name, turns(sides, options.rounds)))
    columns = ["forward and backward", "PyTorch's, ms", "by 16 bits a value, ms", "PyTorch's / ours"]
    body = f"Share {SHARE}, one thread, {options.rounds} rounds in turns.\n\n" + table(columns, rows)
    write_result("dropout", "Dropout on a CPU", body)


def row(name: str, seconds: list[list[float]]) -> list[str]:
    """Milliseconds of both, and how much sooner the second is done."""
    ratios = [theirs / ours for theirs, ours in zip(*seconds, strict=True)]
    return [name, *(spread([1e3 * value for value in side]) for side in seconds), spread(ratios)]


if __name__ == "__main__":
    main()
