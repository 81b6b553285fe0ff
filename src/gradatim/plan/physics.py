"""How long a device takes: matrix products, passes over memory, fused attention. No torch, no layouts.

A product is cut into tiles, one per unit of the device (streaming multiprocessor) at a time; what does not fill a tile
or the last wave of tiles is lost (NVIDIA, "Matrix Multiplication Background User's Guide", tile and wave
quantisation). Below a size the memory sets the pace (Williams et al. 2009, "Roofline").

``Physics`` holds the few numbers that no datasheet states. They are shared by all machines and were fitted by
``benchmarks/planner_fit.py`` to published runs; everything else stands in the cluster's file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradatim.plan.cluster import Device

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
"""Rows and columns of the tiles that libraries choose from (CUTLASS and cuBLAS have kernels of these sizes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Physics:
    """Constants shared by all machines; the default values are the fitted ones."""

    tile_intensity: float = 14.7
    """A tile of r rows and c columns runs at x/(x + this) of the rate, x = rc/(r + c): small ones wait for memory."""
    fill: float = 87.3
    """Inner length that passes before a tile's multiplications run at full rate, and after they end."""
    wave: float = 0.916
    """Share of the last, unfilled wave that is lost: 1 without any remedy, 0 with a perfect one (split or stream K)."""
    memory: float = 0.784
    """Share of the memory's datasheet bandwidth that element-wise passes reach."""
    launch: float = 3.67e-05
    """Seconds of the host per operation, eager PyTorch: no pass is faster than its operations are issued."""
    kernel: float = 1.61e-05
    """Seconds that each operation on the device takes besides its work: to start, to drain, until the next."""
    link: float = 0.822
    """Share of a link's datasheet bandwidth that collectives inside a node reach."""
    network: float = 0.915
    """Share of the network cards' datasheet bandwidth that communication across nodes reaches."""


FITTED = Physics()
"""The constants that predictions use."""


def product_seconds(physics: Physics, device: Device, rows: int, columns: int, inner: int, batch: int = 1) -> float:
    """Seconds of ``batch`` products ``[rows, inner] · [inner, columns]``, each element of ``device.element`` bytes."""
    if not rows * columns * inner * batch:
        return 0.0
    bytes_moved = 2 * batch * (rows * inner + inner * columns + rows * columns)
    compute = math.inf
    best = device.matmul * _intensity(physics, *TILES[0])
    for tile_rows, tile_columns in TILES:
        tiles = batch * math.ceil(rows / tile_rows) * math.ceil(columns / tile_columns)
        waves = tiles / device.units
        lost = physics.wave * math.ceil(waves) + (1 - physics.wave) * max(waves, 1.0)
        rate = device.matmul / device.units * _intensity(physics, tile_rows, tile_columns) * device.matmul / best
        compute = min(compute, lost * 2 * tile_rows * tile_columns * (inner + physics.fill) / rate)
    if inner % 8 or columns % 8:  # rows that do not begin at 16 bytes cannot be fed to tensor cores
        compute = max(compute, 2 * rows * columns * inner * batch / (device.vector * physics.memory))
    return max(compute, bytes_moved / (device.bandwidth * physics.memory))


def _intensity(physics: Physics, rows: int, columns: int) -> float:
    intensity = rows * columns / (rows + columns)
    return intensity / (intensity + physics.tile_intensity)


def traffic_seconds(physics: Physics, device: Device, moved: float) -> float:
    """Seconds of passes that read and write ``moved`` bytes in all."""
    return moved / (device.bandwidth * physics.memory)
