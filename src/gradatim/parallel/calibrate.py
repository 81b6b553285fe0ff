"""Measuring the machine for the planner: what each piece of a training step takes here, at several sizes.

Pieces are those that training is made of: blocks, head and embedding as ``build.py`` makes them, sums and transfers of
``collectives.py`` and ``shards.py``, the update of ``optimizer.py``. All processes do the same piece at the same time,
as in training, since they share caches and memory; then the first does some by itself, which shows what sharing costs.
Blocks that processes share are run as well: what they take beyond computing and messages is waiting for each other.
Pieces take turns, round after round, so that a disturbance meets all of them, and of each the median counts.

``plan/fit.py`` makes of their seconds the numbers that ``plan/measured.py`` explains.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

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
from gradatim.parallel.mesh import Axis, Mesh, create_mesh, single
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.parallel.shards import all_gather_, all_reduce_, reduce_scatter_
from gradatim.plan.fit import LAYERS, SIZES, Sizes, fit, fit_waiting, repetitions
from gradatim.train.allocator import keep_freed_memory

Run = Callable[[], None]


def calibrate(processes: int, sizes: Sizes = SIZES) -> dict[str, Any]:
    """Measure with so many processes on this machine: ``{"rate", "memory", "threads", "measured": {…}}``.

    ``measured`` is ``plan.cluster.Measured``'s fields.
    """
    arguments = {"sizes": asdict(sizes)}
    answer: dict[str, Any] = launch("gradatim.parallel.calibrate:work", arguments, LayoutConfig(dp=processes))
    return answer


def work(group: Group, sizes: dict[str, Any]) -> dict[str, Any]:
    """One process's part; the first one's numbers stand for all."""
    keep_freed_memory()  # as training's engines do: without, every large piece would pay for its pages anew
    chosen, mesh = Sizes(**{name: _tuples(value) for name, value in sizes.items()}), group.mesh
    rounds = chosen.rounds
    pieces: dict[Any, Run] = {}
    for piece in chosen.products:
        pieces["product", piece] = _product(*piece)
    for core in chosen.cores:
        pieces["core", "F", core], pieces["core", "B", core] = _core(*core)
    for block in chosen.blocks:
        pieces["block", "F", block], pieces["block", "B", block] = _block(block, single())
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
    answer = {"rate": rate, "threads": torch.get_num_threads(), "measured": fitted}
    if mesh.world > 1:
        fitted["waiting"] = fit_waiting(answer, _shared(chosen, rounds, mesh), mesh.world)
    return answer


def _shared(sizes: Sizes, rounds: int, mesh: Mesh) -> dict[Any, float]:
    """Seconds of blocks that all processes share, of those sizes that can be divided among them."""
    divided = create_mesh(LayoutConfig(tp=mesh.world))
    pieces: dict[Any, Run] = {}
    for block in sizes.split:
        _, inner, heads, _, context = block
        if not (heads % mesh.world or inner % mesh.world or context % mesh.world):
            for sp in (False, True):
                pieces["split", "F", block, sp], pieces["split", "B", block, sp] = _block(block, divided, sp=sp)
    return measure(pieces, rounds, mesh)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def measure(pieces: dict[Any, Run], rounds: int, mesh: Mesh) -> dict[Any, float]:
    """Median seconds of each piece over so many rounds, after one that is not counted."""
    seconds: dict[Any, list[float]] = {key: [] for key in pieces}
    for turn in range(rounds + 1):
        for key, run in pieces.items():
            if "B" not in key and turn % 3 == 0:
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


def _chunk(config: GptConfig, words: int, context: int, layers: int = 0, **parts: Any) -> Chunk:
    told: dict[str, Any] = {"embed": False, "head": False, "mesh": single()} | parts
    return build_chunk(config, words, context, layers=range(layers), **told)


def _model(config: GptConfig, words: int, context: int, layers: int = 0, **parts: Any) -> NeuralLanguageModel:
    model = _chunk(config, words, context, layers, **parts).model
    assert isinstance(model, NeuralLanguageModel)
    return model


def _block(block: tuple[int, int, int, int, int], mesh: Mesh, *, sp: bool = False) -> tuple[Run, Run]:
    """Blocks in a row, those of one process or shared among all of a mesh's tensor-parallel ranks."""
    width, inner, heads, sequences, context = block
    config = GptConfig(d_model=width, d_ff=inner, n_heads=heads, n_layers=LAYERS)
    model = _model(config, 64, context, LAYERS, mesh=mesh, sequence_parallel=sp)
    x = torch.randn(sequences, context // mesh.tp.size if sp else context, width)
    forward, backward = _two(lambda: model.run(x.detach().requires_grad_()))

    def fresh() -> None:
        backward()
        for parameter in model.parameters():
            parameter.grad = None

    return forward, fresh


def _head(tokens: int, width: int, words: int) -> Run:
    model = _model(GptConfig(d_model=width, n_heads=1, n_layers=1), words, tokens, head=True)
    hidden, targets = torch.randn(1, tokens, width), torch.randint(0, words, (1, tokens))

    def run() -> None:
        model.nll(hidden.detach().requires_grad_(), targets).backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            parameter.grad = None

    return run


def _embedding(tokens: int, width: int, words: int) -> tuple[Run, Run]:
    model = _model(GptConfig(d_model=width, n_heads=1, n_layers=1), words, tokens, embed=True)
    ids = torch.randint(0, words, (1, tokens))
    return _two(lambda: model.enter(ids))


def _update(width: int) -> tuple[Run, Run]:
    """Norm, clipping and update of two blocks; and adding a gradient to each of their gradients."""
    chunk = _chunk(GptConfig(d_model=width, n_heads=1, n_layers=LAYERS), 64, 8, LAYERS)
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
