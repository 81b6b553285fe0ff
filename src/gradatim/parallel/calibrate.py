"""Measuring the machine for the planner: what each piece of a training step takes here, at several sizes.

Pieces are those that training is made of: blocks, head and embedding as ``build.py`` makes them, sums and transfers of
``collectives.py`` and ``shards.py``, the update of ``optimizer.py``. All processes do the same piece at the same time,
as in training, since they share caches and memory; then the first does some by itself, which shows what sharing costs.
Pieces take turns, round after round, so that a disturbance meets all of them, and of each the median counts.

``plan/measured.py`` says what the numbers fitted here mean; they are fitted to relative errors, none below zero.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gradatim.config.settings import GptConfig, LayoutConfig, OptimizerConfig
from gradatim.models.neural import NeuralLanguageModel
from gradatim.parallel.build import Chunk, build_chunk
from gradatim.parallel.collectives import begin_gather, begin_scatter, begin_sum
from gradatim.parallel.engine import everybody
from gradatim.parallel.gradients import Gradients
from gradatim.parallel.launch import Group, launch
from gradatim.parallel.mesh import Axis, Mesh, single
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.parallel.shards import all_gather_, all_reduce_, reduce_scatter_

Run = Callable[[], None]


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
LAYERS = 2
"""Blocks in a row, so that each finds caches as another block left them."""


def calibrate(processes: int, sizes: Sizes = SIZES) -> dict[str, Any]:
    """Measure with so many processes on this machine: ``{"rate", "memory", "threads", "measured": {…}}``.

    ``measured`` is ``plan.cluster.Measured``'s fields.
    """
    arguments = {"sizes": asdict(sizes)}
    answer: dict[str, Any] = launch("gradatim.parallel.calibrate:work", arguments, LayoutConfig(dp=processes))
    return answer


def work(group: Group, sizes: dict[str, Any]) -> dict[str, Any]:
    """One process's part; the first one's numbers stand for all."""
    chosen, mesh = Sizes(**{name: _tuples(value) for name, value in sizes.items()}), group.mesh
    rounds = chosen.rounds
    pieces: dict[Any, Run] = {}
    for piece in chosen.products:
        pieces["product", piece] = _product(*piece)
    for core in chosen.cores:
        pieces["core", "F", core], pieces["core", "B", core] = _core(*core)
    for block in chosen.blocks:
        pieces["block", "F", block], pieces["block", "B", block] = _block(*block)
    for head in chosen.heads:
        pieces["head", head] = _head(*head)
        pieces["embedding", "F", head], pieces["embedding", "B", head] = _embedding(*head)
    for width in chosen.updates:
        pieces["update", width], pieces["accumulate", width] = _update(width)
    together = measure(pieces, rounds, mesh)
    everybody(mesh)
    alone = 1.0
    if mesh.world > 1:
        some = {key: run for key, run in pieces.items() if key[0] == "block"}
        if group.leads:
            found = measure(some, rounds, single())
            alone = statistics.median(found[key] / together[key] for key in some)
        everybody(mesh)
    curves = _curves(chosen.messages, rounds, mesh) if mesh.world > 1 else {}
    rate, fitted = fit(together, chosen)
    fitted |= {"processes": mesh.world, "alone": min(1.0, alone), **curves}
    return {"rate": rate, "threads": torch.get_num_threads(), "measured": fitted}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def measure(pieces: dict[Any, Run], rounds: int, mesh: Mesh) -> dict[Any, float]:
    """Median seconds of each piece over so many rounds, after one that is not counted."""
    seconds: dict[Any, list[float]] = {key: [] for key in pieces}
    for turn in range(rounds + 1):
        for key, run in pieces.items():
            if key[-2:-1] != ("B",) and turn % 3 == 0:
                everybody(mesh)  # processes drift apart, and are to do the same at the same time
            started = time.perf_counter()
            run()
            if turn:
                seconds[key].append(time.perf_counter() - started)
    return {key: statistics.median(values) for key, values in seconds.items()}


# --------------------------------------------------------------------------- pieces


def _product(rows: int, columns: int, inner: int) -> Run:
    x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
    times = repetitions(rows, columns, inner)

    def run() -> None:
        for _ in range(times):
            F.linear(x, weight)

    return run


def _two(forward: Callable[[], Tensor]) -> tuple[Run, Run]:
    """The forward pass of something and, right after it, the backward pass."""
    held: list[Tensor] = []

    def first() -> None:
        held.append(forward())

    def second() -> None:
        out = held.pop()
        torch.autograd.backward((out,), (torch.ones_like(out),))

    return first, second


def _core(sequences: int, heads: int, context: int, width: int) -> tuple[Run, Run]:
    shape = (sequences, context, heads, width)
    q, k, v = (torch.randn(shape).transpose(1, 2).requires_grad_() for _ in range(3))
    return _two(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))


def _chunk(
    config: GptConfig, words: int, context: int, layers: Sequence[int], *, embed: bool = False, head: bool = False
) -> Chunk:
    return build_chunk(config, words, context, layers=layers, embed=embed, head=head, mesh=single())


def _model(
    config: GptConfig, words: int, context: int, layers: int, *, embed: bool = False, head: bool = False
) -> NeuralLanguageModel:
    model = _chunk(config, words, context, range(layers), embed=embed, head=head).model
    assert isinstance(model, NeuralLanguageModel)
    return model


def _block(width: int, inner: int, heads: int, sequences: int, context: int) -> tuple[Run, Run]:
    config = GptConfig(d_model=width, d_ff=inner, n_heads=heads, n_layers=LAYERS)
    model = _model(config, 64, context, LAYERS)
    x = torch.randn(sequences, context, width)
    forward, backward = _two(lambda: model.run(x.detach().requires_grad_()))

    def fresh() -> None:
        backward()
        for parameter in model.parameters():
            parameter.grad = None

    return forward, fresh


def _head(tokens: int, width: int, words: int) -> Run:
    model = _model(GptConfig(d_model=width, n_heads=1, n_layers=1), words, tokens, 0, head=True)
    hidden, targets = torch.randn(1, tokens, width), torch.randint(0, words, (1, tokens))

    def run() -> None:
        model.nll(hidden.detach().requires_grad_(), targets).backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            parameter.grad = None

    return run


def _embedding(tokens: int, width: int, words: int) -> tuple[Run, Run]:
    model = _model(GptConfig(d_model=width, n_heads=1, n_layers=1), words, tokens, 0, embed=True)
    ids = torch.randint(0, words, (1, tokens))
    return _two(lambda: model.enter(ids))


def _update(width: int) -> tuple[Run, Run]:
    """Norm, clipping and update of two blocks; and adding a gradient to each of their gradients."""
    chunk = _chunk(GptConfig(d_model=width, n_heads=1, n_layers=LAYERS), 64, 8, range(LAYERS))
    gradients = Gradients([chunk], single(), zero=0)
    optimizer = ShardedAdamW(gradients, OptimizerConfig())
    new = [torch.full_like(parameter, 1e-3) for parameter in chunk.model.parameters()]
    for parameter, gradient in zip(chunk.model.parameters(), new):
        parameter.grad = gradient.clone()

    @torch.no_grad()
    def update() -> None:
        optimizer.step(1e-4, optimizer.norm(), 1e-9)

    @torch.no_grad()
    def accumulate() -> None:
        for parameter, gradient in zip(chunk.model.parameters(), new):
            assert parameter.grad is not None
            parameter.grad += gradient

    return update, accumulate


# --------------------------------------------------------------------------- messages


def _message(name: str, size: int, axis: Axis) -> Run:
    """One message over ``size`` bytes of fp32."""
    n = axis.size
    unit = max(n, size // 4 // n * n)
    flat = torch.zeros(unit)
    whole, part = flat.view(1, unit, 1), torch.zeros(1, unit // n, 1)

    def send() -> None:  # there and back again
        if axis.index == 0:
            dist.send(flat, axis.ranks[1], group=axis.group)
            dist.recv(flat, axis.ranks[1], group=axis.group)
        elif axis.index == 1:
            dist.recv(flat, axis.ranks[0], group=axis.group)
            dist.send(flat, axis.ranks[0], group=axis.group)

    runs: dict[str, Run] = {
        "sum": lambda: _done(begin_sum(whole.clone(), axis).wait()),
        "gather": lambda: _done(begin_gather(part, axis).wait()),
        "scatter": lambda: _done(begin_scatter(whole, axis).wait()),
        "send": send,
        "reduce": lambda: all_reduce_(flat, axis).wait(),
        "reduce_scatter": lambda: reduce_scatter_(flat, axis).wait(),
        "all_gather": lambda: all_gather_(flat, axis).wait(),
    }
    return runs[name]


def _done(_: Tensor) -> None:
    """The result is not needed."""


MESSAGES = ("sum", "gather", "scatter", "send", "reduce", "reduce_scatter", "all_gather")
"""In ``Measured``'s words."""


