"""A schedule by its name, what each can take, and the closed forms of their bubbles.

The forms are those of Narayanan et al. (2021), https://arxiv.org/abs/2104.04473, section 2.2, and for zero-bubble of
Qi et al. (2023), https://arxiv.org/abs/2401.10241, table 1; they hold for equal chunks and free transfers.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from gradatim.config.decode import nearest
from gradatim.errors import ConfigError, Problem
from gradatim.schedules.actions import Action, Schedule, looped
from gradatim.schedules.interleaved import interleaved
from gradatim.schedules.one_chunk import gpipe, naive, one_forward_one_backward
from gradatim.schedules.zero_bubble import zero_bubble

SCHEDULES: dict[str, Callable[[int, int, int, int], list[Action]]] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "interleaved": interleaved,
    "zero-bubble": zero_bubble,
}
"""Name: the function from (rank, stages, microbatches, chunks) to that rank's actions."""

LARGEST = 2_000_000
"""Most actions of a schedule: beyond, a picture or a simulation would take the machine's memory."""


def build_schedule(name: str, stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """The compute actions of every rank; ``lower`` adds the transfers.

    ``stages`` counts ranks, ``chunks`` the model chunks on each. Raises ConfigError with every reason why not.
    """
    problems = schedule_problems(name, stages, microbatches, chunks)
    if problems:
        raise ConfigError(*problems)
    place = looped(stages)
    return Schedule(
        name=name,
        stages=stages,
        chunks=chunks,
        microbatches=microbatches,
        placement=tuple(place(chunk) for chunk in range(stages * chunks)),
        ranks=tuple(tuple(SCHEDULES[name](rank, stages, microbatches, chunks)) for rank in range(stages)),
    )


def schedule_problems(name: str, stages: int, microbatches: int, chunks: int = 1) -> list[Problem]:
    """Every reason why a schedule cannot be had, each with the nearest numbers that would do."""
    problems = []
    if name not in SCHEDULES:
        problems.append(
            Problem(
                where="schedule",
                what="there is no such schedule",
                got=name,
                allowed=", ".join(SCHEDULES),
                attempt=nearest(name, SCHEDULES) or "1f1b",
            )
        )
    counts = {"stages": stages, "microbatches": microbatches, "chunks": chunks}
    for field, count in counts.items():
        if count < 1:
            problems.append(
                Problem(
                    where=field,
                    what="there must be at least one",
                    got=str(count),
                    allowed="1, 2, 3, …",
                    attempt=f"--{field} 1",
                )
            )
    if name in SCHEDULES and name != "interleaved" and chunks > 1:
        problems.append(
            Problem(
                where="chunks",
                what=f"{name} holds one chunk per rank; only interleaved takes several",
                got=str(chunks),
                allowed="1, or another schedule",
                attempt="--chunks 1, or interleaved",
            )
        )
    if name == "interleaved" and stages > 0 and microbatches > 0 and microbatches % stages:
        below, above = microbatches // stages * stages, (microbatches // stages + 1) * stages
        fits = f"{below} or {above}" if below else f"{above}"
        near = above if not below or above - microbatches <= microbatches - below else below
        problems.append(
            Problem(
                where="microbatches",
                what=f"interleaved sends microbatches in groups of one per stage: {microbatches} is not divisible "
                f"by {stages}",
                got=str(microbatches),
                allowed=f"{fits} (multiples of {stages})",
                attempt=f"--microbatches {near}",
            )
        )
    total = stages * microbatches * chunks * (3 if name == "zero-bubble" else 2)
    if min(counts.values()) > 0 and total > LARGEST:
        problems.append(
            Problem(
                where="stages microbatches chunks",
                what=f"this schedule has {total:,} actions",
                got=f"{stages:,} · {microbatches:,} · {chunks:,}",
                allowed=f"at most {LARGEST:,} actions",
                attempt="fewer microbatches: the pattern repeats",
            )
        )
    return problems


def bubble_formula(
    name: str,
    stages: int,
    microbatches: int,
    chunks: int = 1,
    *,
    forward: Fraction | int = 1,
    backward: Fraction | int = 2,
) -> Fraction | None:
    """The bubble overhead (makespan/ideal − 1) by the papers' formula, for equal chunks and free transfers.

    ``forward`` and ``backward`` are one chunk's times for one microbatch, in any one unit; only zero-bubble's overhead
    depends on them, and on which is longer, F or I = W. None where no formula is known: zero-bubble needs at least as
    many microbatches as stages.
    """
    p, m, v = stages, microbatches, chunks
    if name == "naive":
        return Fraction(p - 1)
    if name in ("gpipe", "1f1b", "interleaved"):
        return Fraction(p - 1, v * m)
    if name == "zero-bubble" and m >= p and forward + backward:
        longer = max(Fraction(forward), Fraction(backward) / 2)  # (p−1)(F + I − W) of bubble, and I = W; if F < I, I
        return Fraction(p - 1, m) * longer / (forward + backward)
    return None


def formula_text(name: str, *, forward: Fraction | int = 1, backward: Fraction | int = 2) -> str:
    """The formula that ``bubble_formula`` evaluates, as text; B is a whole backward pass."""
    longer = "F" if 2 * forward >= backward else "(B/2)"
    texts = {"naive": "p-1", "interleaved": "(p-1)/(v m)", "zero-bubble": f"(p-1)/m * {longer}/(F+B)"}
    return texts.get(name, "(p-1)/m")
