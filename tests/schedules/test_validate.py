"""The validator finds each kind of corruption, and says where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.schedules import Action, Schedule, build_schedule, lower, validate
from gradatim.schedules.rendezvous import deadlock

Ranks = list[list[Action]]


def corrupted(change: Callable[[Ranks], object], schedule: Schedule | None = None, **fields: object) -> list[str]:
    """The problems, as text, of 1F1B on three ranks after a change to its lists."""
    schedule = schedule or build_schedule("1f1b", 3, 4)
    ranks = [list(actions) for actions in schedule.ranks]
    change(ranks)
    changed = dataclasses.replace(schedule, ranks=tuple(map(tuple, ranks)), **fields)  # type: ignore[arg-type]
    return [f"{problem.where}: {problem.what}" for problem in validate(changed)]


def parse(*rows: str) -> tuple[tuple[Action, ...], ...]:
    return tuple(tuple(map(Action.parse, row.split())) for row in rows)


def nothing(_: Ranks) -> None: ...


def test_computation() -> None:
    assert corrupted(nothing) == []
    assert corrupted(lambda ranks: ranks[1].pop(0)) == ["rank 1: chunk 1, microbatch 0 has no forward pass"]
    assert corrupted(lambda ranks: ranks[2].pop()) == ["rank 2: chunk 2, microbatch 3 has no backward pass"]
    assert corrupted(lambda ranks: ranks[0].append(ranks[0][0])) == [
        "rank 0, action 8 (0F0): this stands here a second time"
    ]
    assert corrupted(lambda ranks: ranks[0].append(ranks[1].pop())) == [
        "rank 0, action 8 (1B3): chunk 1 is on another rank",
        "rank 0, action 7 (0B3): this needs chunk 1's gradient of microbatch 3, which come later",
    ]
    assert corrupted(lambda ranks: ranks[0].append(Action(3, "F", 0))) == [
        "rank 0, action 8 (3F0): there is no such chunk"
    ]
    assert corrupted(lambda ranks: ranks[0].append(Action(0, "F", 4))) == [
        "rank 0, action 8 (0F4): there is no such microbatch"
    ]
    assert corrupted(lambda ranks: ranks[2].insert(0, ranks[2].pop(1))) == [
        "rank 2, action 0 (2B0): this needs chunk 2's activations of microbatch 0, which come later"
    ]


def test_halves() -> None:
    zero_bubble = build_schedule("zero-bubble", 2, 2)
    assert corrupted(lambda ranks: ranks[0].append(Action(0, "B", 0)), zero_bubble) == [
        "rank 0: chunk 0, microbatch 0 goes backward whole and in halves"
    ]
    assert corrupted(lambda ranks: ranks[0].remove(Action(0, "W", 1)), zero_bubble) == [
        "rank 0: chunk 0, microbatch 1 lacks half of its backward pass"
    ]
    assert corrupted(lambda ranks: ranks[0].insert(0, ranks[0].pop()), zero_bubble) == [
        "rank 0, action 0 (0W1): this needs chunk 0's gradient of microbatch 1, which come later"
    ]


def test_all_problems_come_at_once() -> None:
    def change(ranks: Ranks) -> None:
        ranks[0].pop()
        ranks[1].append(Action(1, "F", 2))
        ranks[2].pop(0)

    assert [text.split(":")[0] for text in corrupted(change)] == ["rank 1, action 8 (1F2)", "rank 0", "rank 2"]


def test_a_standstill_of_the_computation() -> None:
    def change(ranks: Ranks) -> None:  # each rank's own order is sound
        ranks[0][:] = [Action(0, kind, i) for i in range(4) for kind in "FB"]  # type: ignore[arg-type]
        ranks[1][:] = [*(Action(1, "F", i) for i in range(4)), *(Action(1, "B", i) for i in range(4))]

    texts = corrupted(change)
    assert [text.split(":")[0] for text in texts] == [
        "rank 0, action 1 (0B0)",
        "rank 1, action 1 (1F1)",
        "rank 2, action 2 (2F1)",
    ]
    assert texts[1].endswith("this never starts: it waits for 0F1")


def test_memory() -> None:
    schedule = build_schedule("1f1b", 3, 4)
    assert validate(schedule, 3) == validate(schedule, [3, 2, 1]) == []
    (problem,) = validate(schedule, [2, 2, 1])
    assert (problem.where, problem.got, problem.allowed) == ("rank 0", "3", "at most 2")


def test_sizes() -> None:
    assert "placement: this has another number" in corrupted(nothing, placement=(0, 1))[0]
    assert "placement: each rank must hold" in corrupted(nothing, placement=(0, 1, 1))[0]
    assert "ranks: this has another number" in corrupted(lambda ranks: ranks.pop())[0]


def test_transfers() -> None:
    lowered = lower(build_schedule("gpipe", 2, 2))
    first = Action(0, "SEND_F", 0)
    assert corrupted(nothing, lowered) == []
    missing = corrupted(lambda ranks: ranks[0].remove(first), lowered)
    assert missing[0] == "rank 0: the transfer 0SEND_F0 is missing"
    assert "transfer 0 from rank 0 to rank 1 meets another receive" in missing[1]
    stray = corrupted(lambda ranks: ranks[0].append(Action(0, "RECV_F", 0)), lowered)
    assert stray == ["rank 0, action 8 (0RECV_F0): there is no chunk at the other end"]
    assert corrupted(lambda ranks: ranks[0].insert(0, ranks[0].pop(1)), lowered) == [
        "rank 0, action 0 (0SEND_F0): this needs chunk 0's activations of microbatch 0, which come later"
    ]
    late = corrupted(lambda ranks: ranks[1].insert(3, ranks[1].pop(0)), lowered)
    assert late[0] == "rank 1, action 1 (1F0): this needs chunk 0's activations of microbatch 0, which come later"


def test_a_transfer_within_a_rank() -> None:
    single = lower(build_schedule("interleaved", 1, 1, 2))
    texts = corrupted(lambda ranks: ranks[0].insert(1, Action(0, "SEND_F", 0)), single)
    assert texts == ["rank 0, action 1 (0SEND_F0): both chunks are on this rank: there is nothing to transfer"]


def test_receives_in_another_order_than_the_sends() -> None:
    lowered = lower(build_schedule("gpipe", 2, 2))
    assert [str(action) for action in lowered.ranks[1][:2]] == ["1RECV_F0", "1RECV_F1"]
    texts = corrupted(lambda ranks: ranks[1].insert(0, ranks[1].pop(1)), lowered)
    assert texts == ["rank 0, action 1 (0SEND_F0): transfer 0 from rank 0 to rank 1 meets another receive than its own"]


def test_groups_must_agree() -> None:
    lowered = lower(build_schedule("1f1b", 2, 3))
    assert lowered.groups == (((7, 9),), ((7, 9),)), lowered.text()
    assert corrupted(nothing, lowered, groups=(((7, 9),), ())) == [
        "rank 0, actions 7 to 9: rank 1 does not group the other ends of these"
    ]
    assert "a group must be a slice" in corrupted(nothing, lowered, groups=(((6, 9),), ((7, 9),)))[0]


CROSSED = Schedule(
    name="crossed",
    stages=2,
    chunks=1,
    microbatches=2,
    placement=(0, 1),
    ranks=parse(
        "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1",
        "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1",
    ),
    groups=((), ()),
)
"""Both ranks send before they receive, as Megatron's 1F1B would without its pairs of send and receive."""


