"""The simulator, against the papers' formulas and against longest paths computed here another way."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.errors import ConfigError
from gradatim.schedules import Action, Schedule, bubble_formula, build_schedule, durations, simulate, v_shaped
from gradatim.schedules.simulate import Time

times = st.integers(1, 9) | st.fractions(Fraction(1, 4), 4, max_denominator=4)
counts = st.integers(1, 6)


@settings(deadline=None)
@given(st.sampled_from(["gpipe", "1f1b", "naive"]), counts, st.integers(1, 12), times, times)
def test_bubble_overhead_is_the_formula_s_exactly(name: str, p: int, m: int, forward: Any, backward: Any) -> None:
    simulation = simulate(build_schedule(name, p, m), durations(forward, backward))
    expected = p - 1 if name == "naive" else Fraction(p - 1, m)
    assert simulation.bubble_overhead == expected == bubble_formula(name, p, m)
    assert simulation.ideal == m * (forward + backward)


@settings(deadline=None)
@given(counts, st.integers(1, 3), st.integers(1, 4), times, times)
def test_interleaving_divides_the_bubble_by_the_chunks(
    p: int, rounds: int, v: int, forward: Any, backward: Any
) -> None:
    simulation = simulate(build_schedule("interleaved", p, p * rounds, v), durations(forward, backward))
    assert simulation.bubble_overhead == Fraction(p - 1, v * p * rounds)
    assert simulation.bubble_overhead == bubble_formula("interleaved", p, p * rounds, v)


@settings(deadline=None)
@given(counts, st.integers(0, 8), times)
def test_zero_bubble_leaves_a_third_of_the_bubble(p: int, more: int, time: Any) -> None:
    m = p + more
    simulation = simulate(build_schedule("zero-bubble", p, m), durations(time, 2 * time))
    plain = simulate(build_schedule("1f1b", p, m), durations(time, 2 * time))
    assert simulation.makespan == (3 * m + p - 1) * time  # (p−1)(F + I − W) of bubble: Qi et al., table 1
    assert 3 * simulation.bubble_overhead == plain.bubble_overhead == Fraction(p - 1, m)
    assert simulation.bubble_overhead == bubble_formula("zero-bubble", p, m, forward=time, backward=2 * time)
    assert max(simulation.peak_in_flight) == max(plain.peak_in_flight)


@settings(deadline=None)
@given(counts, st.integers(0, 8), times, times)
def test_zero_bubble_s_formula_holds_and_its_bubble_is_never_more(
    p: int, more: int, forward: Any, backward: Any
) -> None:
    duration = durations(forward, backward)
    simulation = simulate(build_schedule("zero-bubble", p, p + more), duration)
    plain = simulate(build_schedule("1f1b", p, p + more), duration)
    formula = bubble_formula("zero-bubble", p, p + more, forward=forward, backward=backward)
    assert simulation.bubble_overhead == formula
    # (p−1)(F + I − W), as I = W; of a forward pass shorter than that, (p−1) I
    assert simulation.makespan - simulation.ideal == (p - 1) * max(forward, Fraction(backward) / 2)
    assert simulation.makespan <= plain.makespan


def test_floats_give_the_formula_too_where_they_are_exact() -> None:
    assert simulate(build_schedule("1f1b", 4, 8), durations(1.0, 2.0)).bubble_overhead == 3 / 8
    assert simulate(build_schedule("interleaved", 4, 8, 2), durations(1.0, 2.0)).bubble_overhead == 3 / 16


def longest_path(schedule: Schedule, duration: Any, transfer: Time) -> dict[Action, Time]:
    """End of each action by the recurrence over its predecessors, written independently of the simulator."""
    where = {action: (rank, i) for rank, actions in enumerate(schedule.ranks) for i, action in enumerate(actions)}

    def on(chunk: int, kinds: str, microbatch: int) -> Action | None:
        return next((a for kind in kinds if (a := Action(chunk, kind, microbatch)) in where), None)  # type: ignore[arg-type]

    @cache
    def end(action: Action) -> Time:
        rank, i = where[action]
        before: list[Time] = [end(schedule.ranks[rank][i - 1])] if i else [0]
        forward_from = on(action.chunk - 1, "F", action.microbatch)
        backward_from = on(action.chunk + 1, "BI", action.microbatch)
        source = {"F": forward_from, "B": backward_from, "I": backward_from, "W": None}[action.kind]
        if source:
            before.append(end(source) + (0 if where[source][0] == rank else transfer))
        return max(before) + duration(action)

    return {action: end(action) for action in where}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_uneven_chunks_and_slow_transfers_against_longest_paths(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["gpipe", "1f1b", "interleaved", "zero-bubble"]))
    p, v = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)) if name == "interleaved" else 1
    m = p * data.draw(st.integers(1, 2)) if name == "interleaved" else data.draw(st.integers(1, 6))
    table = data.draw(st.lists(st.integers(0, 7), min_size=2 * p * v, max_size=2 * p * v))
    per_chunk = durations(table[: p * v], table[p * v :])

    def duration(action: Action) -> Time:
        return per_chunk(action) + action.microbatch % 2  # microbatches differ too

    transfer = data.draw(st.integers(0, 5))
    schedule = build_schedule(name, p, m, v)
    simulation = simulate(schedule, duration, transfer)
    expected = longest_path(schedule, duration, transfer)
    for actions, spans in zip(schedule.ranks, simulation.spans):
        for action, (start, end) in zip(actions, spans):
            assert end == expected[action]
            assert end - start == duration(action)
    assert simulation.makespan == max(expected.values())
    assert simulation.ideal == max(sum(map(duration, actions)) for actions in schedule.ranks)
    assert simulate(schedule, duration, lambda send: transfer).spans == simulation.spans


def test_a_v_shaped_pipeline_turns_round_without_a_transfer() -> None:
    ranks = (("0F0", "3F0", "3B0", "0B0"), ("1F0", "2F0", "2B0", "1B0"))
    schedule = Schedule(
        name="v",
        stages=2,
        chunks=2,
        microbatches=1,
        placement=tuple(v_shaped(2)(chunk) for chunk in range(4)),
        ranks=tuple(tuple(map(Action.parse, rank)) for rank in ranks),
    )
    assert simulate(schedule, transfer=10).makespan == 4 + 8 + 4 * 10


def test_a_standstill_is_explained() -> None:
    schedule = Schedule(
        name="crossed",
        stages=2,
        chunks=1,
        microbatches=1,
        placement=(0, 1),
        ranks=((Action(0, "B", 0), Action(0, "F", 0)), (Action(1, "F", 0), Action(1, "B", 0))),
    )
    with pytest.raises(ConfigError) as caught:
        simulate(schedule)
    assert [problem.where for problem in caught.value.problems] == ["rank 0, action 0 (0B0)", "rank 1, action 0 (1F0)"]
    assert "waits for 0F0, 1B (or I)0" in caught.value.problems[0].what
