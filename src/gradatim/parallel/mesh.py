"""Which ranks work together on what: the grid of processes, with one axis for each kind of parallelism.

Ranks are numbered with tensor parallelism innermost, since it talks most and belongs inside a node, then data, then
pipeline parallelism outermost (Narayanan et al. 2021, https://arxiv.org/abs/2104.04473, section 3; the order pp, dp, tp
is ours throughout). A rank has one place on each axis: its shard (tp), its replica (dp), its stage (pp). There is no
global state: whoever communicates is handed an ``Axis``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import ProcessGroup

from gradatim.config.grid import AXES, axis_sizes, coordinates, rank_at
from gradatim.config.settings import LayoutConfig

__all__ = ["Axis", "Mesh", "create_mesh", "single"]


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


def create_mesh(layout: LayoutConfig) -> Mesh:
    """Build the groups of a layout; every rank calls this, after ``init_process_group``, whose backends they have."""
    sizes = axis_sizes(layout)
    rank, world = dist.get_rank(), dist.get_world_size()
    if world == 1:
        return single()
    place = coordinates(rank, sizes)
    axes = {}
    for name in AXES:
        others = [axis for axis in AXES if axis != name]
        lines = [
            [rank_at(sizes, {**dict(zip(others, fixed)), name: i}) for i in range(sizes[name])]
            for fixed in itertools.product(*(range(sizes[axis]) for axis in others))
        ]
        mine = next(line for line in lines if rank in line)
        group = _group(name, lines, layout) if sizes[name] > 1 else None
        axes[name] = Axis(name, sizes[name], place[name], tuple(mine), group)
    return Mesh(axes["pp"], axes["dp"], axes["tp"], _ends(layout, rank, place), rank, world)


def _group(name: str, lines: Sequence[Sequence[int]], layout: LayoutConfig) -> ProcessGroup | None:
    """The group of this rank, of several that lie side by side; all ranks make all of them, as torch.distributed asks.

    Not by ``init_device_mesh``: its groups wait torch's half hour for a rank that hangs, whatever the config says.
    """
    timeout = timedelta(seconds=layout.timeout)
    found = dist.new_subgroups_by_enumeration(lines, timeout=timeout, group_desc=name)  # type: ignore[no-untyped-call]
    group: ProcessGroup | None = found[0]
    return group


def _ends(layout: LayoutConfig, rank: int, place: Mapping[str, int]) -> Axis:
    """The pair of first and last stage."""
    if layout.pp == 1:
        return Axis("ends", ranks=(rank,))
    pairs = [
        [rank_at(axis_sizes(layout), {"pp": stage, "dp": dp, "tp": tp}) for stage in (0, layout.pp - 1)]
        for dp, tp in itertools.product(range(layout.dp), range(layout.tp))
    ]
    group = _group("ends", pairs, layout)
    if place["pp"] not in (0, layout.pp - 1):
        return Axis("ends", ranks=(rank,))
    mine = next(pair for pair in pairs if rank in pair)
    return Axis("ends", 2, mine.index(rank), tuple(mine), group)
