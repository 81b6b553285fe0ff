"""AdamW over what this rank updates, with the norm of the whole model's gradient.

ZeRO-0: every replica updates every parameter it holds, as the serial optimizer does. ZeRO-1 (Rajbhandari et al. 2020,
https://arxiv.org/abs/1910.02054, section 5.1): a rank holds moments of, and updates, its shard of each flat bucket, and
the updated shards are gathered; moments and update cost a dp-th, and the bytes moved are those of ZeRO-0.
AdamW works number by number, so cutting a matrix anywhere changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradatim.config.settings import OptimizerConfig
from gradatim.parallel.gradients import Gradients, decays
from gradatim.parallel.shards import all_gather_, shard_of

if TYPE_CHECKING:
    from gradatim.parallel.spec import ParameterSpec

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by the names of torch."""
ROW = 512
"""Squares summed in fp32 before the sums are taken further in fp64. One fp32 sum over a matrix of 19 million numbers
loses the fourth digit; this keeps ten, as fast."""


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a parameter's numbers: elements ``begin`` to ``end`` of what this rank holds of it, flattened."""

    spec: ParameterSpec
    begin: int
    end: int
    at: int
    """Where the run begins in its leaf."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor that the optimizer updates: a whole parameter, or a shard of a bucket with the parameters it cuts."""

    weight: nn.Parameter
    decays: bool
    parts: tuple[Part, ...]
    share: float = 1.0
    """Of the learning rate."""

    def of(self, part: Part, tensor: Tensor) -> Tensor:
        """The numbers of a part in a tensor shaped like the leaf, as a vector that shares their memory."""
        return tensor.view(-1)[part.at : part.at + part.end - part.begin]


class ShardedAdamW:
    """Updates this rank's weights from ``gradients``, between their ``finish`` and ``begin``.

    Under ZeRO-1 the parameters become views of flat buffers, in which the shards are gathered after a step.
    """

    def __init__(self, gradients: Gradients, config: OptimizerConfig) -> None:
        self.gradients, self.mesh = gradients, gradients.mesh
        self._flat: list[Tensor] = []
        """Weights of each bucket under ZeRO-1, placed as their gradients are."""
        self.leaves = list(self._shards() if gradients.sharded else self._whole())
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
        for leaf in self.leaves:
            groups.setdefault((leaf.decays, leaf.share), []).append(leaf.weight)
        listed = [
            {"params": held, "weight_decay": config.weight_decay if decaying else 0.0, "share": share}
            for (decaying, share), held in groups.items()
        ]
        self.inner = torch.optim.AdamW(listed, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)

    def _whole(self) -> Iterator[Leaf]:
        for slot in self.gradients.slots:
            part = Part(slot.spec, 0, slot.parameter.numel(), 0)
            yield Leaf(slot.parameter, decays(slot.spec), (part,), slot.share)

    @torch.no_grad()
    def _shards(self) -> Iterator[Leaf]:
        """Move the weights into flat buffers, and cut this rank's shard of each."""
        dp = self.mesh.dp
        for bucket in self.gradients.buckets:
            flat = torch.zeros_like(bucket.flat)
            for slot in bucket.slots:
                view = flat[slot.begin : slot.end].view(slot.parameter.shape)
                view.copy_(slot.parameter)
                slot.parameter.data = view
            self._flat.append(flat)
            weight = nn.Parameter(shard_of(flat, dp))
            weight.grad = self.gradients.reduced(bucket)
            first, last = dp.index * len(weight), (dp.index + 1) * len(weight)
            parts = []
            for slot in bucket.slots:
                begin, end = max(slot.begin, first), min(slot.end, last)
                if begin < end:
                    parts.append(Part(slot.spec, begin - slot.begin, end - slot.begin, begin - first))
            yield Leaf(weight, bucket.decays, tuple(parts), bucket.share)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.leaves[0].weight.device

    # ------------------------------------------------------------------ a step

    @torch.no_grad()
    def norm(self) -> float:
        """Euclidean norm of the model's gradient: each number counted once, the same bits on every rank.

        Not finite wherever any number is not, on all ranks.
        """
        mesh = self.mesh
        squares = [torch.zeros((), dtype=torch.float64, device=self.device)]
        # Of ranks that hold the same numbers the first counts them.
        if self.gradients.sharded or mesh.dp.index == 0:
            for leaf in self.leaves:
                assert leaf.weight.grad is not None
                for part in leaf.parts:
                    if not part.spec.copy and (part.spec.split is not None or mesh.tp.index == 0):
                        squares.append(sum_of_squares(leaf.of(part, leaf.weight.grad)))
        total = torch.stack(squares).sum(0, keepdim=True)
        if mesh.world > 1:
            # Gathered rather than summed on the way: every rank adds the same numbers in the same order.
            found = [torch.empty_like(total) for _ in range(mesh.world)]
            dist.all_gather(found, total, group=mesh.everyone)
            total = torch.cat(found).sum(0)
        return math.sqrt(value) if (value := float(total)) >= 0.0 else value

    @torch.no_grad()
    def step(self, rate: float, norm: float, clip: float | None) -> None:
        """Update the weights at this learning rate, the gradient scaled so that its norm is at most ``clip``.

        Args:
            rate: learning rate.
            norm: what ``norm()`` answered.
            clip: largest norm; None means no clipping.
        """
        if clip is not None and norm > clip:
            torch._foreach_mul_([leaf.weight.grad for leaf in self.leaves if leaf.weight.grad is not None], clip / norm)
        for group in self.inner.param_groups:
            group["lr"] = rate * group["share"]
        self.inner.step()
        for pending in [all_gather_(flat, self.mesh.dp) for flat in self._flat]:
            pending.wait()

    # ------------------------------------------------------------------ its state

    def moments(self, leaf: Leaf) -> dict[str, Tensor]:
        """AdamW's moments of a leaf by name, shaped like it; none before the first update."""
        state = self.inner.state.get(leaf.weight, {})
        return {name: state[name] for name in MOMENTS if name in state}

    def allocate(self, updates: int) -> None:
        """Make room for the moments of a run that has made ``updates`` updates, to be filled by whoever restores it."""
        for leaf in self.leaves:
            like = leaf.weight.detach()
            step = torch.full((), updates, dtype=torch.float32, device=like.device)
            self.inner.state[leaf.weight] = {"step": step, **{name: torch.zeros_like(like) for name in MOMENTS}}


def sum_of_squares(vector: Tensor) -> Tensor:
    """Σ x² of a vector as an fp64 scalar, in one pass."""
    whole = len(vector) // ROW * ROW
    norms = torch.linalg.vector_norm(vector[:whole].view(-1, ROW), dim=1).double()
    total: Tensor = norms.square().sum() + vector[whole:].double().square().sum()
    return total
