"""Sums of gradients: begun in order, while the backward pass runs, once a step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from pool import Pool

OfWorld = Callable[[int], Pool]


@pytest.mark.parametrize("zero", [0, 1])
def test_sums_begin_during_the_last_backward_pass_and_in_order(zero: int, pool: OfWorld) -> None:
    found = pool(2).run("work_gradients:order", zero)
    assert found[0] == found[1]
    first, last = found[0]
    assert not [event for event in first if event.startswith("sum")], "accumulation communicates once"
    sums = [event for event in last if event.startswith("sum")]
    assert sums == [f"sum {i}" for i in range(len(sums))]
    assert last.index("sum 0") < last.index("backward 2"), "the last layer's sum before the next layer's backward pass"
    assert last.index("sum 4") < last.index("backward 0")


@pytest.mark.parametrize("zero", [0, 1])
def test_sums_begin_while_weight_gradients_are_computed_apart(zero: int, pool: OfWorld) -> None:
    apart = pool(2).run("work_gradients:queued", zero, True)
    together = pool(2).run("work_gradients:queued", zero, False)
    for (events, ours), (_, theirs) in zip(apart, together):
        # What finished with the activations' gradients is final when the first weight comes; then each bucket in turn.
        weights = [i for i, event in enumerate(events) if event == "weight"]
        assert len(weights) == 8, "four matrices a layer"
        assert all("sum" in events[i + 1 : j] for i, j in itertools.pairwise(weights))
        assert events[-1] == "finish", "which finds nothing left to begin"
        assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(ours, theirs, strict=True))
    assert apart[0][0] == apart[1][0]


@pytest.mark.parametrize("zero", [0, 1])
def test_equal_to_ddp_and_zero_redundancy_optimizer(zero: int, pool: OfWorld) -> None:
    for gradient, weight, same_bits in pool(2).run("work_gradients:against_torch", zero):
        assert gradient <= 1e-14
        assert weight <= 1e-12
        assert same_bits


@pytest.mark.parametrize("zero", [0, 1])
def test_no_gradient_counts_as_zero(zero: int, pool: OfWorld) -> None:
    assert pool(2).run("work_gradients:idle", zero) == [[(3 + 4 * 4) ** 0.5]] * 2


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_shows_everywhere(zero: int, value: float, pool: OfWorld) -> None:
    found = pool(2).run("work_gradients:not_finite", zero, value)
    assert all(not abs(norm) < float("inf") for norm in found)
