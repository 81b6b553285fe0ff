"""All legal layouts of a model on a cluster, and the fastest of those that fit. No torch.

The layouts are columns of numbers: their memory and a bound below their time are computed for all at once, from the
times of blocks and ends that few of them differ in. The bound is the pipeline's closed form (Narayanan et al. 2021,
arXiv:2104.04473, section 2.2) for unequal stages: what stands before a rank, its own work, what stands after. In the
order of the bound layouts are then run through the schedule's recurrence, until no bound is below what was found.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster, Stack
from gradatim.plan.communication import transfer_seconds
from gradatim.plan.layouts import FREE, Array, Columns, Fixed, legal_layouts
from gradatim.plan.measured import busy
from gradatim.plan.memory import (
    WIDTH,
    Parts,
    Stages,
    activation_peak,
    from_columns,
    model_parts,
    stage_memory,
    whole_again,
)
from gradatim.plan.physics import FITTED, Physics
from gradatim.plan.predict import (
    Prediction,
    data_and_optimizer,
    part_times,
    predict,
    rank_layers,
    sharded_seconds,
)
from gradatim.plan.times import Seconds, Times


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout with its prediction."""

    layout: LayoutConfig
    prediction: Prediction
    memory: tuple[float, ...]
    """Bytes on a rank of each stage."""
    fits: bool


@dataclass(slots=True)
class Found:
    """What a search came to."""

    best: list[Candidate]
    """The fastest layouts that fit, fastest first."""
    considered: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason: how many layouts."""
    seconds: float = 0.0
    least_memory: Candidate | None = None
    """Where nothing fits: the layout that needs least."""
    columns: Columns | None = None
    """All that were considered,"""
    bounds: Array = None
    """the bound below each one's seconds,"""
    fits: Array = None
    """whether its bytes fit,"""
    needed: Array = None
    """and how many its fullest rank needs."""


TOO_LARGE = "needs more memory than a device has"
NOTHING = Times(Seconds(), Seconds())


@dataclass(frozen=True, slots=True)
class Shares:
    """How many layers ranks have in every layout, as its split shares them out; an end is a rank of its own."""

    first: Array
    second: Array
    """The last, where there are but two, and the first, where there is one."""
    last: Array
    middle: Array
    """The most of a rank between the ends; 0 where there is none."""
    fewest: Array
    """Of a chunk."""
    kind: Array
    """Index into ``ranks``."""
    ranks: list[tuple[int, ...]]
    """Layers of all ranks, each way once."""


def layer_shares(model: Architecture, columns: Columns) -> Shares:
    """From the counts of layers of all stages, chunks and splits that there are."""
    keys = (columns.pp * (columns.chunks.max() + 1) + columns.chunks) * len(columns.splits) + columns.split
    _, at, of = np.unique(keys, return_index=True, return_inverse=True)
    ranks: dict[tuple[int, ...], int] = {}
    rows = []
    for i in at.tolist():
        layout = columns.layout(i)
        counts = model.layer_counts(layout)
        own = tuple(rank_layers(layout, counts))
        kind = ranks.setdefault(own, len(ranks))
        rows.append((own[0], own[min(1, len(own) - 1)], own[-1], max(own[1:-1], default=0), min(counts), kind))
    return Shares(*np.array(rows, dtype=np.int64).T[:, of.reshape(-1)], list(ranks))  # type: ignore[call-arg]


def bounds(
    cluster: Cluster, model: Architecture, columns: Columns, global_batch: int, physics: Physics = FITTED
) -> tuple[Array, Array]:
    """For every layout a bound below its seconds and the bytes of its fullest rank (first, second or last)."""
    stack = cluster.stack
    names = np.array(columns.names)[columns.schedule]
    waits = (names == "zero-bubble") & (columns.pp > 1)
    keys = np.stack([columns.tp, columns.microbatch, columns.sequence_parallel, columns.recompute, waits])
    kinds, of = np.unique(keys, axis=1, return_inverse=True)
    of = of.reshape(-1)
    parts = []
    for tp, microbatch, sp, recompute, later in kinds.T.tolist():
        name = columns.recomputes[recompute]
        block, embedding, head = part_times(physics, cluster, model, microbatch, tp, bool(sp), name)
        options: dict[str, Any] = {"sequences": microbatch, "tp": tp, "sequence_parallel": bool(sp)}
        parts.append(
            [
                *(part.forward.total for part in (block, embedding, head)),
                *(part.backward.total for part in (block, embedding, head)),
                *model_parts(model, stack, **options, recompute=name, waits=bool(later)).columns(),
            ]
        )
    f, fe, fh, b, be, bh, *held = np.array(parts).reshape(-1, 6 + WIDTH).T[:, of]
    pp, v, tp, dp = columns.pp, columns.chunks, columns.tp, columns.dp
    m = global_batch // dp // columns.microbatch
    shares = layer_shares(model, columns)
    size = (
        1.0
        * stack.element_bytes
        * columns.microbatch
        * model.context
        * model.width
        / np.where(columns.sequence_parallel, tp, 1)
    )
    wait = _transfers(physics, cluster, size, columns)
    extra = 0.0 if stack.overlap_pipeline else 2 * wait
    layer = f + b
    last = m * (shares.last * layer + v * extra + fh + bh + np.where(pp == 1, fe + be, 0))
    middle = m * (shares.middle * layer + np.where(pp > 2, v * extra, 0.0))
    first = m * (shares.first * layer + v * extra + fe + be)
    halves = np.array([0.0 if name == "zero-bubble" else 1.0 for name in columns.names])[columns.schedule]
    ramp = shares.fewest * (f + halves * b) + (1 + halves) / 2 * (2 * wait)
    seconds = np.maximum(last + (pp - 1) * ramp, np.maximum(middle + np.minimum(pp - 1, 1) * ramp, first))
    once, each = _ends(physics, cluster, model, columns, shares)
    seconds = seconds + once + m * each
    one_node = tp * pp * dp <= cluster.node.devices
    scale = np.where(one_node, stack.multiplier_one_node or stack.multiplier, stack.multiplier)
    if cluster.calibrated:
        scale = scale * np.array([busy(cluster, n) for n in (tp * pp * dp).tolist()])
    return seconds * scale, _most_memory(stack, model, columns, global_batch, from_columns(held), shares)