def test_a_deadlock_made_by_hand_is_caught() -> None:
    first, second = validate(CROSSED)
    assert first.where == "rank 0, action 3 (0SEND_F1)"
    assert first.what == "this transfer waits for ever: rank 1 is at 1SEND_B0"
    assert second.where == "rank 1, action 3 (1SEND_B0)"
    assert second.what == "this transfer waits for ever: rank 0 is at 0SEND_F1"


def test_a_group_undoes_the_deadlock() -> None:
    ranks = parse(
        "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1", "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1"
    )
    grouped = dataclasses.replace(CROSSED, ranks=ranks, groups=(((3, 5),), ((3, 5),)))
    assert deadlock(grouped, grouped=True) == []
    assert len(deadlock(grouped, grouped=False)) == 2


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_changed_order_never_passes_and_then_hangs(data: st.DataObject) -> None:
    """Swap two neighbours anywhere: either the validator objects or a blocking run by threads' rules gets through."""
    name = data.draw(st.sampled_from(["gpipe", "1f1b", "zero-bubble"]))
    lowered = lower(build_schedule(name, 3, 3))
    ranks = [list(actions) for actions in lowered.ranks]
    rank = data.draw(st.integers(0, 2))
    i = data.draw(st.integers(0, len(ranks[rank]) - 2))
    ranks[rank][i : i + 2] = reversed(ranks[rank][i : i + 2])
    changed = dataclasses.replace(lowered, ranks=tuple(map(tuple, ranks)), groups=((), (), ()))
    assert bool(validate(changed)) != _gets_through(changed)


def _gets_through(schedule: Schedule) -> bool:
    """Blocking transfers that carry what they carry, stepped through two at a time, written independently."""
    left = [list(actions) for actions in schedule.ranks]
    got: list[set[object]] = [set() for _ in left]
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(left):
            if actions and actions[0].computes:
                action = actions[0]
                if all(result in got[rank] for result in action.needs(schedule.last_chunk)):
                    got[rank].add(action.produces())
                    moved = bool(actions.pop(0))
            elif actions and actions[0].sends and actions[0].carried() in got[rank]:
                peer = schedule.peer(actions[0])
                if left[peer] and left[peer][0] == actions[0].counterpart():
                    got[peer].add(actions.pop(0).carried())
                    moved = bool(left[peer].pop(0))
    return not any(left)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_rank_that_ended_early_is_named(grouped: bool) -> None:
    short = dataclasses.replace(CROSSED, ranks=parse("0F0 0SEND_F0 0SEND_F1", "1RECV_F0 1F0 1B0"))
    (problem,) = deadlock(short, grouped=grouped)
    assert problem.what == "this transfer waits for ever: rank 1 has ended"
