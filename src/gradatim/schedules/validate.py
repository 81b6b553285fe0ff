"""Whether a schedule computes the training step, and whether its transfers can take place.

Three looks: what stands where (each forward and backward once, on its rank, after what the rank itself must have done),
whether the ranks can get through their computation together, and whether they can with the transfers as they stand,
carried out by both ends at once without buffers or tags: the strictest network there is (a rendezvous).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gradatim.errors import Problem
from gradatim.schedules.actions import Action, Kind, Schedule, peak_in_flight
from gradatim.schedules.lower import send_after

Where = tuple[int, int]
"""(rank, position in its actions)."""


def validate(schedule: Schedule, limit: Sequence[int] | int | None = None) -> list[Problem]:
    """Everything wrong with a schedule, each with its rank and position; an empty list means it can be run.

    ``limit`` is the most chunk-microbatches in flight, for all ranks or for each. Sends and receives are looked
    at where the schedule is lowered.
    """
    if problems := _outline(schedule):
        return problems  # nothing below can be looked up
    problems = _once_each(schedule)
    problems += _own_order(schedule)
    if schedule.lowered:
        problems += _transfers(schedule)
        problems += _pair_order(schedule)
        problems += _groups(schedule)
    problems = problems or _standstill(schedule)
    peaks = peak_in_flight(schedule)
    limits = [limit] * schedule.stages if isinstance(limit, int) else limit or peaks
    for rank, (peak, most) in enumerate(zip(peaks, limits, strict=True)):
        if peak > most:
            what = "more forward passes are in flight than memory allows"
            problems.append(Problem(where=f"rank {rank}", what=what, got=str(peak), allowed=f"at most {most}"))
    return problems


def _at(schedule: Schedule, where: Where) -> str:
    return f"rank {where[0]}, action {where[1]} ({schedule.ranks[where[0]][where[1]]})"


def _positions(schedule: Schedule) -> dict[Action, list[Where]]:
    found: dict[Action, list[Where]] = {}
    for rank, actions in enumerate(schedule.ranks):
        for i, action in enumerate(actions):
            found.setdefault(action, []).append((rank, i))
    return found


# --------------------------------------------------------------------------- what stands where


def _outline(schedule: Schedule) -> list[Problem]:
    """Sizes that contradict each other, chunks and microbatches that do not exist, transfers that lead nowhere."""
    problems = []
    chunks = schedule.stages * schedule.chunks
    sizes = [("ranks", len(schedule.ranks), schedule.stages), ("placement", len(schedule.placement), chunks)]
    if schedule.groups is not None:
        sizes.append(("groups", len(schedule.groups), schedule.stages))
    for where, length, expected in sizes:
        if length != expected:
            what = "this has another number of entries than the sizes call for"
            problems.append(Problem(where=where, what=what, got=str(length), allowed=str(expected)))
    held = Counter(schedule.placement)
    if any(held[rank] != schedule.chunks for rank in range(schedule.stages)):
        what = "each rank must hold as many chunks as any other"
        got = ", ".join(map(str, schedule.placement))
        problems.append(Problem(where="placement", what=what, got=got, allowed=f"{schedule.chunks} per rank"))
    for action, places in _positions(schedule).items():
        number, count = action.chunk, chunks
        what = "there is no such chunk"
        if action.microbatch not in range(schedule.microbatches):
            number, count, what = action.microbatch, schedule.microbatches, "there is no such microbatch"
        elif action.chunk in range(chunks) and not action.computes and action.other_chunk() not in range(chunks):
            number, what = action.other_chunk(), "there is no chunk at the other end"
        if number not in range(count):
            allowed = f"0 … {count - 1}"
            problems += [Problem(where=_at(schedule, at), what=what, got=str(number), allowed=allowed) for at in places]
    return problems


def _once_each(schedule: Schedule) -> list[Problem]:
    """Each chunk and microbatch forward once and backward once (whole or in halves), on the rank of the chunk."""
    problems = []
    found = _positions(schedule)
    for action, places in found.items():
        home = schedule.placement[action.chunk]
        for at in places:
            if at[0] != home:
                what = f"chunk {action.chunk} is on another rank"
                problems.append(
                    Problem(where=_at(schedule, at), what=what, got=f"rank {at[0]}", allowed=f"rank {home}")
                )
        problems += [
            Problem(where=_at(schedule, at), what="this stands here a second time", attempt="drop it")
            for at in places[1:]
        ]
    for chunk, rank in enumerate(schedule.placement):
        for microbatch in range(schedule.microbatches):

            def has(kind: Kind, chunk: int = chunk, microbatch: int = microbatch) -> bool:
                return Action(chunk, kind, microbatch) in found

            name = f"chunk {chunk}, microbatch {microbatch}"
            halves = {"I": has("I"), "W": has("W")}
            if not has("F"):
                problems.append(Problem(where=f"rank {rank}", what=f"{name} has no forward pass", allowed="one F"))
            if has("B") and any(halves.values()):
                what = f"{name} goes backward whole and in halves"
                problems.append(Problem(where=f"rank {rank}", what=what, allowed="one B, or one I and one W"))
            elif not has("B") and not all(halves.values()):
                missing = " and ".join(kind for kind, there in halves.items() if not there)
                what = f"{name} has no backward pass" if len(missing) > 1 else f"{name} lacks half of its backward pass"
                problems.append(
                    Problem(where=f"rank {rank}", what=what, got=f"no {missing}", allowed="one B, or one I and one W")
                )
    return problems


def _own_order(schedule: Schedule) -> list[Problem]:
    """What a rank does before it has itself produced, or received, what that needs."""
    problems = []
    for rank, actions in enumerate(schedule.ranks):
        here = {result for action in actions if (result := action.produces())}
        here |= {action.carried() for action in actions if not action.computes and not action.sends}
        had = set()
        for i, action in enumerate(actions):
            needed = (
                action.needs(schedule.last_chunk) if action.computes else [action.carried()] if action.sends else []
            )
            for result in needed:
                if result in here and result not in had:
                    letter, chunk, microbatch = result
                    produced = "activations" if letter == "F" else "gradient"
                    what = f"this needs chunk {chunk}'s {produced} of microbatch {microbatch}, which come later"
                    problems.append(Problem(where=_at(schedule, (rank, i)), what=what, attempt="move it behind"))
            if action.computes and (result := action.produces()):
                had.add(result)
            elif not action.computes and not action.sends:
                had.add(action.carried())
    return problems


# --------------------------------------------------------------------------- transfers


def _transfers(schedule: Schedule) -> list[Problem]:
    """Sends and receives that are missing, and those that nobody asked for."""
    problems = []
    found = _positions(schedule)
    wanted = {send for action in found if (send := send_after(schedule, action))}
    wanted |= {send.counterpart() for send in wanted}
    for action in sorted(wanted - set(found)):
        where = f"rank {schedule.placement[action.chunk]}"
        problems.append(Problem(where=where, what=f"the transfer {action} is missing", attempt="lower the schedule"))
    for action in sorted(set(found) - wanted):
        if not action.computes:
            same = schedule.peer(action) == schedule.placement[action.chunk]
            what = "both chunks are on this rank: there is nothing to transfer" if same else "nobody computes this"
            problems += [Problem(where=_at(schedule, at), what=what, attempt="drop it") for at in found[action]]
    return problems


def _pair_order(schedule: Schedule) -> list[Problem]:
    """Sends and receives that would meet the wrong counterpart, there being no tags."""
    problems = []
    sent: dict[tuple[int, int], list[Where]] = {}
    received: dict[tuple[int, int], list[Where]] = {}
    for rank, actions in enumerate(schedule.ranks):
        for i, action in enumerate(actions):
            if not action.computes and action.sends:
                sent.setdefault((rank, schedule.peer(action)), []).append((rank, i))
            elif not action.computes:
                received.setdefault((schedule.peer(action), rank), []).append((rank, i))
    for pair in sorted(set(sent) | set(received)):
        for k, (send, receive) in enumerate(zip(sent.get(pair, ()), received.get(pair, ()))):
            wanted = schedule.ranks[send[0]][send[1]].counterpart()
            if schedule.ranks[receive[0]][receive[1]] != wanted:
                what = f"transfer {k} from rank {pair[0]} to rank {pair[1]} meets another receive than its own"
                problems.append(Problem(where=_at(schedule, send), what=what, got=_at(schedule, receive)))
                break  # all later ones of the pair are shifted likewise
    return problems


def _groups(schedule: Schedule) -> list[Problem]:
    """Groups that are no slices of transfers with one peer, or that the peer does not have."""
    problems = []
    groups = schedule.groups or ()
    members: list[set[frozenset[Action]]] = [set() for _ in range(schedule.stages)]
    for rank, slices in enumerate(groups):
        end = 0
        for start, stop in slices:
            actions = schedule.ranks[rank][start:stop]
            sound = end <= start and start + 2 <= stop <= len(schedule.ranks[rank])
            if not sound or any(a.computes for a in actions) or len({schedule.peer(a) for a in actions}) != 1:
                what = "a group must be a slice of two or more transfers with one other rank"
                problems.append(Problem(where=f"rank {rank}, actions {start} to {stop}", what=what))
            end = max(end, stop)
            members[rank].add(frozenset(actions))
    for rank, slices in enumerate(() if problems else groups):
        for start, stop in slices:
            actions = schedule.ranks[rank][start:stop]
            peer = schedule.peer(actions[0])
            if frozenset(action.counterpart() for action in actions) not in members[peer]:
                what = f"rank {peer} does not group the other ends of these"
                problems.append(Problem(where=f"rank {rank}, actions {start} to {stop}", what=what))
    return problems


# --------------------------------------------------------------------------- getting through


def _standstill(schedule: Schedule) -> list[Problem]:
    """Where the ranks wait for one another for ever: at the computation, else at the transfers, apart or in groups."""
    from gradatim.errors import ConfigError
    from gradatim.schedules.rendezvous import deadlock
    from gradatim.schedules.simulate import simulate

    try:
        simulate(schedule.compute())
    except ConfigError as error:
        return list(error.problems)
    if not schedule.lowered:
        return []
    return deadlock(schedule, grouped=False) or deadlock(schedule, grouped=True)
