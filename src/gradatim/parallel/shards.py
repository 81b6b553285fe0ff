"""Sums of flat buffers over an axis, whole or one shard to each rank, and shards put together again.

    all-reduce      every rank has the sum                                   moves 2 (n-1)/n of the buffer
    reduce-scatter  rank i has the i-th n-th of the sum                      (n-1)/n
    all-gather      every rank has all n-ths                                 (n-1)/n

All work in place on a buffer that its axis' size divides, and begin without waiting (Rajbhandari et al. 2020,
https://arxiv.org/abs/1910.02054, section 7: the two halves cost what the whole costs). On CPUs ranks exchange the
parts directly: gloo's own two halves copy more than they move, and together take three times as long as its whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradatim.parallel import collectives
from gradatim.parallel.mesh import Axis


class Pending:
    """Something begun on a buffer; the buffer is as promised once ``wait`` has returned."""

    def __init__(self, works: Sequence[Any] = (), after: Callable[[], None] | None = None) -> None:
        self._works, self._after = list(works), after

    def wait(self) -> None:
        """Wait, on the CPU for gloo, in the current stream for NCCL; a second call does nothing."""
        works, after, self._works, self._after = self._works, self._after, [], None
        for work in works:
            work.wait()
        if after is not None:
            after()


def shard_of(flat: Tensor, axis: Axis) -> Tensor:
    """The n-th of a buffer that is this rank's, a view of it."""
    size = len(flat) // axis.size
    return flat[axis.index * size : (axis.index + 1) * size]


def all_reduce_(flat: Tensor, axis: Axis) -> Pending:
    """The buffer becomes the sum of all ranks' buffers, with the same bits on each."""
    if axis.size == 1:
        return Pending()
    return Pending([dist.all_reduce(flat, group=axis.group, async_op=True)])


def reduce_scatter_(flat: Tensor, axis: Axis) -> Pending:
    """The shard of the buffer that is this rank's becomes that of the sum; the rest has no particular content then."""
    if axis.size == 1:
        return Pending()
    if not collectives.exchanges_directly(flat):
        return Pending([collectives.reduce_scatter(shard_of(flat, axis), flat, group=axis.group, async_op=True)])
    own = shard_of(flat, axis)
    others = [place for place in range(axis.size) if place != axis.index]
    parts = {place: torch.empty_like(own) for place in others}
    whole = flat.view(axis.size, -1)
    works = [dist.irecv(parts[place], axis.ranks[place], group=axis.group) for place in others]
    works += [dist.isend(whole[place], axis.ranks[place], group=axis.group) for place in others]

    def add() -> None:
        if axis.size == 2:
            own.add_(parts[others[0]])
            return
        # In the order of ranks, so that the bits do not depend on who holds which shard.
        parts[axis.index] = own
        total = parts[0].clone() if axis.index == 0 else parts[0]
        for place in range(1, axis.size):
            total.add_(parts[place])
        own.copy_(total)

    return Pending(works, add)


def all_gather_(flat: Tensor, axis: Axis) -> Pending:
    """Every shard of the buffer becomes that of the rank it belongs to."""
    if axis.size == 1:
        return Pending()
    own = shard_of(flat, axis)
    if not collectives.exchanges_directly(flat):
        return Pending([collectives.all_gather(flat, own, group=axis.group, async_op=True)])
    others = [place for place in range(axis.size) if place != axis.index]
    whole = flat.view(axis.size, -1)
    works = [dist.irecv(whole[place], axis.ranks[place], group=axis.group) for place in others]
    works += [dist.isend(own, axis.ranks[place], group=axis.group) for place in others]
    return Pending(works)
