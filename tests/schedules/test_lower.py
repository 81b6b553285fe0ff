"""Lowered schedules: they hold what they need, get through the strictest network, and receive early."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.schedules import (
    SCHEDULES,
    Action,
    Schedule,
    build_schedule,
    durations,
    lower,
    simulate,
    v_shaped,
    validate,
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    name = draw(st.sampled_from(list(SCHEDULES)))
    stages = draw(st.integers(1, 5))
    if name != "interleaved":
        return build_schedule(name, stages, draw(st.integers(1, 9)))
    return build_schedule(name, stages, stages * draw(st.integers(1, 3)), draw(st.integers(1, 3)))


@settings(deadline=None, max_examples=60)
@given(schedules(), st.data())
def test_every_lowered_schedule_is_sound_whatever_the_times(schedule: Schedule, data: st.DataObject) -> None:
    chunks = schedule.stages * schedule.chunks
    table = data.draw(st.lists(st.integers(0, 5), min_size=2 * chunks, max_size=2 * chunks))
    for duration in (None, durations(table[:chunks], table[chunks:])):
        lowered = lower(schedule, duration)
        assert validate(lowered) == []
        assert lowered.compute() == schedule
        assert lower(lowered, duration) == lowered
        assert [a for rank in range(schedule.stages) for batch in lowered.batches(rank) for a in batch] == [
            action for actions in lowered.ranks for action in actions
        ]


@settings(deadline=None, max_examples=60)
@given(schedules())
def test_a_receive_stands_before_the_action_during_which_it_arrives(schedule: Schedule) -> None:
    lowered = lower(schedule)
    simulation = simulate(lowered)
    for actions, spans, groups in zip(lowered.ranks, simulation.spans, lowered.groups or ()):
        grouped = {i for start, stop in groups for i in range(start, stop)}
        for i, (action, (sent, _)) in enumerate(zip(actions, spans)):
            if action.kind.startswith("RECV"):
                before = [end for a, (_, end) in zip(actions[:i], spans) if a.computes]
                assert all(end <= sent for end in before)
                if i not in grouped and schedule.name in ("gpipe", "1f1b"):
                    assert all(end < sent for end in before)


@settings(deadline=None, max_examples=60)
@given(schedules())
def test_sends_follow_their_action(schedule: Schedule) -> None:
    for actions in lower(schedule).ranks:
        for i, action in enumerate(actions):
            if not action.computes and action.sends:
                compute = next(a for a in reversed(actions[:i]) if a.computes)
                assert compute.produces() == action.carried()


def test_two_ranks_of_1f1b_by_hand() -> None:
    lowered = lower(build_schedule("1f1b", 2, 2))
    assert lowered.text() == [
        ["0F0", "0SEND_F0", "0F1", "0SEND_F1", "0RECV_B0", "0B0", "0RECV_B1", "0B1"],
        ["1RECV_F0", "1RECV_F1", "1F0", "1B0", "1SEND_B0", "1F1", "1B1", "1SEND_B1"],
    ]
    longer = lower(build_schedule("1f1b", 2, 3))
    assert [[" ".join(map(str, b)) for b in longer.batches(rank) if len(b) > 1] for rank in (0, 1)] == [
        ["0SEND_F2 0RECV_B1"],
        ["1RECV_F2 1SEND_B1"],
    ]


def test_one_rank_sends_nothing_and_a_v_turns_round_in_place() -> None:
    single = lower(build_schedule("interleaved", 1, 2, 3))
    assert all(action.computes for action in single.ranks[0])
    folded = Schedule(
        name="v",
        stages=2,
        chunks=2,
        microbatches=2,
        placement=tuple(v_shaped(2)(chunk) for chunk in range(4)),
        ranks=tuple(
            tuple(Action(c, kind, i) for i in range(2) for kind, c in order)  # type: ignore[arg-type]
            for order in ([("F", 0), ("F", 3), ("B", 3), ("B", 0)], [("F", 1), ("F", 2), ("B", 2), ("B", 1)])
        ),
    )
    assert validate(folded) == []
    lowered = lower(folded)
    assert validate(lowered) == []
    moved: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for rank, actions in enumerate(lowered.ranks):
        for action in actions:
            if not action.computes and action.sends:
                moved[rank, lowered.peer(action)].append(str(action))
    assert moved == {
        (0, 1): ["0SEND_F0", "3SEND_B0", "0SEND_F1", "3SEND_B1"],
        (1, 0): ["2SEND_F0", "1SEND_B0", "2SEND_F1", "1SEND_B1"],
    }


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "interleaved"])
def test_torch_runs_the_same_transfers(name: str) -> None:
    """As its own lowering: the same sends and receives per rank, if not in the same places."""
    from torch.distributed.pipelining import schedules as torch_schedules

    stages, chunks = 4, 2 if name == "interleaved" else 1
    schedule = build_schedule(name, stages, 8, chunks)
    theirs = {
        rank: [torch_schedules._Action.from_str(str(action)) for action in actions]
        for rank, actions in enumerate(schedule.ranks)
    }
    with_transfers = torch_schedules._add_send_recv(theirs, lambda c: schedule.placement[c], stages * chunks)
    ours = lower(schedule)
    for rank in range(stages):
        assert sorted(map(repr, with_transfers[rank])) == sorted(map(str, ours.ranks[rank]))
    simulated = torch_schedules._simulate_comms_compute(
        {r: [torch_schedules._Action.from_str(str(a)) for a in actions] for r, actions in enumerate(ours.ranks)},
        lambda c: schedule.placement[c],
        stages * chunks,
    )
    assert sum(action is not None for actions in simulated.values() for action in actions) == sum(map(len, ours.ranks))
