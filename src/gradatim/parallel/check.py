"""A debugging aid: tensors that tensor-parallel ranks are meant to hold alike are compared, bit by bit.

What is replicated drifts apart silently: a mask drawn differently, a gradient not summed, a collective whose result
depends on the rank. ``watch`` compares activations between blocks as they are made; parameters and gradients are
compared when asked. Each comparison is a collective over the whole tensor, so this is for finding faults.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradatim.parallel.build import Chunk
from gradatim.parallel.collectives import stack_of_ranks
from gradatim.parallel.mesh import Axis


class ReplicaError(RuntimeError):
    """Ranks hold different numbers where they are meant to hold the same; raised on all of them."""


def check_replicated(x: Tensor, axis: Axis, what: str) -> None:
    """Compare a tensor over an axis; every rank of it calls this alike.

    Raises:
        ReplicaError: it differs; the message says where first, and what each rank has there.
    """
    if axis.size == 1:
        return
    parts = stack_of_ranks(x.detach(), axis).flatten(1)
    # Compared as bits: a NaN is like itself, and -0.0 is not like 0.0.
    bits = parts.view(torch.uint8).view(axis.size, -1, parts.element_size())
    differs = (bits != bits[0]).any(2).any(0)
    if not bool(differs.any()):
        return
    first = int(differs.nonzero()[0])
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), x.shape))
    values = ", ".join(f"{value!r} on rank {rank}" for value, rank in zip(parts[:, first].tolist(), axis.ranks))
    raise ReplicaError(
        f"{what} is meant to be equal over {axis.name} and is not: {int(differs.sum())} of {x.numel()} numbers differ, "
        f"first at {list(place)}: {values}"
    )


def watch(chunk: Chunk, axis: Axis) -> list[RemovableHandle]:
    """Compare what enters and leaves each block, from now on until the returned handles are removed.

    Under sequence parallelism ranks hold different positions there, so only what the norms' layers read is left to
    compare: nothing is watched, parameters remain to be checked.
    """
    if axis.size == 1 or any(spec.partial for spec in chunk.specs.values()):
        return []

    def before(name: str) -> Any:
        return lambda module, given: check_replicated(given[0], axis, f"what enters {name}")

    def after(name: str) -> Any:
        return lambda module, given, made: check_replicated(made, axis, f"what {name} returns")

    handles = []
    blocks: list[tuple[str, nn.Module]] = [(f"blocks.{n}", block) for n, block in chunk.model.blocks.named_children()]
    for number, (name, block) in enumerate(blocks):
        if number == 0:
            handles.append(block.register_forward_pre_hook(before(name)))
        for part, module in block.named_children():  # the residual stream is the sum of what these return
            handles.append(module.register_forward_hook(after(f"{name}.{part}")))
        handles.append(block.register_forward_hook(after(name)))
    return handles


def check_parameters(chunk: Chunk, axis: Axis) -> None:
    """Compare every parameter that is not split."""
    for name, parameter in chunk.model.named_parameters():
        if chunk.specs[name].split is None:
            check_replicated(parameter, axis, name)


def check_gradients(chunk: Chunk, axis: Axis) -> None:
    """Compare every gradient that is neither split nor still to be summed over the axis."""
    for name, parameter in chunk.model.named_parameters():
        spec = chunk.specs[name]
        if spec.split is None and not spec.partial and parameter.grad is not None:
            check_replicated(parameter.grad, axis, f"the gradient of {name}")
