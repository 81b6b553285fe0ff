"""A calibrated machine: what its numbers add up to, and that predictions use them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster, cluster_to_yaml, load_cluster
from gradatim.plan.measured import busy, cluster_of, curve_seconds, head_times, message_seconds, product_seconds
from gradatim.plan.predict import predict
from gradatim.plan.search import bounds, search
from gradatim.plan.work import Product

CURVE = [[64.0, 1e-4], [1e6, 1e-3], [1e7, 1e-2]]
ANSWER: dict[str, Any] = {
    "rate": 1e11,
    "threads": 1,
    "measured": {
        "processes": 2, "alone": 0.8, "product": [1e-6, 2.0, 4.0, 8.0],
        "forward": [1e-4, 1e-9, 2e-9], "backward": [2e-4, 2e-9, 3e-9],
        "core_forward": [1e-5, 1e-10, 1e-11], "core_backward": [2e-5, 2e-10, 2e-11],
        "embedding": [1e-5, 1e-9, 1e-9], "head": [1e-5, 2e-9], "accumulate": 1e-9, "update": [1e-4, 4e-9],
        "waiting": [1e-5, 0.1],
        **dict.fromkeys(("sum", "gather", "scatter", "send", "reduce", "reduce_scatter", "all_gather"), CURVE),
    },
}  # fmt: skip
MODEL = Architecture(GptConfig(d_model=128, n_layers=4, n_heads=4), 512, 64)


@pytest.fixture
def cluster() -> Cluster:
    return cluster_of(ANSWER, "a processor", 8e9)


def test_a_file_holds_all_of_it(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    path.write_text(cluster_to_yaml(cluster))
    assert load_cluster(path) == cluster
    assert cluster.calibrated and not Cluster().calibrated


def test_curves() -> None:
    curve = tuple((size, seconds) for size, seconds in CURVE)
    assert curve_seconds(curve, 1.0) == 1e-4
    assert curve_seconds(curve, 1e6) == pytest.approx(1e-3)
    assert curve_seconds(curve, 5.5e6) == pytest.approx(5.5e-3)
    assert curve_seconds(curve, 2e7) == pytest.approx(2e-2)
    assert curve_seconds(((8.0, 3.0),), 100.0) == 3.0
    assert curve_seconds((), 100.0) == 0.0


def test_products_and_messages(cluster: Cluster) -> None:
    product = Product(20, 40, 80, batch=3)
    lost = 1 + 2 / 20 + 4 / 40 + 8 / 80
    assert product_seconds(cluster, product) == pytest.approx(3e-6 + product.flops / 1e11 * lost)
    assert message_seconds(cluster, "sum", 1e6, 1) == 0.0
    assert message_seconds(cluster, "sum", 1e6, 2) == pytest.approx(1e-3)
    assert message_seconds(cluster, "sum", 1e6, 4) == pytest.approx(1.5e-3)


def test_a_process_alone_is_faster(cluster: Cluster) -> None:
    assert (busy(cluster, 1), busy(cluster, 2), busy(cluster, 3)) == (0.8, 1.0, 1.0)
    serial = LayoutConfig(microbatch=8)
    beside = replace(cluster, measured=replace(cluster.measured, alone=1.0))
    assert predict(cluster, MODEL, serial, 8).seconds == pytest.approx(0.8 * predict(beside, MODEL, serial, 8).seconds)


@pytest.mark.parametrize(
    ("slower", "layouts"),
    [
        ("sum", [{"tp": 2}]),
        ("gather", [{"tp": 2, "sequence_parallel": True}]),
        ("send", [{"pp": 2}]),
        ("reduce", [{"dp": 2}, {"pp": 2}]),
        ("reduce_scatter", [{"dp": 2, "zero": 1}]),
        ("forward", [{}, {"tp": 2}]),
        ("accumulate", [{"microbatch": 1}]),
    ],
)
def test_what_is_slower_where_it_is_used(cluster: Cluster, slower: str, layouts: list[dict[str, Any]]) -> None:
    value = getattr(cluster.measured, slower)
    if slower == "accumulate":
        twice: Any = 2 * value
    elif slower == "forward":
        twice = tuple(2 * each for each in value)
    else:
        twice = tuple((size, 2 * seconds) for size, seconds in value)
    other = replace(cluster, measured=replace(cluster.measured, **{slower: twice}))
    for fields in layouts:
        layout = LayoutConfig(**{"microbatch": 2, **fields})
        assert predict(other, MODEL, layout, 8).seconds > predict(cluster, MODEL, layout, 8).seconds
    unconcerned = LayoutConfig(microbatch=8, dp=1)
    if slower not in ("forward", "accumulate"):
        assert predict(other, MODEL, unconcerned, 8) == predict(cluster, MODEL, unconcerned, 8)


def test_bounds_are_below(cluster: Cluster) -> None:
    found = search(MODEL, cluster, 2, 8, top=10_000)
    assert found.columns is not None and len(found.best) > 20
    seconds, _ = bounds(cluster, MODEL, found.columns, 8)
    for i, bound in enumerate(seconds.tolist()):
        layout = found.columns.layout(i)
        assert bound <= predict(cluster, MODEL, layout, 8).seconds * (1 + 1e-9), layout


def test_a_head_reads_the_positions_that_are_predicted(cluster: Cluster) -> None:
    """BERT's blanks: of the words a share, of norm and communication all."""
    some, all_ = (
        head_times(cluster, Architecture(BertConfig(masked=share), 512, 64), sequences=8, tp=1, sequence_parallel=False)
        for share in (0.25, 1.0)
    )
    always = ANSWER["measured"]["head"][0] + 3 * ANSWER["measured"]["product"][0]
    assert (all_.forward.compute - always) / (some.forward.compute - always) == pytest.approx(4.0, rel=0.1)
    assert all_.backward == some.backward
