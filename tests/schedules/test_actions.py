"""Actions and their text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradatim.errors import ConfigError
from gradatim.schedules.actions import KINDS, Action, looped, v_shaped


@given(st.builds(Action, st.integers(0, 999), st.sampled_from(KINDS), st.integers(0, 9999)))
def test_text_both_ways(action: Action) -> None:
    assert Action.parse(str(action)) == action


@pytest.mark.parametrize(
    ("text", "what", "attempt"),
    [
        ("2X0", "no such kind", "2F0"),
        ("F0", "reads chunk, kind, microbatch", "0F0"),
        ("2f0", "reads chunk, kind, microbatch", "2F0"),
        ("1SENDF2", "no such kind", "1SEND_F2"),
        ("", "reads chunk, kind, microbatch", "0F0"),
        ("²F0", "reads chunk, kind, microbatch", "0F0"),
    ],
)
def test_broken_text_is_explained(text: str, what: str, attempt: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Action.parse(text)
    (problem,) = caught.value.problems
    assert what in problem.what
    assert problem.got == text
    assert problem.attempt == attempt


@given(st.integers(1, 9), st.sampled_from(["SEND_F", "RECV_F", "SEND_B", "RECV_B"]), st.integers(0, 9))
def test_a_transfer_has_two_ends_and_one_content(chunk: int, kind: str, microbatch: int) -> None:
    action = Action(chunk, kind, microbatch)  # type: ignore[arg-type]
    assert action.counterpart().counterpart() == action
    assert action.counterpart().carried() == action.carried()
    assert action.sends != action.counterpart().sends


def test_placements() -> None:
    assert [looped(3)(chunk) for chunk in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [v_shaped(3)(chunk) for chunk in range(6)] == [0, 1, 2, 2, 1, 0]
