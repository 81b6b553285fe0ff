"""What tensor-parallel ranks exchange inside a layer, and the five functions of it that autograd knows.

    function   forward          backward         where
    spread     identity         sum              f of Shoeybi et al. 2019 (arXiv:1909.08053): before columns
    combine    sum              identity         their g: after rows
    gather     all-gather       reduce-scatter   g of Korthikanti et al. 2022 (arXiv:2205.05198): before columns
    scatter    reduce-scatter   all-gather       their ḡ: after rows
    collect    all-gather       own part         before what every rank computes alike on the whole sequence

Gather and scatter cut along the sequence and stand in for the former under sequence parallelism. None of them changes a
tensor that somebody else may hold: autograd hands one gradient to several places, and a sum in place would be seen by
all. What begins with ``begin_`` returns at once; sums have the same bits on every rank.

On CPUs two ranks exchange their parts directly, which gloo does in two thirds of the time of its own collectives
(1.0 against 1.5 ms for 1 MB on loopback); elsewhere the backend's collectives are called.

Compiled blocks step out of compiled code for all of this, and for the layers it is part of: what is begun in one place
and waited for in another, and weight gradients that are left for later, are no pure functions of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from gradatim.parallel.mesh import Axis

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Have compiled code call a function as it is."""
    return cast(Callable[P, T], torch.compiler.disable(function))  # type: ignore[no-untyped-call]


class Coming:
    """A tensor under way: ``wait`` returns it (in the current stream, where that is a GPU's)."""

    def __init__(self, works: list[Any], result: Callable[[], Tensor]) -> None:
        self._works, self._result = works, result

    def wait(self) -> Tensor:
        """The tensor, once it is here; to be called once."""
        for work in self._works:
            work.wait()
        return self._result()


def exchanges_directly(x: Tensor) -> bool:
    """Whether ranks hand such a tensor's parts to each other, rather than call the backend's collectives."""
    return x.device.type == "cpu"


def begin_sum(x: Tensor, axis: Axis) -> Coming:
    """Begin to sum a tensor over ranks: contiguous, and made by the caller for this alone, as it may become the sum."""
    if axis.size == 1:
        return Coming([], lambda: x)
    if axis.size == 2 and exchanges_directly(x):
        works, (theirs,) = _exchange([x], [x.shape], x, axis)
        return Coming(works, lambda: x.add_(theirs))
    work = dist.all_reduce(x, group=axis.group, async_op=True)
    return Coming([work], lambda: x)


def begin_gather(x: Float[Tensor, "b s d"], axis: Axis) -> Coming:
    """Begin to put together the ranks' parts of a sequence: ``[b s d]`` to ``[b t d]``, t = s · ranks."""
    if axis.size == 1:
        return Coming([], lambda: x)
    x = x.contiguous()
    if exchanges_directly(x):
        works, others = _exchange([x] * (axis.size - 1), [x.shape] * (axis.size - 1), x, axis)
        return Coming(works, lambda: torch.cat([*others[: axis.index], x, *others[axis.index :]], 1))
    found = x.new_empty(axis.size * x.shape[0], *x.shape[1:])
    work = all_gather(found, x, group=axis.group, async_op=True)
    return Coming([work], lambda: torch.cat(found.chunk(axis.size), 1))


def begin_scatter(x: Float[Tensor, "b t d"], axis: Axis) -> Coming:
    """Begin to sum over ranks and keep this rank's part of the sequence: ``[b t d]`` to ``[b s d]``."""
    if axis.size == 1:
        return Coming([], lambda: x)
    if x.shape[1] % axis.size:
        raise ValueError(f"a sequence of {x.shape[1]} cannot be cut into {axis.size} equal parts")
    parts = x.chunk(axis.size, 1)
    own = parts[axis.index]
    if exchanges_directly(x):
        outgoing = [part.contiguous() for place, part in enumerate(parts) if place != axis.index]
        works, others = _exchange(outgoing, [own.shape] * (axis.size - 1), x, axis)

        def add() -> Tensor:
            summands = [*others[: axis.index], own, *others[axis.index :]]
            total = summands[0] + summands[1]
            for part in summands[2:]:
                total.add_(part)
            return total

        return Coming(works, add)
    found = torch.empty_like(own, memory_format=torch.contiguous_format)
    work = reduce_scatter(found, torch.cat(parts), group=axis.group, async_op=True)
    return Coming([work], lambda: found)


def _exchange(
    outgoing: list[Tensor], incoming: list[torch.Size], like: Tensor, axis: Axis
) -> tuple[list[Any], list[Tensor]]:
    """Begin to send a tensor to each other rank and to receive one from each, both in the order of ranks."""
    peers = [rank for place, rank in enumerate(axis.ranks) if place != axis.index]
    received = [like.new_empty(shape) for shape in incoming]
    works: list[Any] = [dist.irecv(tensor, peer, group=axis.group) for tensor, peer in zip(received, peers)]
    works += [dist.isend(tensor, peer, group=axis.group) for tensor, peer in zip(outgoing, peers)]
    return works, received


def stack_of_ranks(x: Tensor, axis: Axis) -> Tensor:
    """Every rank's tensor, ``[ranks *x]``: for what is small."""
    if axis.size == 1:
        return x[None]
    found = x.new_empty(axis.size, *x.shape)
    dist.all_gather(list(found.unbind(0)), x.contiguous(), group=axis.group)
    return found


def spread(x: Tensor, axis: Axis) -> Tensor:
    """f: hand a replicated tensor to each shard; the gradients that come back are summed."""
    return x if axis.size == 1 else _call(_Spread, x, axis)


def combine(x: Tensor, axis: Axis) -> Tensor:
    """g: the sum over shards, which every rank then has; its gradient is each shard's."""
    return x if axis.size == 1 else _call(_Combine, x, axis)


def gather(x: Float[Tensor, "b s d"], axis: Axis) -> Float[Tensor, "b t d"]:
    """The whole sequence from its parts; gradients are summed over shards and cut."""
    return x if axis.size == 1 else _call(_Gather, x, axis)


def scatter(x: Float[Tensor, "b t d"], axis: Axis) -> Float[Tensor, "b s d"]:
    """The sum over shards, of which each keeps a part of the sequence; gradients are gathered."""
    return x if axis.size == 1 else _call(_Scatter, x, axis)


def collect(x: Float[Tensor, "b s d"], axis: Axis) -> Float[Tensor, "b t d"]:
    """The whole sequence from its parts, for what all ranks compute alike: of the gradient, each keeps its part."""
    return x if axis.size == 1 else _call(_Collect, x, axis)


@uncompiled
def _call(function: type[torch.autograd.Function], x: Tensor, axis: Axis) -> Tensor:
    y: Tensor = function.apply(x, axis)  # type: ignore[no-untyped-call]
    return y


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return begin_sum(_own(grad), ctx.axis).wait(), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return begin_sum(_own(x), axis).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return begin_gather(x, axis).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return begin_scatter(grad, ctx.axis).wait(), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return begin_scatter(x, axis).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return begin_gather(grad, ctx.axis).wait(), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return begin_gather(x, axis).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(ctx.axis.size, 1)[ctx.axis.index], None


def _own(x: Tensor) -> Tensor:
    """A copy that nobody else holds."""
    return x.clone(memory_format=torch.contiguous_format)


# torch 2.13 gave these two their third names, and warns of the second.
reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