def _curves(sizes: tuple[int, ...], rounds: int, mesh: Mesh) -> dict[str, list[list[float]]]:
    """Of each message, bytes and seconds; a small one takes no longer than a larger one."""
    pieces = {(name, size): _message(name, size, mesh.dp) for size in sizes for name in MESSAGES}
    found = measure(pieces, 2 * rounds, mesh)
    curves = {}
    for name in MESSAGES:
        seconds = [found[name, size] / (2 if name == "send" else 1) for size in sizes]
        curves[name] = [[float(size), min(seconds[place:])] for place, size in enumerate(sizes)]
    return curves


# --------------------------------------------------------------------------- fits


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


def besides(pairs: Iterable[tuple[float, float]]) -> list[float]:
    """What is left of each whole without what is known of it; where noise leaves nothing, a twentieth."""
    return [max(0.05 * whole, whole - known) for whole, known in pairs]


def repetitions(rows: int, columns: int, inner: int) -> int:
    """How often a product is repeated for a clock to see it."""
    return max(1, round(2e7 / (rows * columns * inner)))


def nonnegative(rows: list[list[float]], seconds: list[float]) -> list[float]:
    """Coefficients, none below zero, whose sums are relatively nearest to the seconds: of all choices of columns."""
    matrix, target = np.array(rows) / np.array(seconds)[:, None], np.ones(len(seconds))
    best, least = [0.0] * matrix.shape[1], float(len(seconds))
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
