"""Order and memory against torch.distributed.pipelining, checked with torch 2.13.

GPipe and 1F1B are run: torch's own step, on stages that only write down what they are told to do, each rank by itself
(nothing is sent, so nobody waits). Interleaved and zero-bubble run the order that torch has computed beforehand
(``pipeline_order``), which is read. All this is private to torch; where it moves, this file follows.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.pipelining import schedules as torch_schedules

from gradatim.schedules import Action, build_schedule, peak_in_flight

SINGLE: dict[str, Any] = {"gpipe": torch_schedules.ScheduleGPipe, "1f1b": torch_schedules.Schedule1F1B}
MULTIPLE: dict[str, Any] = {
    "interleaved": torch_schedules.ScheduleInterleaved1F1B,
    "zero-bubble": torch_schedules.ScheduleInterleavedZeroBubble,
}


class Diary:
    """A pipeline stage for torch that writes down what it is told to do."""

    has_backward = is_first = is_last = True
    submod = torch.nn.Identity()

    def __init__(self, rank: int, stages: int) -> None:
        self.stage_index = self.group_rank = rank
        self.num_stages = self.group_size = stages
        self.told: list[str] = []

    def forward_one_chunk(self, microbatch: int, *args: Any, **kwargs: Any) -> None:
        self.told.append(f"{self.stage_index}F{microbatch}")

    def backward_one_chunk(self, microbatch: int, **kwargs: Any) -> None:
        self.told.append(f"{self.stage_index}B{microbatch}")

    def no_transfers(self, microbatch: int) -> list[Any]:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = no_transfers

    def perform_reduce_grad(self, factor: int) -> None: ...


def executed(name: str, rank: int, stages: int, microbatches: int) -> list[str]:
    """What one rank does in a step of torch's schedule."""
    diary = Diary(rank, stages)
    schedule = SINGLE[name](diary, max(microbatches, stages))
    schedule._n_microbatches = microbatches  # 1F1B's constructor wants one per stage at least; its step does not mind
    with mock.patch.object(schedule, "_initialize_stage"):
        schedule._step_microbatches([()] * microbatches, [{}] * microbatches)
    return diary.told


def planned(name: str, rank: int, stages: int, microbatches: int, chunks: int) -> list[str]:
    """The order in which torch will run one rank's chunks."""
    local = [
        SimpleNamespace(
            group_size=stages,
            group_rank=rank,
            num_stages=stages * chunks,
            stage_index=chunk,
            submod=torch.nn.Identity(),
        )
        for chunk in range(rank, stages * chunks, stages)
    ]
    order = MULTIPLE[name](local, microbatches).pipeline_order[rank]
    return [repr(action) for action in order if action is not None and "REDUCE" not in repr(action)]


def most_held(texts: list[str]) -> int:
    """Most forwards before their B or W, counted from torch's own list."""
    changes = [{"F": 1, "B": -1, "W": -1, "I": 0}[Action.parse(text).kind] for text in texts]
    return max(sum(changes[:i]) for i in range(len(changes) + 1))


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("stages", range(1, 7))
def test_what_torch_does(name: str, stages: int) -> None:
    for microbatches in [*range(1, 10), 16]:  # fewer than stages, too
        schedule = build_schedule(name, stages, microbatches)
        theirs = [executed(name, rank, stages, microbatches) for rank in range(stages)]
        assert schedule.text() == theirs
        assert peak_in_flight(schedule) == [most_held(texts) for texts in theirs]


@pytest.mark.parametrize("stages", range(2, 7))
@pytest.mark.parametrize("rounds", range(1, 5))
def test_what_torch_plans(stages: int, rounds: int) -> None:
    microbatches = stages * rounds
    for name, chunks in [("interleaved", 1), ("interleaved", 2), ("interleaved", 3), ("zero-bubble", 1)]:
        schedule = build_schedule(name, stages, microbatches, chunks)
        theirs = [planned(name, rank, stages, microbatches, chunks) for rank in range(stages)]
        assert schedule.text() == theirs
        assert peak_in_flight(schedule) == [most_held(texts) for texts in theirs]