def _most_memory(
    stack: Stack, model: Architecture, columns: Columns, global_batch: int, parts: Parts, shares: Shares
) -> Array:
    """Bytes of the fullest rank: the first, the second or the last."""
    pp, v, tp, dp, zero = columns.pp, columns.chunks, columns.tp, columns.dp, columns.zero
    m = global_batch // dp // columns.microbatch
    names = np.array(columns.names)[columns.schedule]
    bytes_each = stack.weight_bytes / np.where(zero >= 3, dp, 1) + stack.gradient_bytes / np.where(zero >= 2, dp, 1)
    bytes_each = bytes_each + stack.state_bytes / np.where(zero >= 1, dp, 1)
    block, embedding, lone, tied = _parameters(model, tp)
    needed = []
    for rank, layers in (
        (np.zeros_like(pp), shares.first),
        (np.minimum(1, pp - 1), shares.second),
        (pp - 1, shares.last),
    ):
        first, last = rank == 0, rank == pp - 1
        ends = np.where(first, embedding, 0), np.where(last, np.where(first, tied, lone), 0)
        parameters = layers * block + ends[0] + ends[1]
        at = Stages(rank, pp, v, layers / v, m, _held(columns, m, rank), names)
        whole = whole_again(stack, block, np.maximum(*ends), zero, dp)
        needed.append(parameters * bytes_each + sum(activation_peak(parts, at)) + whole)
    batch = parts.step * (global_batch / dp) + parts.constant
    return np.max(needed, axis=0) + batch + stack.overhead


def _transfers(physics: Physics, cluster: Cluster, size: Array, columns: Columns) -> Array:
    """Seconds of a transfer between stages; 0 without stages."""
    keys = np.stack([size, columns.tp, columns.dp, columns.pp, columns.sequence_parallel])
    kinds, of = np.unique(keys, axis=1, return_inverse=True)
    seconds = [
        transfer_seconds(physics, cluster, s, int(tp), int(dp), int(pp), split=bool(sp)) if pp > 1 else 0.0
        for s, tp, dp, pp, sp in kinds.T.tolist()
    ]
    return np.array(seconds)[of.reshape(-1)]


def _ends(
    physics: Physics, cluster: Cluster, model: Architecture, columns: Columns, shares: Shares
) -> tuple[Array, Array]:
    """Seconds of the optimizer, and of the gradients' sum where nothing hides it, at least; and for each microbatch."""
    keys = np.stack([columns.tp, columns.dp, columns.zero, shares.kind])
    kinds, of = np.unique(keys, axis=1, return_inverse=True)
    seconds = []
    for tp, dp, zero, kind in kinds.T.tolist():
        layers = shares.ranks[kind]
        layout = LayoutConfig(tp=tp, pp=len(layers), dp=dp, zero=zero)
        data, optimizer = data_and_optimizer(physics, cluster, model, layout, layers, NOTHING)
        each = 0.0
        if zero >= 2:
            each = sharded_seconds(physics, cluster, model, layout, layers, None)
        seconds.append((optimizer + (0.0 if cluster.stack.overlap_data else data), each))
    once, each = np.array(seconds).T[:, of.reshape(-1)]
    return once, each


def _held(columns: Columns, m: Array, rank: Array) -> Array:
    """Chunk-microbatches in flight, as ``memory.in_flight`` has them from the schedules themselves."""
    names = np.array(columns.names)[columns.schedule]
    warm_up = 2 * (columns.pp - rank - 1) + (columns.chunks - 1) * columns.pp + 1
    looped = np.minimum(warm_up, m * columns.chunks)
    held = np.where(names == "interleaved", looped, np.minimum(m, columns.pp - rank))
    held = np.where(names == "zero-bubble", np.minimum(m, columns.pp), held)
    return np.where(names == "gpipe", m, held)


