"""A debugging aid (``layout.check``): what ranks are meant to hold alike is compared while they train, bit by bit.

What is replicated drifts apart silently: a mask drawn differently, a gradient not summed, a collective whose result
depends on the rank. Compared are, over the axis named:

    tp      tokens, loss, parameters and gradients that are not split, and activations between the parts of a block;
            not under sequence parallelism, where ranks hold different positions of those
    dp      parameters, and gradients unless each replica has a shard of them (ZeRO-1)
    ends    the two copies of a tied embedding, and their gradients

Each comparison is a collective over the whole tensor, so this is for finding faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradatim.errors import Problem, ReplicaError
from gradatim.parallel.build import Chunk
from gradatim.parallel.collectives import stack_of_ranks
from gradatim.parallel.mesh import Axis, Mesh

if TYPE_CHECKING:
    from gradatim.parallel.optimizer import ShardedAdamW


class Replicas:
    """What this rank holds as others do, compared whenever it is told to; all ranks tell alike.

    Args:
        chunks: of this rank, by number; their activations are compared from now on, as they are made.
        optimizer: knows which gradients it updates from.
        mesh: this rank's place.
    """

    def __init__(self, chunks: Mapping[int, Chunk], optimizer: ShardedAdamW, mesh: Mesh) -> None:
        self.chunks, self.optimizer, self.mesh = chunks, optimizer, mesh
        self.sequence = any(spec.partial for chunk in chunks.values() for spec in chunk.specs.values())
        self.steps = 0
        self.compared: Counter[tuple[str, str]] = Counter()
        """(axis, kind): tensors found equal on this rank."""
        if mesh.tp.size > 1 and not self.sequence:
            for chunk in chunks.values():
                _attend(chunk.model, lambda x, name, what: self._compare("activations", x, mesh.tp, name, what))

    def tokens(self, batch: Mapping[str, Tensor]) -> None:
        """Compare what a step learns from, ids and targets and what there is besides; its beginning."""
        self.steps += 1
        for name, tensor in batch.items():
            self._compare("tokens", tensor, self.mesh.tp, name, "tokens are")

    def parameters(self) -> None:
        """Compare the weights."""
        held = [(chunk.specs[n], p) for chunk in self.chunks.values() for n, p in chunk.model.named_parameters()]
        for axis in (self.mesh.tp, self.mesh.dp, self.mesh.ends):
            for spec, parameter in held:
                if axis is self.mesh.dp or (spec.tied if axis is self.mesh.ends else spec.split is None):
                    self._compare("parameters", parameter, axis, spec.global_name, "the parameter is")

    def loss(self, loss: Tensor) -> None:
        """Compare the sums of losses, which are 0 where the last chunk is not held."""
        self._compare("losses", loss.reshape(-1), self.mesh.tp, "loss", "the sum of losses is")

    def gradients(self) -> None:
        """Compare the gradients of a step, after they have been summed and before the update."""
        sharded = self.optimizer.gradients.sharded
        for axis in (self.mesh.tp, self.mesh.dp, self.mesh.ends):
            for leaf in self.optimizer.leaves:
                assert leaf.weight.grad is not None
                for part in leaf.parts:
                    spec = part.spec
                    alike = not sharded if axis is self.mesh.dp else spec.split is None
                    if spec.tied if axis is self.mesh.ends else alike:
                        gradient = leaf.of(part, leaf.weight.grad)
                        inside = (spec.local, part.begin)
                        self._compare("gradients", gradient, axis, spec.global_name, "the gradient is", inside)

    def summary(self) -> str:
        """What has been compared, as one line; it was equal, or this rank would not say anything."""
        axes: dict[str, list[str]] = {}
        for (axis, kind), count in self.compared.items():
            axes.setdefault(axis, []).append(f"{count:,} {kind}")
        found = "; ".join(f"over {axis} {', '.join(counts)}" for axis, counts in axes.items()) or "nothing to compare"
        shards = " (activations between blocks are shards of the sequence, and were not)" if self.sequence else ""
        return f"layout.check: equal to the bit in {self.steps:,} steps: {found}{shards}"

    def _compare(
        self, kind: str, x: Tensor, axis: Axis, name: str, what: str, inside: tuple[Sequence[int], int] | None = None
    ) -> None:
        if axis.size > 1:
            compare(x, axis, name, what, inside)
            self.compared[axis.name, kind] += 1


def compare(x: Tensor, axis: Axis, name: str, what: str, inside: tuple[Sequence[int], int] | None = None) -> None:
    """Compare a tensor over an axis; every rank of it calls this alike.

    Args:
        x: the tensor.
        axis: whose ranks are to hold the same.
        name: what it belongs to.
        what: what it is, to people: ``the gradient is``.
        inside: if it is a run of a larger tensor's numbers, that one's shape and where the run begins in it.

    Raises:
        ReplicaError: it differs; the problem says where first, and what each rank has there.
    """
    parts = stack_of_ranks(x.detach().contiguous(), axis).flatten(1)
    # Compared as bits: a NaN is like itself, and -0.0 is not like 0.0.
    bits = parts.view(torch.uint8).view(axis.size, -1, parts.element_size())
    differs = (bits != bits[0]).any(2).any(0)
    if not bool(differs.any()):
        return
    first = int(differs.nonzero()[0])
    shape, begin = inside or (x.shape, 0)
    place = [int(i) for i in torch.unravel_index(torch.tensor(begin + first), tuple(shape))]
    values = ", ".join(f"{value!r} on rank {rank}" for value, rank in zip(parts[:, first].tolist(), axis.ranks))
    raise ReplicaError(
        Problem(
            where=name,
            what=f"{what} meant to be equal over {axis.name}, and is not",
            got=f"{int(differs.sum())} of {x.numel()} numbers differ, first at {place}: {values}",
            allowed=f"the same bits on ranks {', '.join(map(str, axis.ranks))}",
            attempt="all that was compared before is equal: look at what makes this tensor, or at the machine's memory",
        )
    )


def _attend(model: Any, seen: Callable[[Tensor, str, str], None]) -> None:
    """Have a function called with what embedding, blocks, their parts and the last norm return, in training."""

    def hook(name: str) -> Any:
        def forward(module: nn.Module, _: Any, made: Tensor) -> None:
            if module.training:
                seen(made, name, "what it returns is")

        return forward

    named = [("embed", model.embed), ("head", model.head)]
    for number, block in model.blocks.named_children():
        # The residual stream is the sum of what the parts return.
        named += [(f"blocks.{number}.{part}", module) for part, module in block.named_children()]
        named.append((f"blocks.{number}", block))
    for name, module in named:
        if module is not None:
            module.register_forward_hook(hook(name))
