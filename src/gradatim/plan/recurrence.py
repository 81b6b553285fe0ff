"""How long a schedule takes with given times: as ``schedules.simulate``, but compiled for repeated use. No torch.

The same actions in the same order as the pipeline runs, turned once into lists of numbers in an order in which each
comes after what it waits for; a step is then one pass over them (a max-plus recurrence). Long steps repeat themselves:
after a warm-up each further group of microbatches costs the same, so only the first groups are run and the rest is
added (``GROUPS``; a test compares with the whole).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from gradatim.schedules.build import SCHEDULES

GROUPS = 3
"""Groups of one microbatch per stage that are run before the rest is added,"""
WHOLE = 4096
"""unless the step has no more forward actions than this: then it is run as it is."""


@dataclass(frozen=True, slots=True)
class Program:
    """A schedule as lists over its actions, each after what it waits for."""

    ranks: list[int]
    chunks: list[int]
    kinds: list[int]
    """0 forward, 1 backward, 2 backward for inputs, 3 backward for weights."""
    needs: list[int]
    """The action that it waits for, −1 where there is none but the one before on its rank."""
    stages: int


@lru_cache(maxsize=128)
def compiled(name: str, stages: int, microbatches: int, chunks: int) -> Program:
    """The program of a schedule that ``schedules.build_schedule`` accepts."""
    last, m = stages * chunks - 1, microbatches
    waiting: dict[int, list[int]] = {}  # results by number: ranks that wait for them
    where: dict[int, int] = {}  # results by number: the action that leaves them
    queues = [
        [("FBIW".index(a.kind), a.chunk, a.microbatch) for a in SCHEDULES[name](rank, stages, m, chunks)]
        for rank in range(stages)
    ]
    position = [0] * stages
    program = Program([], [], [], [], stages)
    ranks, of_chunk, kinds, needs = program.ranks, program.chunks, program.kinds, program.needs
    runnable = list(range(stages - 1, -1, -1))
    while runnable:
        rank = runnable.pop()
        queue, at = queues[rank], position[rank]
        while at < len(queue):
            kind, chunk, microbatch = queue[at]
            source = -1
            if kind == 0 and chunk > 0:
                result = (chunk - 1) * m + microbatch
            elif (kind == 1 or kind == 2) and chunk < last:
                result = (last + 1 + chunk + 1) * m + microbatch
            else:
                result = -1
            if result >= 0:
                source = where.get(result, -1)
                if source < 0:
                    waiting.setdefault(result, []).append(rank)
                    break
            if kind < 3:
                left = (chunk if kind == 0 else last + 1 + chunk) * m + microbatch
                where[left] = len(ranks)
                if left in waiting:
                    runnable += waiting.pop(left)
            ranks.append(rank)
            of_chunk.append(chunk)
            kinds.append(kind)
            needs.append(source)
            at += 1
        position[rank] = at
    assert len(ranks) == sum(map(len, queues)), "the schedule comes to a standstill"
    return program


def step_seconds(
    name: str,
    stages: int,
    microbatches: int,
    chunks: int,
    forward: Sequence[float],
    backward: Sequence[float],
    transfer: float = 0.0,
) -> float:
    """The makespan of a step whose chunks take ``forward`` and ``backward`` seconds for each microbatch.

    ``transfer`` is the time until a result is on another rank, beside the computation.
    """
    if stages == 1 and chunks == 1:
        return microbatches * (forward[0] + backward[0])
    run = GROUPS * stages + microbatches % stages
    if microbatches <= run or stages * microbatches * chunks <= WHOLE:
        return _makespan(compiled(name, stages, microbatches, chunks), forward, backward, transfer)
    shorter = _makespan(compiled(name, stages, run - stages, chunks), forward, backward, transfer)
    longer = _makespan(compiled(name, stages, run, chunks), forward, backward, transfer)
    return longer + (microbatches - run) // stages * (longer - shorter)


def _makespan(program: Program, forward: Sequence[float], backward: Sequence[float], transfer: float) -> float:
    half = [0.5 * seconds for seconds in backward]
    durations = (forward, backward, half, half)
    free = [0.0] * program.stages
    end: list[float] = []
    ranks = program.ranks
    for rank, chunk, kind, needs in zip(ranks, program.chunks, program.kinds, program.needs):
        start = free[rank]
        if needs >= 0:
            arrival = end[needs]
            if ranks[needs] != rank:
                arrival += transfer
            if arrival > start:
                start = arrival
        start += durations[kind][chunk]
        free[rank] = start
        end.append(start)
    return max(free)
