"""One pool of workers per world size, for all tests of this folder and no longer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pool import Pool


@pytest.fixture(scope="package")
def pool() -> Iterator[Callable[[int], Pool]]:
    """``pool(2).run("work_mesh:place")``: results by rank."""
    pools: dict[int, Pool] = {}

    def of(world: int) -> Pool:
        return pools.setdefault(world, Pool(world))

    yield of
    for started in pools.values():
        started.stop()
