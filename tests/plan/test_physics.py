"""Times of products, passes and collectives: limits that no machine passes, and quantisation that it shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradatim.plan.cluster import Cluster, Device, Node
from gradatim.plan.communication import collective_seconds, transfer_seconds
from gradatim.plan.physics import FITTED, product_seconds, traffic_seconds

DEVICE = Device()


def rate(rows: int, columns: int, inner: int, batch: int = 1) -> float:
    return 2 * rows * columns * inner * batch / product_seconds(FITTED, DEVICE, rows, columns, inner, batch)


@pytest.mark.parametrize("shape", [(16384, 16384, 16384), (1024, 10240, 5120), (2048, 2048, 128, 64), (1, 8, 8)])
def test_nothing_is_faster_than_the_best_product_seen(shape: tuple[int, ...]) -> None:
    assert 0 < rate(*shape) <= DEVICE.matmul


def test_large_products_come_near_it_and_small_ones_do_not() -> None:
    assert rate(16384, 16384, 16384) > 0.85 * DEVICE.matmul
    assert rate(128, 128, 128) < 0.05 * DEVICE.matmul


def test_the_rate_falls_where_a_wave_is_begun() -> None:
    """Other tiles are taken then, whose waves are fuller, so the fall is small."""
    full, over = 256 * DEVICE.units, 256 * (DEVICE.units + 2)
    assert rate(full, 128, 4096) > 1.01 * rate(over, 128, 4096)
    assert rate(2 * over, 128, 4096) > rate(over, 128, 4096)  # of more waves a smaller share is lost


def test_rows_that_do_not_begin_at_16_bytes_miss_the_tensor_cores() -> None:
    aligned = product_seconds(FITTED, DEVICE, 2048, 2048, 112, 64)
    assert product_seconds(FITTED, DEVICE, 2048, 2048, 108, 64) > 3 * aligned


def test_memory_sets_the_pace_of_thin_products() -> None:
    moved = 2 * (8192 * 8 + 8 * 8192 + 8192 * 8192)
    assert product_seconds(FITTED, DEVICE, 8192, 8192, 8) >= traffic_seconds(FITTED, DEVICE, moved)


def test_rings() -> None:
    cluster = Cluster(node=Node(devices=8, link=300e9, cards=8, card=25e9))
    size = 1e9
    inside = collective_seconds(FITTED, cluster, "all-reduce", size, 8)
    assert inside == pytest.approx(2 * 7 / 8 * size / (300e9 * FITTED.link), rel=0.05)
    halves = [collective_seconds(FITTED, cluster, kind, size, 8) for kind in ("all-gather", "reduce-scatter")]
    assert sum(halves) == pytest.approx(inside, rel=0.05)
    assert collective_seconds(FITTED, cluster, "all-reduce", size, 1) == 0
    # 8 rings (one for each tensor rank) share the cards that a single ring has to itself
    shared = collective_seconds(FITTED, cluster, "all-reduce", size, 4, stride=8)
    alone = collective_seconds(FITTED, cluster, "all-reduce", size, 32, stride=1)
    assert shared > 4 * alone
    fewer = replace(cluster, node=replace(cluster.node, cards=4))
    assert collective_seconds(FITTED, fewer, "all-reduce", size, 4, stride=8) == pytest.approx(2 * shared, rel=0.01)


def test_small_sums_over_many_nodes_take_a_tree() -> None:
    cluster = Cluster()
    waits = [
        collective_seconds(FITTED, cluster, kind, 8.0, 512) - FITTED.kernel for kind in ("all-reduce", "all-gather")
    ]
    assert waits[0] == pytest.approx(2 * (7 * cluster.node.latency + 6 * cluster.node.network_latency), rel=0.01)
    assert waits[1] == pytest.approx(448 * cluster.node.latency + 63 * cluster.node.network_latency, rel=0.01)


def test_transfers_are_shared_out_over_tensor_ranks() -> None:
    cluster = Cluster()
    whole = replace(cluster, stack=replace(cluster.stack, scatter_gather=False))
    assert transfer_seconds(FITTED, cluster, 64e6, 8, 4, 2) < transfer_seconds(FITTED, whole, 64e6, 8, 4, 2)
    assert transfer_seconds(FITTED, cluster, 64e6, 1, 2, 4) < transfer_seconds(FITTED, cluster, 64e6, 1, 8, 4)
