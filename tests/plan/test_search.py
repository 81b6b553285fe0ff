"""The search against the whole of what it searches, and its bound against what it bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.cluster import Cluster, load_cluster
from gradatim.plan.layouts import KNOBS, NO_LIMITS, Fixed, legal_layouts
from gradatim.plan.predict import predict
from gradatim.plan.search import best_with, bounds, judge, search

SMALL = "gpt:n_layers=12,d_model=2048,n_heads=16,vocab_size=51200,context=1024"


@pytest.fixture(scope="module")
def model() -> Architecture:
    return load_model(SMALL)[0]


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("selene-2022")


def everything(model: Architecture, cluster: Cluster, devices: int, batch: int) -> list[tuple[float, int]]:
    columns = legal_layouts(model, devices, batch, Fixed(), cluster.stack, Counter())
    judged = [(judge(cluster, model, columns.layout(i), batch), i) for i in range(len(columns))]
    return sorted((candidate.prediction.seconds, i) for candidate, i in judged if candidate.fits)


@pytest.mark.parametrize(("devices", "batch"), [(8, 16), (16, 24)])
def test_finds_what_trying_all_finds(model: Architecture, cluster: Cluster, devices: int, batch: int) -> None:
    found = search(model, cluster, devices, batch, top=5)
    best = everything(model, cluster, devices, batch)[:5]
    assert [c.prediction.seconds for c in found.best] == pytest.approx([seconds for seconds, _ in best], rel=1e-12)
    assert found.considered > 100 and found.seconds < 30


@pytest.mark.parametrize("name", ["selene-2022", "eos-h100", "vtrain-a100", "nanotron-h100"])
def test_the_bound_is_one(model: Architecture, name: str) -> None:
    cluster = load_cluster(name)
    columns = legal_layouts(model, 16, 32, Fixed(), replace(cluster.stack, schedules=NO_LIMITS.schedules), Counter())
    below, _ = bounds(cluster, model, columns, 32)
    some = np.random.default_rng(0).permutation(len(columns))[:120]
    seconds = np.array([predict(cluster, model, columns.layout(i), 32).seconds for i in some.tolist()])
    assert (below[some] <= seconds * (1 + 1e-9)).all()
    # where layers may be shared out unevenly less is known beforehand
    assert np.median(below[some] / seconds) > (0.9 if cluster.stack.splits == ("uniform",) else 0.55)


def test_layouts_are_legal(model: Architecture, cluster: Cluster) -> None:
    columns = legal_layouts(model, 16, 32, Fixed(), cluster.stack, Counter())
    for i in range(len(columns)):
        layout = columns.layout(i)
        assert layout.tp * layout.pp * layout.dp == 16 and layout.microbatch
        assert model.heads % layout.tp == 0 and 32 % (layout.dp * layout.microbatch) == 0
        counts = model.layer_counts(layout)
        assert sum(counts) == model.layers and min(counts) > 0 and len(set(counts)) == 1
        if layout.schedule == "interleaved":
            assert layout.chunks > 1 and 32 // layout.dp // layout.microbatch % layout.pp == 0


def test_what_is_fixed_stays(model: Architecture, cluster: Cluster) -> None:
    found = search(model, cluster, 16, 32, fixed=Fixed(tp=2, recompute="full", zero=1))
    assert found.best
    assert {(c.layout.tp, c.layout.recompute, c.layout.zero) for c in found.best} == {(2, "full", 1)}
    assert search(model, cluster, 16, 32, fixed=Fixed(tp=5)).considered == 0


def test_each_knob_beside_the_winner(model: Architecture, cluster: Cluster) -> None:
    found = search(model, cluster, 16, 32)
    winner = found.best[0]
    for knob in KNOBS:
        best = best_with(found, cluster, model, 32, knob)
        own = best[getattr(winner.layout, knob)]
        assert own is not None and own.prediction.seconds == pytest.approx(winner.prediction.seconds, rel=1e-9)
        assert all(c is None or c.prediction.seconds >= own.prediction.seconds * (1 - 1e-9) for c in best.values())


def test_the_breakdown_adds_up(model: Architecture, cluster: Cluster) -> None:
    for candidate in search(model, cluster, 16, 32).best:
        assert sum(candidate.prediction.breakdown.values()) == pytest.approx(candidate.prediction.seconds)
        assert min(candidate.prediction.breakdown.values()) > -1e-9 * candidate.prediction.seconds


def test_large_searches_are_quick() -> None:
    """The issue asks for one second on a quiet core; here the machine may be busy."""
    found = search(load_model("gpt3-175b")[0], load_cluster("selene-2022"), 1024, 1536)
    assert found.best and found.considered > 5500 and found.seconds < 10
