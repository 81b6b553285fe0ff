"""The search against the whole of what it searches, and its bound against what it bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.cluster import Cluster, load_cluster
from gradatim.plan.layouts import KNOBS, NO_LIMITS, Fixed, divisors, legal_layouts, without_limits
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
    # what buckets of gradients take behind a backward pass is not known beforehand
    assert np.median(below[some] / seconds) > (0.75 if cluster.stack.bucket else 0.9)


ODD = [
    ("llama:n_layers=18,d_model=512,n_heads=8,vocab_size=256000,context=256", "selene-2022", 8, 8),
    ("gpt:n_layers=5,d_model=256,n_heads=4,vocab_size=50304,context=128", "selene-2022", 4, 12),
    ("gpt:n_layers=7,d_model=512,n_heads=8,vocab_size=1024,context=512", "nanotron-h100", 8, 8),
    ("llama:n_layers=6,d_model=256,n_heads=4,vocab_size=32000,context=256", "gradatim-h100", 4, 8),
    ("gpt:n_layers=9,d_model=1024,n_heads=8,vocab_size=51200,context=256", "mpt-a100-80gb", 4, 8),
    ("bert:n_layers=5,d_model=256,n_heads=4,vocab_size=30528,context=128", "eos-h100", 4, 8),
]
"""Layers that few numbers of stages divide, small and large vocabularies."""


@pytest.mark.parametrize("limited", [True, False], ids=["own", "any"])
@pytest.mark.parametrize(("shape", "name", "devices", "batch"), ODD)
def test_nothing_that_fits_is_left_out(shape: str, name: str, devices: int, batch: int, limited: bool) -> None:
    """Both bounds, against every layout, also where splits are searched that the cluster's software has not."""
    model, cluster = load_model(shape)[0], load_cluster(name)
    stack = cluster.stack if limited else without_limits(cluster.stack)
    columns = [legal_layouts(model, devices, batch, Fixed(pp=pp), stack, Counter()) for pp in (None, 2, 3, 4)]
    some = np.random.default_rng(0)
    uneven = 0
    for each in columns:
        below, needed = bounds(cluster, model, each, batch) if len(each) else ([], [])
        for i in some.permutation(len(each))[:400].tolist():
            layout = each.layout(i)
            judged = judge(cluster, model, layout, batch)
            assert below[i] <= judged.prediction.seconds * (1 + 1e-9), layout
            assert needed[i] <= max(judged.memory) * (1 + 1e-9), layout
            uneven += len(set(model.layer_counts(layout))) > 1
    assert uneven > 5 or cluster.stack.schedules == ("1f1b",)


def test_the_ends_may_have_fewer_layers() -> None:
    """18 layers on eight stages: the ends, where a large vocabulary is, get two, and so it fits."""
    model, _ = load_model("llama:n_layers=18,d_model=8192,n_heads=32,vocab_size=256000")
    cluster, fixed = load_cluster("selene-2022"), Fixed(tp=1, pp=8, microbatch=1, zero=0)
    found = search(model, cluster, 8, 8, fixed=fixed)
    assert found.best and max(found.best[0].memory) / 2**30 == pytest.approx(73.3, abs=0.1)


def test_selective_recomputation_is_searched_where_it_is_something(model: Architecture, cluster: Cluster) -> None:
    for name, searched in (("selene-2022", True), ("eos-h100", False), ("gradatim-h100", True)):
        stack = load_cluster(name).stack
        columns = legal_layouts(model, 8, 16, Fixed(), stack, Counter())
        assert ("selective" in columns.recomputes) is searched
        assert legal_layouts(model, 8, 16, Fixed(recompute="selective"), stack, Counter()).recomputes == ["selective"]


def test_only_megatron_wants_stages_alike(cluster: Cluster) -> None:
    model, _ = load_model("gpt:n_layers=3,d_model=64,n_heads=1,vocab_size=512")
    for name, stages in (("selene-2022", {1}), ("gradatim-h100", {1, 2})):
        columns = legal_layouts(model, 2, 2, Fixed(), load_cluster(name).stack, Counter())
        assert set(columns.pp.tolist()) == stages


def test_what_tp_does_not_divide_is_named() -> None:
    model, _ = load_model("gpt:n_layers=3,d_model=96,n_heads=6,d_ff=384,vocab_size=50257")
    rejected: Counter[str] = Counter()
    legal_layouts(model, 12, 12, Fixed(), load_cluster("selene-2022").stack, rejected)
    named = [reason for reason in rejected if reason.startswith("tp does not divide")]
    assert "tp does not divide the vocabulary (one padded to a multiple of tp would do)" in named
    assert any(reason.startswith("tp does not divide the heads and the vocabulary") for reason in named)
    legal_layouts(model, 12, 12, Fixed(tp=5), load_cluster("selene-2022").stack, rejected)
    assert rejected["tp does not divide the devices"] == 1


@pytest.mark.parametrize(("tp", "why"), [(1, "needs tp above 1"), (2, "needs a context that tp divides")])
def test_sequence_parallelism_that_is_fixed_is_not_dropped(tp: int, why: str) -> None:
    model, _ = load_model("gpt:n_layers=4,d_model=64,n_heads=2,vocab_size=512,context=1023")
    found = search(model, load_cluster("selene-2022"), 4, 8, fixed=Fixed(tp=tp, sequence_parallel=True))
    assert found.considered == 0 and any(why in reason for reason in found.rejected)


def test_divisors() -> None:
    for number in (1, 2, 12, 36, 97, 1536):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


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
