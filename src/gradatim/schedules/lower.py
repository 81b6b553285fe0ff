"""Lowering: the sends and receives that a schedule's computation calls for, in an order that cannot deadlock.

Transfers between two ranks have no tags under NCCL: the k-th send from a to b meets the k-th receive on b from a, and a
rank that waits for the wrong one waits for ever. So all actions are put into one order, that of their ends in a
simulation, each transfer right after the action that produces it, and every rank takes its part of this one order.
Whoever works through the parts cannot get stuck, even with transfers that block both ends until both are there: the
first transfer not yet made is next on both of its ranks. That a sender places its peer's receive is the idea of
torch.distributed.pipelining; the order by ends is ours.

What this gives an executor:

- A receive stands before the action that runs while its content is being produced, so it is posted (without waiting for
  it) before it can arrive. Where each direction has a channel of its own (gloo), it may be posted earlier still.
- Wait for a receive only before the action that uses it, for a send only to free its buffer or at the end.
- Transfers in opposite directions between two ranks at one time form a group, to be issued in one batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gradatim.schedules.actions import Action, Schedule
from gradatim.schedules.simulate import Duration, Simulation, simulate


def lower(schedule: Schedule, duration: Duration | None = None) -> Schedule:
    """Add sends and receives to a schedule's computation, and mark the groups.

    ``duration`` gives the times (of any unit) by which the transfers are ordered, F = 1 and B = 2 unless told; every
    choice gives a schedule that works, a good one has fewer waits. A chunk whose neighbour is on the same rank sends
    nothing. Transfers that stand in the schedule already are placed anew. Raises ConfigError where the schedule comes
    to a standstill.
    """
    schedule = schedule.compute()
    ranks: list[list[Action]] = [[] for _ in range(schedule.stages)]
    groups: list[list[tuple[int, int]]] = [[] for _ in range(schedule.stages)]
    for moment in _moments(simulate(schedule, duration)):
        sends = {rank: send for rank, action in moment.items() if (send := send_after(schedule, action))}
        targets = {rank: schedule.peer(send) for rank, send in sends.items()}
        for members in _upstream_first(list(moment), targets):
            for rank in members:
                ranks[rank].append(moment[rank])
            starts = [len(ranks[rank]) for rank in members]
            for rank in members:
                if rank in sends:
                    ranks[rank].append(sends[rank])
                    ranks[targets[rank]].append(sends[rank].counterpart())
            if len(members) == 2:
                for rank, start in zip(members, starts):
                    groups[rank].append((start, len(ranks[rank])))
    return dataclasses.replace(schedule, ranks=tuple(map(tuple, ranks)), groups=tuple(map(tuple, groups)))


def send_after(schedule: Schedule, action: Action) -> Action | None:
    """The send that an action's result calls for: none of W, at the ends of the model, or within a rank."""
    produced = action.produces()
    if not produced:
        return None
    what, chunk, microbatch = produced
    send = Action(chunk, "SEND_F" if what == "F" else "SEND_B", microbatch)
    if not 0 <= send.other_chunk() <= schedule.last_chunk or schedule.peer(send) == schedule.placement[chunk]:
        return None
    return send


def _moments(simulation: Simulation) -> Iterator[dict[int, Action]]:
    """The actions by their ends: those that end together, one per rank, none needing another of them."""
    schedule = simulation.schedule
    timed = [(simulation.spans[rank][position][1], rank, position) for rank, position in simulation.order]
    moment: dict[int, Action] = {}
    now = None
    for end, rank, position in sorted(timed, key=lambda item: item[0]):  # stable: each after all it waits for
        action = schedule.ranks[rank][position]
        results = {other.produces() for other in moment.values()}
        if end != now or rank in moment or not results.isdisjoint(action.needs(schedule.last_chunk)):
            if moment:
                yield moment
            moment, now = {}, end
        moment[rank] = action
    if moment:
        yield moment


def _upstream_first(ranks: list[int], targets: dict[int, int]) -> Iterator[tuple[int, ...]]:
    """Ranks whose actions end together, senders before their targets; two that send to each other come as one.

    A receive then stands before the action that ends as it is sent. In a ring of three or more, the lowest goes first.
    """
    unit: dict[int, tuple[int, ...]] = {rank: (rank,) for rank in ranks}
    for rank in ranks:
        peer = targets.get(rank)
        if peer is not None and targets.get(peer) == rank:
            unit[rank] = (min(rank, peer), max(rank, peer))
    left = sorted(set(unit.values()))
    while left:
        aimed_at = {unit.get(targets.get(rank, -1)) for members in left for rank in members if len(members) == 1}
        free = [members for members in left if members not in aimed_at] or left[:1]
        yield from free
        left = [members for members in left if members not in free]
