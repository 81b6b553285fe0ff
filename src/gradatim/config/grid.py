"""The ranks of a layout on their grid, and the map of them that ``check`` and ``train`` print. No torch.

Ranks are numbered with tensor parallelism innermost, since it talks most and belongs inside a node, then data, then
pipeline parallelism outermost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from gradatim.config.derived import world_size
from gradatim.config.describe import scalar_text
from gradatim.config.settings import LayoutConfig

AXES = ("pp", "dp", "tp")
"""Outermost first."""
SHOWN = 16
"""Ranks that are listed one by one; of more, those of the first replica's first shards stand for all."""


def axis_sizes(layout: LayoutConfig) -> dict[str, int]:
    """Sizes of the axes, outermost first."""
    return {name: getattr(layout, name) for name in AXES}


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


def place_text(rank: int, layout: LayoutConfig) -> str:
    """``rank 5, stage 1, replica 0, shard 1``, of the axes that the layout has."""
    sizes = axis_sizes(layout)
    place = coordinates(rank, sizes)
    names = {"pp": "stage", "dp": "replica", "tp": "shard"}
    return ", ".join([f"rank {rank}", *(f"{names[axis]} {place[axis]}" for axis in AXES if sizes[axis] > 1)])


def layout_text(fields: Mapping[str, object]) -> str:
    """The settings of a layout that are not the default ones: ``tp 2, microbatch 4``; or that there are none."""
    plain = asdict(LayoutConfig())
    named = [
        f"{name} {scalar_text(value)}"
        for name, value in ((name, tuple(v) if isinstance(v, list) else v) for name, v in fields.items())
        if name in plain and name not in ("timeout", "check") and value != plain[name]
    ]
    return ", ".join(named) or "one process"


def rank_map(layout: LayoutConfig, layers: Sequence[range] | None = None) -> list[str]:
    """Lines that say where each rank stands, what it holds and whom it talks to.

    ``layers`` are those of each chunk (``shapes.split.layers_of_chunks``), None where they are not known yet.
    """
    sizes, world = axis_sizes(layout), world_size(layout)
    lines = [f"{world} ranks: tp {layout.tp} × pp {layout.pp} × dp {layout.dp}"]
    ranks = (
        list(range(world))
        if world <= SHOWN
        else [rank_at(sizes, {"pp": s, "dp": 0, "tp": 0}) for s in range(layout.pp)]
    )
    if len(ranks) > SHOWN:
        ranks = [*ranks[: SHOWN // 2], *ranks[-SHOWN // 2 :]]
    before = -1
    for rank in ranks:
        place = coordinates(rank, sizes)
        held = [_span(chunk) for chunk in layers[place["pp"] :: layout.pp]] if layers else []
        if len(ranks) < world and before >= 0 and place["pp"] > coordinates(before, sizes)["pp"] + 1:
            lines.append("  …")
        where = place_text(rank, layout) if len(ranks) == world else _stage(rank, layout)
        lines.append(f"  {where}" + (f": layers {', '.join(held)}" if held else ""))
        before = rank
    lines += [f"  {line}" for line in _talk(layout, sizes)]
    return lines


def _span(layers: range) -> str:
    return str(layers.start) if len(layers) == 1 else f"{layers.start}-{layers.stop - 1}"


def _stage(first: int, layout: LayoutConfig) -> str:
    size = layout.tp * layout.dp
    return f"ranks {first}-{first + size - 1}, stage {first // size}" if size > 1 else f"rank {first}, stage {first}"


def _talk(layout: LayoutConfig, sizes: Mapping[str, int]) -> list[str]:
    """Who talks to whom: the groups of each axis, the first ones standing for all."""
    what = {
        "tp": "sum activations, every layer",
        "pp": "pass activations on and gradients back, every microbatch",
        "dp": "sum gradients, every step",
    }
    lines = []
    for axis in reversed(AXES):
        if sizes[axis] > 1:
            groups = _groups(axis, sizes)
            more = world_size(layout) // sizes[axis] - len(groups)
            shown = "  ".join(groups) + (f"  … {more} more" if more else "")
            lines.append(f"{axis} {shown}: {what[axis]}")
    return lines


def _groups(axis: str, sizes: Mapping[str, int], most: int = 4) -> list[str]:
    """The first groups of an axis, by their ranks."""
    world = sizes["pp"] * sizes["dp"] * sizes["tp"]
    stride = rank_at(sizes, {name: int(name == axis) for name in AXES})
    size = sizes[axis]
    joint = "→" if axis == "pp" else "+"
    found: list[str] = []
    for first in range(world):
        if coordinates(first, sizes)[axis]:
            continue
        if len(found) == most:
            break
        ranks = [first + stride * i for i in range(size)]
        shown = [str(rank) for rank in ranks] if size <= 8 else [str(ranks[0]), str(ranks[1]), "…", str(ranks[-1])]
        found.append(joint.join(shown))
    return found
