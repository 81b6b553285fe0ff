"""Schedules by name: what they can take, their order and memory. ``test_oracle.py`` compares with torch's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradatim.errors import ConfigError
from gradatim.schedules import SCHEDULES, Schedule, bubble_formula, build_schedule, schedule_problems
from gradatim.schedules.actions import peak_in_flight


@st.composite
def shapes(draw: st.DrawFn) -> tuple[str, int, int, int]:
    """Name, stages, microbatches, chunks of a possible schedule."""
    name = draw(st.sampled_from(list(SCHEDULES)))
    stages = draw(st.integers(1, 6))
    if name != "interleaved":
        return name, stages, draw(st.integers(1, 12)), 1
    return name, stages, stages * draw(st.integers(1, 3)), draw(st.integers(1, 3))


def test_the_talk_s_schedules_as_text() -> None:
    assert build_schedule("naive", 2, 2).text() == [["0F0", "0B0", "0F1", "0B1"], ["1F0", "1B0", "1F1", "1B1"]]
    assert build_schedule("gpipe", 2, 2).text() == [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1F1", "1B0", "1B1"]]
    assert build_schedule("1f1b", 2, 3).text()[0] == ["0F0", "0F1", "0B0", "0F2", "0B1", "0B2"]
    assert build_schedule("zero-bubble", 2, 2).text() == [
        ["0F0", "0F1", "0I0", "0W0", "0I1", "0W1"],
        ["1F0", "1I0", "1F1", "1I1", "1W0", "1W1"],
    ]


def expected_peak(schedule: Schedule) -> list[int]:
    p, m, v = schedule.stages, schedule.microbatches, schedule.chunks
    warm_up = {
        "naive": lambda r: 1,
        "gpipe": lambda r: m,
        "1f1b": lambda r: min(m, p - r),
        "interleaved": lambda r: min(m * v, (p - r - 1) * 2 + (v - 1) * p + 1),
        "zero-bubble": lambda r: min(m, p),
    }[schedule.name]
    return [warm_up(r) for r in range(p)]


@given(shapes())
def test_peak_in_flight(shape: tuple[str, int, int, int]) -> None:
    schedule = build_schedule(*shape)
    assert peak_in_flight(schedule) == expected_peak(schedule)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("interleave", 4, 8, 2), [("schedule", "interleaved")]),
        (("gpipe", 0, 8, 1), [("stages", "--stages 1")]),
        (
            ("1f1b", -1, 0, 0),
            [("stages", "--stages 1"), ("microbatches", "--microbatches 1"), ("chunks", "--chunks 1")],
        ),
        (("1f1b", 4, 8, 2), [("chunks", "--chunks 1, or interleaved")]),
        (("interleaved", 4, 6, 2), [("microbatches", "--microbatches 8")]),
        (("interleaved", 4, 9, 2), [("microbatches", "--microbatches 8")]),
        (("interleaved", 4, 3, 0), [("chunks", "--chunks 1"), ("microbatches", "--microbatches 4")]),
        (("gpipe", 10**6, 10**6, 1), [("stages microbatches chunks", "fewer microbatches: the pattern repeats")]),
    ],
)
def test_impossible_combinations_name_every_reason(arguments: Any, expected: list[tuple[str, str]]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_schedule(*arguments)
    assert [(problem.where, problem.attempt) for problem in caught.value.problems] == expected


def test_indivisible_microbatches_are_told_both_neighbours() -> None:
    (problem,) = schedule_problems("interleaved", 4, 6, 2)
    assert "6 is not divisible by 4" in problem.what
    assert problem.allowed == "4 or 8 (multiples of 4)"


def test_the_layout_s_schedules_are_all_here() -> None:
    from typing import get_args, get_type_hints

    from gradatim.config.settings import LayoutConfig

    assert set(get_args(get_type_hints(LayoutConfig)["schedule"])) <= set(SCHEDULES)


def test_where_no_formula_is_known() -> None:
    assert bubble_formula("zero-bubble", 4, 3) is None
    assert bubble_formula("zero-bubble", 4, 8, forward=0, backward=0) is None
