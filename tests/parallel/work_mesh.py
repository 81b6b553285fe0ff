"""What the workers do for test_mesh.py."""

from __future__ import annotations

import torch
import torch.distributed as dist

from gradatim.config.settings import LayoutConfig
from gradatim.parallel.mesh import create_mesh


def place(rank: int, world: int, pp: int, dp: int, tp: int) -> dict[str, tuple[int, int, tuple[int, ...], float]]:
    """Size, place and ranks of each axis, and the sum of its members' ranks as its group computes it."""
    mesh = create_mesh(LayoutConfig(pp=pp, dp=dp, tp=tp))
    found = {}
    for name in ("pp", "dp", "tp", "ends"):
        axis = getattr(mesh, name)
        total = torch.tensor(float(rank))
        if axis.group is not None:
            dist.all_reduce(total, group=axis.group)
        found[name] = (axis.size, axis.index, axis.ranks, total.item())
    return found
