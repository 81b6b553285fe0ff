"""When everything in a schedule happens: a simulation of discrete events.

Each rank begins its actions in order, each as soon as the rank is free and what it waits for has arrived; this is how
the bubbles of Narayanan et al. (2021), https://arxiv.org/abs/2104.04473, figures 3 and 4, come about. Transfers run
beside the computation: a result sent at time t is there at t + transfer. Numbers are added as they are given, so whole
numbers and fractions give exact answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gradatim.errors import ConfigError, Problem
from gradatim.schedules.actions import Action, Result, Schedule, peak_in_flight

Time = int | float | Fraction
"""Any unit, the same throughout."""

Duration = Callable[[Action], Time]
"""How long an action that computes takes; it may look at chunk, kind and microbatch."""


def durations(forward: Time | Sequence[Time] = 1, backward: Time | Sequence[Time] = 2) -> Duration:
    """Times of F and B: one number for all chunks, or one for each chunk; I and W take half of B's each."""

    def of(times: Time | Sequence[Time], chunk: int) -> Time:
        return times[chunk] if isinstance(times, Sequence) else times

    def duration(action: Action) -> Time:
        if action.kind == "F":
            return of(forward, action.chunk)
        whole = of(backward, action.chunk)
        if action.kind == "B":
            return whole
        if isinstance(whole, int):  # a whole number stays one where it can: fractions are exact too, but slow
            return whole // 2 if whole % 2 == 0 else Fraction(whole, 2)
        return whole / 2

    return duration


@dataclass(frozen=True, slots=True)
class Simulation:
    """When each action of a schedule starts and ends, and what follows from it."""

    schedule: Schedule
    """What was simulated."""
    spans: tuple[tuple[tuple[Time, Time], ...], ...]
    """(start, end) of each action of each rank, in the schedule's order. A send and its receive span the transfer."""
    order: tuple[tuple[int, int], ...]
    """(rank, position) of the actions that compute, each after all it waits for."""

    @property
    def makespan(self) -> Time:
        """From the first start to the last end."""
        return max((end for spans in self.spans for _, end in spans), default=0)

    @property
    def busy(self) -> list[Time]:
        """Time each rank computes."""
        return [
            sum(end - start for action, (start, end) in zip(actions, spans) if action.computes)
            for actions, spans in zip(self.schedule.ranks, self.spans)
        ]

    @property
    def ideal(self) -> Time:
        """The busiest rank's own busy time: nothing ends sooner."""
        return max(self.busy, default=0)

    @property
    def bubble_overhead(self) -> Time:
        """makespan/ideal − 1: the idle share of the step, against the work. Zero where there is no work."""
        makespan, ideal = self.makespan, self.ideal
        if not ideal:
            return 0
        exact = not isinstance(makespan, float) and not isinstance(ideal, float)
        return Fraction(makespan) / Fraction(ideal) - 1 if exact else makespan / ideal - 1

    @property
    def peak_in_flight(self) -> list[int]:
        """Most chunk-microbatches held at once, per rank, each from its F to its B or W."""
        return peak_in_flight(self.schedule)


def simulate(
    schedule: Schedule, duration: Duration | None = None, transfer: Time | Callable[[Action], Time] = 0
) -> Simulation:
    """Run the schedule with given times, ``durations()`` unless told otherwise.

    ``transfer`` is the time from the end of the producing action until its result is on another rank, or a function of
    the sending action (``2SEND_F0``) that tells it; within a rank nothing is transferred. Sends and receives, where the
    schedule has them, do not hold up a rank. Raises ConfigError where the schedule comes to a standstill.
    """
    duration = duration or durations()
    placement, last = schedule.placement, schedule.last_chunk
    done: dict[Result, Time] = {}  # when it was produced
    position = [0] * schedule.stages
    clock: list[Time] = [0] * schedule.stages
    spans: list[list[tuple[Time, Time]]] = [[(0, 0)] * len(actions) for actions in schedule.ranks]
    order: list[tuple[int, int]] = []
    waiting: dict[Result, list[int]] = {}  # ranks that wait for a result
    runnable = list(range(schedule.stages - 1, -1, -1))

    def arrival(result: Result, rank: int) -> Time:
        what, chunk, microbatch = result
        if placement[chunk] == rank:
            return done[result]
        if not callable(transfer):
            return done[result] + transfer
        return done[result] + transfer(Action(chunk, "SEND_F" if what == "F" else "SEND_B", microbatch))

    while runnable:
        rank = runnable.pop()
        actions = schedule.ranks[rank]
        while position[rank] < len(actions):
            action = actions[position[rank]]
            if action.computes:
                needed = action.needs(last)
                missing = [result for result in needed if result not in done]
                if missing:
                    waiting.setdefault(missing[0], []).append(rank)
                    break
                start = max([clock[rank], *[arrival(result, rank) for result in needed]])
                clock[rank] = start + duration(action)
                spans[rank][position[rank]] = (start, clock[rank])
                order.append((rank, position[rank]))
                produced = action.produces()
                if produced:
                    done[produced] = clock[rank]
                    runnable += waiting.pop(produced, [])
            position[rank] += 1
    problems = [
        _standstill(schedule, rank, position[rank], done)
        for rank in range(schedule.stages)
        if position[rank] < len(schedule.ranks[rank])
    ]
    for rank, actions in enumerate(schedule.ranks):
        for i, action in enumerate(actions):
            carried = None if action.computes else action.carried()
            if carried and carried in done and 0 <= action.other_chunk() <= last:
                spans[rank][i] = (done[carried], arrival(carried, schedule.peer(action) if action.sends else rank))
            elif carried and not problems:
                problems.append(
                    Problem(where=f"rank {rank}, action {i} ({action})", what="nobody computes what it moves")
                )
    if problems:
        raise ConfigError(*problems)
    return Simulation(schedule, tuple(map(tuple, spans)), tuple(order))


def _standstill(schedule: Schedule, rank: int, position: int, done: dict[Result, Time]) -> Problem:
    """What a rank that cannot go on waits for."""
    action = schedule.ranks[rank][position]
    missing = [result for result in action.needs(schedule.last_chunk) if result not in done]
    needed = ", ".join(f"{chunk}{'F' if what == 'F' else 'B (or I)'}{mb}" for what, chunk, mb in missing)
    return Problem(
        where=f"rank {rank}, action {position} ({action})",
        what=f"this never starts: it waits for {needed}",
        attempt="order the actions so that each comes after what it waits for",
    )
