"""How long communication takes: rings inside a node and across nodes, transfers between stages. No torch.

A ring of n ranks moves (n−1)/n of the tensor in each of n−1 steps' worth for a gather or a reduce-scatter, twice that
for an all-reduce (Patarasuk and Yuan 2009). Rings that leave a node share its network cards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradatim.plan import measured
from gradatim.plan.cluster import Cluster
from gradatim.plan.physics import Physics

PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}


@dataclass(frozen=True, slots=True)
class Messages:
    """Seconds of collectives."""

    moving: float = 0.0
    """In which bytes move,"""
    hops: float = 0.0
    """and from rank to rank until the first byte is there."""

    @property
    def total(self) -> float:
        """Both."""
        return self.moving + self.hops

    def __add__(self, other: Messages) -> Messages:
        return Messages(self.moving + other.moving, self.hops + other.hops)

    def __mul__(self, times: int) -> Messages:
        return Messages(self.moving * times, self.hops * times)


def collective_seconds(
    physics: Physics, cluster: Cluster, kind: str, size: float, ranks: int, *, stride: int = 1
) -> float:
    """Seconds of a collective, as ``collective`` has them by cause."""
    return collective(physics, cluster, kind, size, ranks, stride=stride).total


def collective(physics: Physics, cluster: Cluster, kind: str, size: float, ranks: int, *, stride: int = 1) -> Messages:
    """A collective over ``size`` bytes among ``ranks`` devices, ``stride`` apart in the order of devices.

    All groups of that stride communicate at once, as they do in training.
    """
    if ranks < 2:
        return Messages()
    node = cluster.node
    inside = max(1, min(ranks, node.devices // stride)) if stride < node.devices else 1
    nodes = -(-ranks // inside)
    steps = PASSES[kind]
    moved = steps * (ranks - 1) / ranks * size
    bandwidth = node.link * physics.link
    if nodes > 1:
        rings = node.devices // inside  # each leaves the node once and enters it once
        bandwidth = min(bandwidth, node.cards * node.card / rings * physics.network)
    latency = steps * ((ranks - nodes) * node.latency + (nodes - 1) * node.network_latency)
    if kind == "all-reduce":  # a tree of nodes is sooner for small sums (Sanders et al. 2009; NCCL 2.4)
        depth = math.ceil(math.log2(nodes))
        latency = min(latency, steps * ((inside - 1) * node.latency + depth * node.network_latency))
    return Messages(moved / bandwidth, physics.kernel + latency)


def transfer_seconds(
    physics: Physics, cluster: Cluster, size: float, tp: int, dp: int, pp: int, *, split: bool = False
) -> float:
    """Seconds until ``size`` bytes of a rank's result are on the next stage, all ranks of a stage sending at once.

    ``split``: the result is a part of the sequence already, so it is sent whole and there is nothing to gather.
    """
    if cluster.calibrated:
        return measured.transfer_seconds(cluster, size)
    node = cluster.node
    scatters = cluster.stack.scatter_gather and not split
    share = size / tp if scatters else size
    if tp * dp * pp <= node.devices:
        seconds = physics.kernel + node.latency + share / (node.link * physics.link)
    else:  # where several stages share a node, those at its border set the pace
        bandwidth = node.cards * node.card / min(node.devices, tp * dp) * physics.network
        seconds = physics.kernel + node.network_latency + share / min(bandwidth, node.link * physics.link)
    if scatters and tp > 1:
        seconds += collective_seconds(physics, cluster, "all-gather", size, tp)
    return seconds
