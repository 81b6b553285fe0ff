"""What the numbers of a calibrated machine are fitted to: times made of known numbers give these back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradatim.config.settings import GptConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.fit import LAYERS, SIZES, besides, fit, fit_waiting, nonnegative, repetitions
from gradatim.plan.measured import block_times, cluster_of


def test_fits_find_what_times_were_made_of() -> None:
    rows = [[1.0, 10.0, 3.0], [1.0, 20.0, 5.0], [1.0, 5.0, 9.0], [1.0, 40.0, 2.0]]
    seconds = [2.0 + 0.5 * b for _, b, _ in rows]
    assert nonnegative(rows, seconds) == pytest.approx([2.0, 0.5, 0.0], abs=1e-9)
    falling = nonnegative([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], [3.0, 2.0, 1.0])  # would ask for a negative slope
    assert min(falling) >= 0 and falling[1] == 0
    assert besides([(3.0, 1.0), (1.0, 3.0)]) == [2.0, 0.05]


def test_the_fit_of_a_whole_machine() -> None:
    """Times made from known numbers give these numbers back."""
    rate, start = 1e10, 2e-6
    product = lambda r, c, k: start + 2 * r * c * k / rate * (1 + 4 / k)  # noqa: E731 - a formula
    core = lambda b, h, t, k, f: f * (1e-5 + b * h * t * t * (1e-9 + 2e-10 * k))  # noqa: E731
    found: dict[object, float] = {}
    for shape in SIZES.products:
        found["product", shape] = product(*shape) * repetitions(*shape)
    for b, h, t, k in SIZES.cores:
        found |= {("core", kind, (b, h, t, k)): core(b, h, t, k, f) for kind, f in (("F", 1), ("B", 3))}
    for block in SIZES.blocks:
        d, f, h, b, t = block
        n = b * t
        products = [(n, 3 * d, d), (n, d, d), (n, f, d), (n, d, f)]
        turned = [each for r, c, k in products for each in ((r, k, c), (k, c, r))]
        for kind, parts, factor in (("F", products, 1), ("B", turned, 3)):
            own = 1e-4 + 1e-8 * n * d + 3e-8 * n * (4 * d + f)
            whole = own + core(b, h, t, d // h, factor) + sum(product(*each) for each in parts)
            found["block", kind, block] = LAYERS * whole
    for head in SIZES.heads:
        n, d, v = head
        found["head", head] = 1e-5 + 3e-8 * n * v + product(n, v, d) + product(n, d, v) + product(v, d, n)
        found |= {("embedding", "F", head): 1e-5, ("embedding", "B", head): 2e-9 * v * d}
    for width in SIZES.updates:
        count = LAYERS * (12 * width**2 + 13 * width)
        found |= {("update", width): 1e-4 + 5e-9 * count, ("accumulate", width): 1e-9 * count}
    fitted_rate, fitted = fit(found, SIZES)
    assert fitted_rate == pytest.approx(rate, rel=1e-6)
    assert fitted["product"] == pytest.approx([start, 0.0, 0.0, 4.0], rel=1e-4, abs=1e-6)
    assert fitted["forward"] == pytest.approx([1e-4, 1e-8, 3e-8], rel=1e-4)
    assert fitted["backward"] == pytest.approx([1e-4, 1e-8, 3e-8], rel=1e-4)
    assert fitted["core_backward"] == pytest.approx([3e-5, 3e-9, 6e-10], rel=1e-4)
    assert fitted["head"] == pytest.approx([1e-5, 3e-8], rel=1e-4)
    assert fitted["embedding"] == pytest.approx([1e-5, 0.0, 2e-9], rel=1e-4, abs=1e-12)
    assert fitted["update"] == pytest.approx([1e-4, 5e-9], rel=1e-4)
    assert fitted["accumulate"] == pytest.approx(1e-9)


def test_waiting_is_what_computing_and_messages_leave() -> None:
    curve = [[64.0, 1e-4], [1e6, 1e-3]]
    answer: dict[str, Any] = {
        "rate": 1e10, "threads": 1,
        "measured": {
            "processes": 2, "product": [1e-6, 0.0, 0.0, 4.0], "forward": [1e-4, 1e-8, 3e-8],
            "backward": [2e-4, 1e-8, 3e-8], "sum": curve, "gather": curve, "scatter": curve,
        },
    }  # fmt: skip
    cluster = cluster_of(answer, "", 1.0)
    waiting = replace(cluster, measured=replace(cluster.measured, waiting=(3e-5, 0.2)))
    found: dict[Any, float] = {}
    for block in SIZES.split:
        width, inner, heads, sequences, context = block
        model = Architecture(GptConfig(d_model=width, d_ff=inner, n_heads=heads, n_layers=LAYERS), 64, context)
        for sp in (False, True):
            quick, slow = (block_times(each, model, sequences=sequences, tp=2, sequence_parallel=sp, recompute="none")
                           for each in (cluster, waiting))  # fmt: skip
            messages = (4, 6) if sp else (2, 2)
            for kind, i, one, other in (("F", 0, quick.forward, slow.forward), ("B", 1, quick.backward, slow.backward)):
                assert other.tensor - one.tensor == pytest.approx(messages[i] * 3e-5 + 0.2 * one.compute)
                found["split", kind, block, sp] = LAYERS * other.total
    assert fit_waiting(answer, found, 2) == pytest.approx([3e-5, 0.2], rel=1e-6)
    none = {key: 0.5 * seconds for key, seconds in found.items()}  # quicker than its parts
    assert fit_waiting(answer, none, 2) == [0.0, 0.0]
    assert fit_waiting(answer, {}, 2) == [0.0, 0.0]
