"""The grid of ranks: tp innermost, pp outermost, every axis' group made of the ranks it names."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from pool import Pool

from gradatim.config.grid import coordinates, rank_at
from gradatim.parallel.mesh import single


@pytest.mark.parametrize("sizes", [(1, 1, 2), (1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_places_and_groups(sizes: tuple[int, int, int], pool: Callable[[int], Pool]) -> None:
    pp, dp, tp = sizes
    found = pool(pp * dp * tp).run("work_mesh:place", pp, dp, tp)
    for rank, (i, j, k) in enumerate(itertools.product(range(pp), range(dp), range(tp))):
        axes = found[rank]
        assert [axes[name][:2] for name in ("pp", "dp", "tp")] == [(pp, i), (dp, j), (tp, k)]
        for size, index, ranks, total in axes.values():
            assert len(ranks) == size
            assert ranks[index] == rank
            assert total == sum(ranks)
        assert axes["ends"][0] == (2 if pp > 1 else 1)


def test_numbering() -> None:
    sizes = {"pp": 2, "dp": 3, "tp": 4}
    assert [rank_at(sizes, coordinates(rank, sizes)) for rank in range(24)] == list(range(24))
    assert coordinates(1, sizes) == {"pp": 0, "dp": 0, "tp": 1}
    assert coordinates(12, sizes) == {"pp": 1, "dp": 0, "tp": 0}
    assert single().everyone is None
