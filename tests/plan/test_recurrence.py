"""The compiled recurrence against the simulator that the pictures and the pipeline use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.plan import recurrence
from gradatim.plan.recurrence import step_seconds
from gradatim.schedules import build_schedule, durations, simulate

NAMES = ("naive", "gpipe", "1f1b", "interleaved", "zero-bubble")
SECONDS = st.floats(0.1, 3.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_simulation(data: st.DataObject) -> None:
    name, stages = data.draw(st.sampled_from(NAMES)), data.draw(st.integers(2, 4))
    chunks = data.draw(st.integers(1, 3)) if name == "interleaved" else 1
    microbatches = data.draw(st.integers(1, 5)) * (stages if name == "interleaved" else 1)
    forward = data.draw(st.lists(SECONDS, min_size=stages * chunks, max_size=stages * chunks))
    backward = data.draw(st.lists(SECONDS, min_size=stages * chunks, max_size=stages * chunks))
    transfer = data.draw(st.sampled_from([0.0, 0.25]))
    whole = simulate(build_schedule(name, stages, microbatches, chunks), durations(forward, backward), transfer)
    ours = step_seconds(name, stages, microbatches, chunks, forward, backward, transfer)
    assert ours == pytest.approx(float(whole.makespan), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "stages", "microbatches", "chunks"),
    [("1f1b", 4, 50, 1), ("gpipe", 3, 41, 1), ("interleaved", 4, 48, 3), ("zero-bubble", 4, 37, 1)],
)
def test_long_steps_repeat_themselves(
    name: str, stages: int, microbatches: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a first chunk that embeds and a last that predicts, the shortened run is within half a per cent."""
    forward = [1.1] + [1.0] * (stages * chunks - 2) + [1.3]
    backward = [2.2] + [2.1] * (stages * chunks - 2) + [2.6]
    whole = step_seconds(name, stages, microbatches, chunks, forward, backward, 0.1)
    monkeypatch.setattr(recurrence, "WHOLE", 0)
    assert step_seconds(name, stages, microbatches, chunks, forward, backward, 0.1) == pytest.approx(whole, rel=5e-3)


def test_one_stage_needs_no_schedule() -> None:
    assert step_seconds("1f1b", 1, 7, 1, [1.0], [2.0]) == 21.0
