"""What a layout needs under this package's own trainer, whatever software a cluster's file describes. No torch.

A layout is planned with the memory of the cluster's stack, Megatron-LM's for one. Handed over to ``gradatim train`` it
meets our own layers, which keep other tensors, under fp32 weights: its memory is counted anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster, cluster_names, load_cluster
from gradatim.plan.memory import stage_memory
from gradatim.plan.words import GIB

BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
"""Of a number that products read and give, by the run's precision."""
OURS = "gradatim-h100"
"""A packaged cluster whose stack is our own trainer on GPUs."""


def with_our_stack(cluster: Cluster, precision: str) -> Cluster:
    """The cluster's hardware under our own trainer, at a run's ``precision``."""
    stack = cluster.stack
    if cluster.calibrated:  # on CPUs, perhaps by an earlier version of ours that did not say so
        stack = replace(stack, layers="gradatim", fused_dropout=False)
    elif stack.layers != "gradatim":
        stack = load_cluster(OURS).stack
    stack = replace(stack, element_bytes=BYTES[precision])
    if precision == "fp64":  # weights and what is learned of them, too; elsewhere they are fp32
        stack = replace(stack, weight_bytes=8, gradient_bytes=8, reduced_bytes=8, state_bytes=16)
    return replace(cluster, stack=stack)


def our_twins(cluster: Cluster) -> list[str]:
    """The packaged clusters that have this very hardware, and our own trainer on it."""
    packaged = {name: load_cluster(name) for name in cluster_names()}
    hardware = (cluster.device, cluster.node)
    return [n for n, c in packaged.items() if c.stack.layers == "gradatim" and (c.device, c.node) == hardware]


@dataclass(frozen=True, slots=True)
class Recount:
    """Memory of a layout under two kinds of software; bytes."""

    planned: float
    """Of the fullest stage with the cluster's own stack,"""
    stages: tuple[float, ...]
    """and of every stage with ours."""
    limit: float
    """Of a device,"""
    device: str
    """which is called so."""
    precision: str
    """That of the run."""

    @property
    def fits(self) -> bool:
        """Whether our own trainer has room."""
        return max(self.stages) <= self.limit

    @property
    def text(self) -> str:
        """Both figures against the device's."""
        return (
            f"gradatim's own trainer under {self.precision} needs {max(self.stages) / GIB:,.1f} GiB for this layout, "
            f"of {self.limit / GIB:,.1f} on {self.device}; the plan's {self.planned / GIB:,.1f} are of the software "
            "that the cluster's file describes"
        )


def recount(cluster: Cluster, model: Architecture, layout: LayoutConfig, global_batch: int, precision: str) -> Recount:
    """What a layout planned for ``cluster`` needs when our own trainer runs it there at a ``precision``."""
    own = with_our_stack(cluster, precision)
    planned, stages = (
        tuple(stage.total for stage in stage_memory(c.stack, model, layout, global_batch)) for c in (cluster, own)
    )
    return Recount(max(planned), stages, cluster.device.memory, cluster.device.name, precision)