def _parameters(model: Architecture, tp: Array) -> tuple[Array, Array, Array, Array]:
    """Of a block, the embedding, the head by itself and beside the embedding, on one of ``tp`` ranks."""
    kinds, of = np.unique(tp, return_inverse=True)
    counts = [
        (
            model.block_parameters(t),
            model.embedding_parameters(t),
            model.head_parameters(t),
            model.head_parameters(t, alone=False),
        )
        for t in kinds.tolist()
    ]
    found = np.array(counts, dtype=float).reshape(-1, 4).T[:, of]
    return found[0], found[1], found[2], found[3]


def search(
    model: Architecture,
    cluster: Cluster,
    devices: int,
    global_batch: int,
    *,
    fixed: Fixed = FREE,
    top: int = 10,
    stack: Stack | None = None,
    physics: Physics = FITTED,
) -> Found:
    """The ``top`` fastest layouts that fit. ``stack``: whose limits hold, by default the cluster's own."""
    started = time.perf_counter()
    found = Found([])
    columns = legal_layouts(model, devices, global_batch, fixed, stack or cluster.stack, found.rejected)
    found.considered = len(columns)
    if len(columns):
        seconds, needed = bounds(cluster, model, columns, global_batch, physics)
        fits = needed <= cluster.device.memory * (1 + 1e-9)  # to rounding; what is judged is judged exactly
        found.rejected[TOO_LARGE] += int((~fits).sum())
        found.columns, found.bounds, found.fits, found.needed = columns, seconds, fits, needed
        order = np.argsort(seconds, kind="stable")
        for i in order[fits[order]].tolist():
            if len(found.best) >= top and seconds[i] >= found.best[top - 1].prediction.seconds:
                break
            candidate = judge(cluster, model, columns.layout(i), global_batch, physics)
            if not candidate.fits:
                found.rejected[TOO_LARGE] += 1
                continue
            found.best.append(candidate)
            found.best.sort(key=lambda c: (c.prediction.seconds, max(c.memory)))
            del found.best[top:]
        if not found.best:
            least = int(np.argmin(needed))
            found.least_memory = judge(cluster, model, columns.layout(least), global_batch, physics)
    found.rejected = Counter({reason: count for reason, count in found.rejected.items() if count})
    found.seconds = time.perf_counter() - started
    return found


def predicted(found: Found, fixed: Fixed) -> list[Candidate]:
    """The best, or where nothing fits what is fixed altogether, whose time is told all the same."""
    whole = None not in (fixed.tp, fixed.pp, fixed.dp, fixed.microbatch)
    return [found.least_memory] if not found.best and whole and found.least_memory else found.best


def best_with(
    found: Found, cluster: Cluster, model: Architecture, global_batch: int, knob: str, physics: Physics = FITTED
) -> dict[Any, Candidate | None]:
    """For each value of a knob the fastest layout with it, all others free; None where none fits.

    ``found`` is a search's, whose columns and bounds are used again.
    """
    assert found.columns is not None
    column = getattr(found.columns, knob)
    best: dict[Any, Candidate | None] = {}
    for value in np.unique(column).tolist():
        candidate = None
        possible = np.flatnonzero((column == value) & found.fits)
        for i in possible[np.argsort(found.bounds[possible], kind="stable")][:8].tolist():
            if candidate is not None and found.bounds[i] >= candidate.prediction.seconds:
                break
            tried = judge(cluster, model, found.columns.layout(i), global_batch, physics)
            if tried.fits and (candidate is None or tried.prediction.seconds < candidate.prediction.seconds):
                candidate = tried
        names = {"schedule": found.columns.names, "recompute": found.columns.recomputes}.get(knob)
        best[names[value] if names else bool(value) if knob == "sequence_parallel" else value] = candidate
    return best


def best_within(
    found: Found, cluster: Cluster, model: Architecture, global_batch: int, memory: float, physics: Physics = FITTED
) -> Candidate | None:
    """The fastest layout of a search whose fullest rank needs ``memory`` bytes at most; None where there is none."""
    if found.columns is None:
        return None
    best: Candidate | None = None
    possible = np.flatnonzero(found.needed <= memory * (1 + 1e-9))
    for i in possible[np.argsort(found.bounds[possible], kind="stable")].tolist():
        if best is not None and found.bounds[i] >= best.prediction.seconds:
            break
        tried = judge(cluster, model, found.columns.layout(i), global_batch, physics)
        if max(tried.memory) <= memory and (best is None or tried.prediction.seconds < best.prediction.seconds):
            best = tried
    return best


def judge(
    cluster: Cluster, model: Architecture, layout: LayoutConfig, global_batch: int, physics: Physics = FITTED
) -> Candidate:
    """One layout: its time, its memory, whether it fits."""
    memory = tuple(stage.total for stage in stage_memory(cluster.stack, model, layout, global_batch))
    prediction = predict(cluster, model, layout, global_batch, physics)
    return Candidate(layout, prediction, memory, max(memory) <= cluster.device.memory)
