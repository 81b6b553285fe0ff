"""The numbers of a calibrated machine, from the seconds of the pieces that ``parallel/calibrate.py`` ran. No torch.

``measured.py`` says what the numbers mean; they are fitted to relative errors, none below zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradatim.config.settings import GptConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.measured import MESSAGES, block_times, cluster_of

LAYERS = 2
"""Blocks in a row, so that each finds caches as another block left them."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured."""

    products: tuple[tuple[int, int, int], ...] = (
        (64, 64, 64), (128, 128, 128), (256, 128, 128), (512, 256, 256), (256, 512, 512), (1024, 512, 512),
        (512, 1536, 384), (512, 384, 1536), (512, 2048, 512), (512, 512, 2048), (512, 64, 512), (64, 512, 512),
        (512, 512, 64),
    )  # fmt: skip
    """Rows, columns, inner length."""
    blocks: tuple[tuple[int, int, int, int, int], ...] = (
        (128, 512, 2, 1, 128), (128, 512, 2, 8, 128), (256, 1024, 4, 1, 128), (256, 1024, 4, 4, 128),
        (256, 256, 4, 4, 128), (384, 1536, 6, 2, 128), (384, 384, 6, 8, 128), (384, 1536, 6, 8, 128),
        (512, 2048, 8, 4, 128),
    )  # fmt: skip
    """Width, feed-forward width, heads, sequences, context."""
    split: tuple[tuple[int, int, int, int, int], ...] = (
        (256, 1024, 4, 1, 128), (256, 1024, 4, 4, 128), (512, 2048, 8, 2, 128), (512, 2048, 8, 8, 128),
    )  # fmt: skip
    """Likewise, of blocks that all processes share by tensor parallelism; each of these with SP and without."""
    cores: tuple[tuple[int, int, int, int], ...] = ((2, 4, 64, 64), (4, 4, 128, 64), (4, 8, 128, 32), (2, 4, 256, 64))
    """Sequences, heads, context, width of a head."""
    heads: tuple[tuple[int, int, int], ...] = ((128, 256, 512), (512, 256, 1024), (512, 256, 4096), (1024, 384, 4096))
    """Tokens, width, words."""
    updates: tuple[int, ...] = (128, 256, 512)
    """Widths of blocks that are updated."""
    messages: tuple[int, ...] = (64, 1 << 14, 1 << 17, 1 << 19, 1 << 20, 1 << 21, 1 << 23, 1 << 25)
    """Bytes."""
    rounds: int = 9
    """Turns of each piece."""


SIZES = Sizes()


def fit(found: dict[Any, float], sizes: Sizes) -> tuple[float, dict[str, Any]]:
    """The rate of matrix products, and ``Measured``'s numbers but those of messages."""
    rows = [[1.0, 2.0 * r * c * k, 2.0 * c * k, 2.0 * r * k, 2.0 * r * c] for r, c, k in sizes.products]
    took = [found["product", shape] / repetitions(*shape) for shape in sizes.products]
    start, per_flop, *lost = nonnegative(rows, took)
    per_flop = max(per_flop, 1e-18)
    shares = [each / per_flop for each in lost]

    def product(r: float, c: float, k: float) -> float:
        return start + 2 * r * c * k * per_flop * (1 + shares[0] / r + shares[1] / c + shares[2] / k)

    fitted: dict[str, Any] = {"product": [start, *shares]}
    for kind, name in (("F", "forward"), ("B", "backward")):
        rows = [[1.0, b * h * t * t, b * h * t * t * k] for b, h, t, k in sizes.cores]
        core = nonnegative(rows, [found["core", kind, shape] for shape in sizes.cores])
        rows, own = [], []
        for width, inner, heads, sequences, context in sizes.blocks:
            n, scores = sequences * context, sequences * heads * context**2
            products = [(n, 3 * width, width), (n, width, width), (n, inner, width), (n, width, inner)]
            if kind == "B":
                products = [each for r, c, k in products for each in ((r, k, c), (k, c, r))]
            known = sum(product(*each) for each in products)
            known += sum(a * x for a, x in zip(core, (1.0, scores, scores * width / heads)))
            rows.append([1.0, n * width, n * (4 * width + inner)])
            own.append((found["block", kind, (width, inner, heads, sequences, context)] / LAYERS, known))
        fitted |= {f"core_{name}": core, name: nonnegative(rows, besides(own))}
    rows = [[1.0, n * v] for n, _, v in sizes.heads]
    known_heads = [product(n, v, d) + product(n, d, v) + product(v, d, n) for n, d, v in sizes.heads]
    fitted["head"] = nonnegative(rows, besides(zip((found["head", shape] for shape in sizes.heads), known_heads)))
    rows = [[1.0, n * d, v * d] for n, d, v in sizes.heads]
    both = [found["embedding", "F", shape] + found["embedding", "B", shape] for shape in sizes.heads]
    fitted["embedding"] = nonnegative(rows, both)
    counts = [LAYERS * (12 * d * d + 13 * d) for d in sizes.updates]
    fitted["update"] = nonnegative([[1.0, p] for p in counts], [found["update", d] for d in sizes.updates])
    fitted["accumulate"] = statistics.median(found["accumulate", d] / p for d, p in zip(sizes.updates, counts))
    return 1 / per_flop, fitted


