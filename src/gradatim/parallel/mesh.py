"""Which ranks work together on what: the grid of processes, with one axis for each kind of parallelism.

Ranks are numbered with tensor parallelism innermost, since it talks most and belongs inside a node, then data, then
pipeline parallelism outermost (Narayanan et al. 2021, https://arxiv.org/abs/2104.04473, section 3; the order pp, dp, tp
is ours throughout). A rank has one place on each axis: its shard (tp), its replica (dp), its stage (pp). There is no
global state: whoever communicates is handed an ``Axis``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

from gradatim.config.settings import LayoutConfig

AXES = ("pp", "dp", "tp")
"""Outermost first."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The ranks that differ from this one in one coordinate only, this one included."""

    name: str
    size: int = 1
    """How many they are."""
    index: int = 0
    """This rank's place among them."""
    ranks: tuple[int, ...] = (0,)
    """Their global ranks, by place."""
    group: ProcessGroup | None = None
    """Their process group; None where the rank is alone."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """A rank's place in the grid."""

    pp: Axis
    """Stages of the pipeline that this rank belongs to."""
    dp: Axis
    """Replicas of this rank's share of the model."""
    tp: Axis
    """Shards of this rank's layers."""
    ends: Axis
    """First and last stage of this pipeline, which share tied embeddings; alone where this rank is neither, or both."""
    rank: int = 0
    """Global rank."""
    world: int = 1
    """Processes in all."""

    @property
    def everyone(self) -> ProcessGroup | None:
        """The group of all ranks; None in a single process."""
        return dist.group.WORLD if self.world > 1 else None


def single() -> Mesh:
    """The grid of one process, without torch.distributed."""
    return Mesh(Axis("pp"), Axis("dp"), Axis("tp"), Axis("ends"))


def create_mesh(layout: LayoutConfig, device: str = "cpu") -> Mesh:
    """Build the groups of a layout; every rank calls this, after ``init_process_group``.

    ``device`` is the kind of device that the groups move tensors of: ``cpu`` or ``cuda``.
    """
    sizes = {"pp": layout.pp, "dp": layout.dp, "tp": layout.tp}
    rank, world = dist.get_rank(), dist.get_world_size()
    if world == 1:
        return single()
    grid = init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=AXES)
    place = coordinates(rank, sizes)
    axes = {}
    for name in AXES:
        ranks = tuple(rank_at(sizes, {**place, name: i}) for i in range(sizes[name]))
        group = grid.get_group(name) if sizes[name] > 1 else None
        axes[name] = Axis(name, sizes[name], place[name], ranks, group)
    return Mesh(axes["pp"], axes["dp"], axes["tp"], _ends(sizes, rank, place), rank, world)


def _ends(sizes: Mapping[str, int], rank: int, place: Mapping[str, int]) -> Axis:
    """The pair of first and last stage; all pairs are made by all ranks, as torch.distributed asks."""
    if sizes["pp"] == 1:
        return Axis("ends", ranks=(rank,))
    pairs = [
        [rank_at(sizes, {"pp": stage, "dp": dp, "tp": tp}) for stage in (0, sizes["pp"] - 1)]
        for dp, tp in itertools.product(range(sizes["dp"]), range(sizes["tp"]))
    ]
    group, _ = dist.new_subgroups_by_enumeration(pairs)  # type: ignore[no-untyped-call]
    if place["pp"] not in (0, sizes["pp"] - 1):
        return Axis("ends", ranks=(rank,))
    mine = next(pair for pair in pairs if rank in pair)
    return Axis("ends", 2, mine.index(rank), tuple(mine), group)


def coordinates(rank: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """A global rank's place on each axis."""
    place = {}
    for name in reversed(AXES):
        rank, place[name] = divmod(rank, sizes[name])
    return place


def rank_at(sizes: Mapping[str, int], place: Mapping[str, int]) -> int:
    """The global rank at a place."""
    rank = 0
    for name in AXES:
        rank = rank * sizes[name] + place[name]
    return rank
