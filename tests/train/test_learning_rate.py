"""Every schedule against its closed form."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradatim.config.settings import OptimizerConfig
from gradatim.train.learning_rate import learning_rate

STEPS, WARMUP, PEAK, END = 110, 10, 1e-2, 1e-3


def rate(schedule: str, step: int, **fields: object) -> float:
    config = OptimizerConfig(lr=PEAK, min_lr=END, warmup=WARMUP, schedule=schedule, **fields)  # type: ignore[arg-type]
    return learning_rate(config, STEPS, step)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse-sqrt", "warmup-stable-decay"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule: str) -> None:
    assert [rate(schedule, step) for step in range(WARMUP)] == pytest.approx([PEAK * (s + 1) / 10 for s in range(10)])
    assert rate(schedule, WARMUP) == pytest.approx(PEAK, rel=0.06)


def test_closed_forms() -> None:
    assert rate("constant", 60) == PEAK
    assert rate("linear", 60) == pytest.approx((PEAK + END) / 2)
    assert rate("cosine", 60) == pytest.approx((PEAK + END) / 2)
    assert rate("cosine", 35) == pytest.approx(END + (PEAK - END) * (1 + math.cos(math.pi / 4)) / 2)
    assert rate("linear", STEPS) == rate("cosine", STEPS) == pytest.approx(END)
    assert rate("inverse-sqrt", 4 * WARMUP - 1) == pytest.approx(PEAK / 2)
    assert rate("warmup-stable-decay", 89, decay_steps=20) == PEAK
    assert rate("warmup-stable-decay", 100, decay_steps=20) == pytest.approx((PEAK + END) / 2)
    assert rate("warmup-stable-decay", STEPS, decay_steps=20) == pytest.approx(END)


@given(
    st.sampled_from(["constant", "linear", "cosine", "inverse-sqrt", "warmup-stable-decay"]),
    st.integers(1, 500),
    st.integers(0, 20),
    st.integers(0, 499),
)
def test_between_zero_and_the_peak_and_never_rising_after_warm_up(
    schedule: str, steps: int, warmup: int, step: int
) -> None:
    config = OptimizerConfig(lr=1.0, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    step = min(step, steps - 1)
    here, then = learning_rate(config, steps, step), learning_rate(config, steps, step + 1)
    assert 0 <= here <= 1
    if step >= warmup:
        assert then <= here + 1e-12