def fit_waiting(answer: dict[str, Any], found: dict[Any, float], tp: int) -> list[float]:
    """What ranks of tensor parallelism wait for one another: per message, and per second of computing.

    A message was measured by itself, where all come to it at once. In a block one of them is late, by what its products
    took longer, or by what the system takes to wake a process that gave its core away.

    Args:
        answer: as ``calibrate`` gives it, without these two numbers.
        found: seconds of shared blocks, by ``("split", F or B, block, whether under SP)``.
        tp: ranks that share them.
    """
    cluster = cluster_of(answer, "", 1.0)
    rows, known, took = [], [], []
    for (_, kind, block, sequence_parallel), seconds in found.items():
        width, inner, heads, sequences, context = block
        model = Architecture(GptConfig(d_model=width, d_ff=inner, n_heads=heads, n_layers=LAYERS), 64, context)
        times = block_times(
            cluster, model, sequences=sequences, tp=tp, sequence_parallel=sequence_parallel, recompute="none"
        )
        part = times.forward if kind == "F" else times.backward
        messages = sum(both[kind == "B"] for both in MESSAGES[sequence_parallel].values())
        rows.append([float(messages), part.compute])
        known.append(part.total)
        took.append(seconds / LAYERS)
    return nonnegative(rows, took, known) if rows else [0.0, 0.0]


def besides(pairs: Iterable[tuple[float, float]]) -> list[float]:
    """What is left of each whole without what is known of it; where noise leaves nothing, a twentieth."""
    return [max(0.05 * whole, whole - known) for whole, known in pairs]


def repetitions(rows: int, columns: int, inner: int) -> int:
    """How often a product is repeated for a clock to see it."""
    return max(1, round(2e7 / (rows * columns * inner)))


def nonnegative(rows: list[list[float]], seconds: list[float], known: Sequence[float] = ()) -> list[float]:
    """Coefficients, none below zero, whose sums are relatively nearest to the seconds: of all choices of columns.

    With ``known``, a part of each of the seconds, the sums are to be what it leaves.
    """
    matrix, target = np.array(rows) / np.array(seconds)[:, None], np.ones(len(seconds))
    if known:
        target -= np.array(known) / np.array(seconds)
    best, least = [0.0] * matrix.shape[1], float(target @ target)
    for chosen in range(1, 1 << matrix.shape[1]):
        columns = [c for c in range(matrix.shape[1]) if chosen >> c & 1]
        scale = np.abs(matrix[:, columns]).max(0)
        found, *_ = np.linalg.lstsq(matrix[:, columns] / scale, target, rcond=None)
        error = float(((matrix[:, columns] / scale) @ found - target) @ ((matrix[:, columns] / scale) @ found - target))
        if (found >= 0).all() and error < least - 1e-12:
            best, least = [0.0] * matrix.shape[1], error
            for column, value in zip(columns, found / scale):
                best[column] = float(value)
    return best
