"""Running a lowered schedule in thought, over the strictest network: transfers that block, unbuffered and without tags.

A send goes through only while the other rank stands at a receive from this one, as in an unbuffered ``send`` of MPI
(the MPI standard's rendezvous) or NCCL's kernels; what cannot hang here can hang nowhere.
"""

from __future__ import annotations

from gradatim.errors import Problem
from gradatim.schedules.actions import Action, Schedule


def deadlock(schedule: Schedule, *, grouped: bool) -> list[Problem]:
    """Where ranks block each other for ever, one problem per blocked rank; none if all get through.

    ``grouped`` has the transfers of a group under way together, as the executor does; otherwise each by itself.
    """
    batches = [
        list(schedule.batches(rank)) if grouped else [(action,) for action in schedule.ranks[rank]]
        for rank in range(schedule.stages)
    ]
    place = [0] * schedule.stages
    left: list[list[Action]] = [[] for _ in range(schedule.stages)]  # transfers of the present batch, not yet made

    def advance(rank: int) -> None:
        """Go on to the rank's next transfers; computation takes no time and waits for nothing here."""
        while place[rank] < len(batches[rank]):
            left[rank] = [action for action in batches[rank][place[rank]] if not action.computes]
            if left[rank]:
                return
            place[rank] += 1

    def meeting(rank: int) -> tuple[Action, int, Action] | None:
        """A transfer of the rank whose other end is ready, that other rank, and its end. Without tags, in order."""
        seen = set()
        for action in left[rank]:
            peer = schedule.peer(action)
            if (peer, action.sends) in seen:
                continue  # an earlier one of this direction comes first
            seen.add((peer, action.sends))
            for other in left[peer]:
                if schedule.peer(other) == rank and other.sends != action.sends:
                    return action, peer, other
        return None

    for rank in range(schedule.stages):
        advance(rank)
    awake = list(range(schedule.stages))
    while awake:
        rank = awake.pop()
        found = meeting(rank)
        if not found:
            continue
        action, peer, other = found
        left[rank].remove(action)
        left[peer].remove(other)
        for end in (rank, peer):
            if not left[end]:
                place[end] += 1
                advance(end)
        awake += [rank, peer]
    return [_blocked(schedule, rank, left) for rank in range(schedule.stages) if left[rank]]


def _blocked(schedule: Schedule, rank: int, left: list[list[Action]]) -> Problem:
    """What a rank waits for, and what the other rank is at meanwhile."""
    action = left[rank][0]
    peer = schedule.peer(action)
    at = f"is at {left[peer][0]}" if left[peer] else "has ended"
    return Problem(
        where=f"rank {rank}, action {schedule.ranks[rank].index(action)} ({action})",
        what=f"this transfer waits for ever: rank {peer} {at}",
        got=str(left[peer][0]) if left[peer] else "",
        allowed=str(action.counterpart()),
        attempt="lower the schedule anew",
    )
