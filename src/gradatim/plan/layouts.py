"""All legal layouts of a model on so many devices, as columns of numbers. No torch.

What is legal is what training asks for (``config/rules_layout``, ``schedules/``), within what a cluster's software can
do. What is left out is counted by reason.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Stack

Array = Any
"""A column: one number for each layout."""

KNOBS = ("tp", "pp", "dp", "chunks", "schedule", "microbatch", "sequence_parallel", "recompute", "zero")
"""What a layout is made of."""

NO_LIMITS = Stack(
    schedules=("gpipe", "1f1b", "interleaved", "zero-bubble"), zero=(0, 1, 2, 3), splits=("uniform", "by-cost")
)
"""All that a layout can be."""


def without_limits(stack: Stack) -> Stack:
    """What ``--stack any`` allows this software, whose layers stay what they are."""
    return replace(
        stack,
        schedules=NO_LIMITS.schedules,
        chunks=NO_LIMITS.chunks,
        sequence_parallel=NO_LIMITS.sequence_parallel,
        zero=NO_LIMITS.zero,
        splits=NO_LIMITS.splits,
    )


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


@dataclass(slots=True)
class Columns:
    """Layouts as columns."""

    tp: Array
    pp: Array
    dp: Array
    chunks: Array
    schedule: Array
    """Index into ``names``."""
    microbatch: Array
    sequence_parallel: Array
    recompute: Array
    zero: Array
    split: Array
    names: list[str]
    recomputes: list[str]
    splits: list[str]
    counts: dict[int, tuple[int, ...]]
    """For the split ``past-share``: by the number of chunks, the layers of each."""

    def __len__(self) -> int:
        return len(self.tp)

    def layout(self, i: int) -> LayoutConfig:
        """The i-th as a layout."""
        return LayoutConfig(
            tp=int(self.tp[i]),
            pp=int(self.pp[i]),
            dp=int(self.dp[i]),
            chunks=int(self.chunks[i]),
            schedule=self.names[self.schedule[i]],
            microbatch=int(self.microbatch[i]),
            sequence_parallel=bool(self.sequence_parallel[i]),
            recompute=self.recomputes[self.recompute[i]],
            zero=int(self.zero[i]),  # type: ignore[arg-type]
            split=self._split(i),
        )

    def _split(self, i: int) -> Any:
        kind = self.splits[self.split[i]]
        return self.counts[int(self.pp[i] * self.chunks[i])] if kind == "past-share" else kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """What the user has decided; None is searched."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    chunks: int | None = None
    schedule: str | None = None
    microbatch: int | None = None
    sequence_parallel: bool | None = None
    recompute: str | None = None
    zero: int | None = None


FREE = Fixed()
"""Nothing is fixed."""


def legal_layouts(
    model: Architecture,
    devices: int,
    global_batch: int,
    fixed: Fixed,
    stack: Stack,
    rejected: Counter[str],
) -> Columns:
    """Every layout of so many devices that trains this model on this batch; what is illegal is counted by reason."""
    rows: list[tuple[int, ...]] = []
    names, recomputes, splits = list(stack.schedules), list(stack.recompute), list(stack.splits)
    if fixed.schedule:
        names = [fixed.schedule]
    if fixed.recompute:
        recomputes = [fixed.recompute]
    elif not stack.selects and "none" in recomputes:  # then selective is the same
        recomputes = [name for name in recomputes if name != "selective"]
    for tp in [fixed.tp] if fixed.tp else divisors(devices):
        if devices % tp:
            rejected["tp does not divide the devices"] += 1
            continue
        if whole := _not_divided(tp, model):
            rejected[f"tp does not divide {' and '.join(whole)}"] += 1
            continue
        for pp in [fixed.pp] if fixed.pp else divisors(devices // tp):
            if devices // tp % pp:
                rejected["tp · pp does not divide the devices"] += 1
                continue
            if pp > 1 and model.one_stage:
                rejected["an encoder-decoder is one stage"] += 1
                continue
            if pp > model.layers:
                rejected["more stages than layers"] += 1
                continue
            dp = devices // tp // pp
            if fixed.dp and dp != fixed.dp:
                continue
            if global_batch % dp:
                rejected["dp does not divide the batch"] += 1
                continue
            share = global_batch // dp
            for microbatch in [fixed.microbatch] if fixed.microbatch else divisors(share):
                if share % microbatch:
                    rejected["the microbatch does not divide a replica's share"] += 1
                    continue
                for schedule, chunks, split in _pipelines(
                    model, names, splits, stack, fixed, pp, share // microbatch, rejected
                ):
                    for sp in _sequence_parallel(model, stack, fixed, tp, rejected):
                        for recompute in range(len(recomputes)):
                            for zero in _zero(stack, fixed, dp):
                                rows.append((tp, pp, dp, chunks, schedule, microbatch, sp, recompute, zero, split))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 10).T
    counts = {}
    if "past-share" in splits:
        counts = {n: model.layers_past_share(n) for n in np.unique(columns[1] * columns[3]).tolist()}
    return Columns(*columns, names, recomputes, splits, counts)  # type: ignore[call-arg]


def _not_divided(tp: int, model: Architecture) -> list[str]:
    """What does not fall into ``tp`` equal parts."""
    parts = {"the heads": model.heads, "the feed-forward width": model.feed_forward}
    if model.kv_heads != model.heads:
        parts["the heads of keys and values"] = model.kv_heads
    parts["the vocabulary (one padded to a multiple of tp would do)"] = model.vocabulary
    return [name for name, size in parts.items() if size % tp]


def _pipelines(
    model: Architecture,
    names: list[str],
    splits: list[str],
    stack: Stack,
    fixed: Fixed,
    pp: int,
    m: int,
    rejected: Counter[str],
) -> list[tuple[int, int, int]]:
    """Schedules, chunks and splits of a pipeline: one without stages has but one of each."""
    found = []
    for index, name in enumerate(names):
        if pp == 1:
            if fixed.chunks in (None, 1) and (fixed.schedule or name == ("1f1b" if "1f1b" in names else names[0])):
                found.append((index, 1, 0))
            continue
        most = min(fixed.chunks or stack.chunks, model.layers // pp) if name == "interleaved" else 1
        for chunks in [fixed.chunks] if fixed.chunks else range(2 if name == "interleaved" else 1, most + 1):
            if chunks > most or (chunks == 1 and name == "interleaved" and not fixed.chunks):
                continue
            if name == "interleaved" and m % pp:
                rejected["interleaving needs microbatches in multiples of the stages"] += 1
                continue
            for split, kind in enumerate(splits):
                uneven = model.layers % (pp * chunks) > 0
                if kind == "uniform" and uneven and stack.layers == "megatron" and len(splits) == 1 and not fixed.pp:
                    rejected["stages and chunks do not divide the layers"] += 1
                elif kind == "uniform" or uneven or len(splits) == 1:
                    found.append((index, chunks, split))
    return found


def _sequence_parallel(model: Architecture, stack: Stack, fixed: Fixed, tp: int, rejected: Counter[str]) -> list[int]:
    possible = tp > 1 and model.context % tp == 0 and not model.one_stage
    if fixed.sequence_parallel and not possible:
        if model.one_stage:
            rejected["an encoder-decoder is not cut along the sequence"] += 1
        else:
            why = "needs tp above 1" if tp == 1 else "needs a context that tp divides"
            rejected[f"sequence parallelism, which is fixed, {why}"] += 1
        return []
    if fixed.sequence_parallel is not None:
        return [int(fixed.sequence_parallel)]
    return [0, 1] if possible and stack.sequence_parallel else [0]


def _zero(stack: Stack, fixed: Fixed, dp: int) -> list[int]:
    if fixed.zero is not None:
        return [fixed.zero]
    return list(stack.zero) if dp > 1 else [min(stack.zero)]
