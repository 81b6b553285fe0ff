"""Gradients that several ranks hold parts of, summed while the backward pass still runs.

Gradients of parameters that are finished at about the same time lie side by side in one flat bucket (Li et al. 2020,
https://arxiv.org/abs/2006.15704, section 3.2): few large sums rather than many small ones, begun as each bucket fills
during the backward pass of the last microbatch, hidden behind the rest of it. Earlier microbatches only accumulate.
Under ZeRO-1 the sum over replicas is a reduce-scatter: a rank gets that part of each bucket whose weights it updates
(Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5.1).

What is summed, and where:

    over dp     every gradient: replicas have read different sequences. Nothing is averaged, for losses are divided by
                the count of the whole step before their gradients are taken
    over tp     gradients that are partial there: of what works on shards of the sequence (norms, biases of row-parallel
                layers, positions; Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 4.2.2)
    over ends   the embedding tied to the output matrix, which lies on the first and the last stage of a pipeline
                (Narayanan et al. 2021, https://arxiv.org/abs/2104.04473, section 4)

No rank waits for a sum before ``finish``, and each group's sums begin in an order fixed by the model alone: by number
of the bucket, whichever is full first. So ranks cannot wait for each other in a circle, and the bits repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradatim.parallel.mesh import Mesh
from gradatim.parallel.shards import Pending, all_reduce_, reduce_scatter_, shard_of

if TYPE_CHECKING:
    from gradatim.parallel.build import Chunk
    from gradatim.parallel.spec import ParameterSpec

BUCKET_BYTES = 25 << 20
"""As in DDP: large enough for a sum's bandwidth to count rather than its latency, small enough for many to overlap."""
ALIGNMENT = 64
"""Every parameter's place in a bucket is a multiple of so many bytes, as torch's own allocations are: kernels read
views of a bucket as fast as tensors of their own."""


@dataclass(slots=True)
class Slot:
    """A parameter and its place in a bucket."""

    name: str
    """In its chunk."""
    parameter: nn.Parameter
    spec: ParameterSpec
    begin: int = 0
    """Number of its first element in the bucket."""
    main: Tensor | None = None
    """Its gradient, the view of the bucket that ``parameter.grad`` is; None where nothing is to be summed."""
    touched: bool = False
    """Whether it got a gradient in this step."""
    final: bool = False
    """Whether that gradient is complete."""
    share: float = 1.0
    """Of the learning rate."""

    @property
    def end(self) -> int:
        """Number of the element after its last one in the bucket."""
        return self.begin + self.parameter.numel()


class Bucket:
    """Gradients of one chunk that are summed together.

    All decay or none does (as ``spec.shape`` has two dimensions or fewer), all learn at one share of the rate, all are
    partial over tp or none is, and a tied matrix lies alone: first and last stage cut it alike. ``flat`` is padded to a
    multiple of the replicas.
    """

    def __init__(self, slots: Sequence[Slot], chunk: int, shards: int, partial: bool) -> None:
        self.slots, self.chunk, self.partial = list(slots), chunk, partial
        self.decays, self.tied, self.share = decays(slots[0].spec), slots[0].spec.tied, slots[0].share
        first = slots[0].parameter
        unit = max(1, ALIGNMENT // first.element_size())
        size = 0
        for slot in slots:
            slot.begin = size
            size += -(-slot.parameter.numel() // unit) * unit
        size = -(-size // (shards * unit)) * shards * unit
        self.flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        for slot in slots:
            slot.main = self.flat[slot.begin : slot.end].view(slot.parameter.shape)
        self.waiting = len(self.slots)
        self.pending = Pending()

    def reset(self) -> None:
        """Forget the last step."""
        self.waiting = len(self.slots)
        for slot in self.slots:
            slot.touched = slot.final = False
            slot.parameter.grad = None


def alike(name: str) -> float:
    """Every parameter learns at the whole rate."""
    return 1.0


class Gradients:
    """The gradients of this rank's chunks over a step: ``begin``, backward passes, ``finish``.

    After ``finish`` every ``parameter.grad`` is the step's gradient; where ``sharded`` (ZeRO-1), only those elements
    are that lie in this rank's shard of their bucket.

    Args:
        chunks: what this rank holds of the model, in the order of the forward pass.
        mesh: this rank's place.
        zero: 0, or 1 to shard optimizer state over dp.
        bucket_bytes: size from which a bucket is full; a parameter is never cut.
        share: of the learning rate that a parameter has, by its name in the whole model.
    """

    def __init__(
        self, chunks: Sequence[Chunk], mesh: Mesh, *, zero: int = 0, bucket_bytes: int = BUCKET_BYTES,
        share: Callable[[str], float] = alike,
    ) -> None:  # fmt: skip
        self.chunks, self.mesh = list(chunks), mesh
        self.sharded = zero >= 1 and mesh.dp.size > 1
        self.slots: list[Slot] = []
        """Every parameter once, in order of readiness."""
        self.buckets: list[Bucket] = []
        """In the order in which their sums begin."""
        for index in reversed(range(len(self.chunks))):
            slots = [
                Slot(name, parameter, spec := self.chunks[index].specs[name], share=share(spec.global_name))
                for name, parameter in reversed(list(self.chunks[index].model.named_parameters()))
                if parameter.requires_grad
            ]
            self.slots += slots
            self.buckets += self._buckets(slots, index, bucket_bytes)
        self._of = {slot.parameter: (slot, bucket) for bucket in self.buckets for slot in bucket.slots}
        self._armed: set[int] = set()
        self._turn = 0
        self._deferred: set[nn.Parameter] = set()
        """Parameters seen to get their gradient from a queue, after the backward pass proper."""
        self._swept: set[int] = set()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._produced, slot, bucket))  # type: ignore[no-untyped-call]
            for parameter, (slot, bucket) in self._of.items()
        ]
        for index, chunk in enumerate(self.chunks):
            if chunk.queue is not None:
                chunk.queue.on_ready(partial(self._produced_later, index))

    def _buckets(self, slots: Sequence[Slot], chunk: int, most_bytes: int) -> Iterator[Bucket]:
        """Cut a chunk's parameters into buckets, ordered by when the last parameter of each is ready."""
        mesh = self.mesh
        shards = mesh.dp.size if self.sharded else 1
        filling: dict[tuple[object, ...], list[int]] = {}
        groups: list[list[int]] = []
        for number, slot in enumerate(slots):
            spec, parameter = slot.spec, slot.parameter
            summed = spec.partial and mesh.tp.size > 1
            tied = spec.tied and mesh.ends.size > 1
            if mesh.dp.size == 1 and not summed and not tied:
                continue  # nothing to sum: the gradient stays where autograd puts it
            key = (decays(spec), slot.share, summed, tied, parameter.dtype, parameter.device)
            group = filling.setdefault(key, [])
            group.append(number)
            if tied or sum(slots[i].parameter.nbytes for i in group) >= most_bytes:
                groups.append(filling.pop(key))
        for group in sorted([*groups, *filling.values()], key=lambda group: group[-1]):
            members = [slots[i] for i in group]
            yield Bucket(members, chunk, shards, members[0].spec.partial and mesh.tp.size > 1)

    # ------------------------------------------------------------------ a step

    def begin(self) -> None:
        """Start a step: no gradient anywhere, and none is communicated until ``last_backward``."""
        self._armed.clear()
        self._swept.clear()
        self._turn = 0
        for slot in self.slots:
            slot.parameter.grad = None
        for bucket in self.buckets:
            bucket.reset()

    def last_backward(self, chunk: Chunk) -> None:
        """What this chunk's parameters get from now on completes their gradients: full buckets begin to be summed."""
        self._armed.add(next(index for index, other in enumerate(self.chunks) if other is chunk))

    def finish(self) -> None:
        """Sum what is left, and wait for all of it. Parameters that got no gradient count as zero."""
        for slot in self.slots:
            if slot.main is None:
                if slot.parameter.grad is None:
                    slot.parameter.grad = torch.zeros_like(slot.parameter)
            elif not slot.touched:
                slot.main.zero_()
                slot.parameter.grad = slot.main
        # Those partial over tp were kept back for here: the model's own sums over tp are over now, so the order within
        # that group is certain. They are vectors mostly, with little to hide.
        partials = [bucket for bucket in self.buckets if bucket.partial]
        over_tp = [all_reduce_(bucket.flat, self.mesh.tp) for bucket in partials]
        self._start_those(lambda bucket: True)
        for bucket, pending in zip(partials, over_tp):
            pending.wait()
            self._sum_over_dp(bucket)
        over_ends = []
        for bucket in self.buckets:
            if bucket.tied and self.mesh.ends.size > 1:  # of what this rank will update only: the twin cuts alike
                bucket.pending.wait()
                over_ends.append(all_reduce_(self.reduced(bucket), self.mesh.ends))
        for pending in [*(bucket.pending for bucket in self.buckets), *over_ends]:
            pending.wait()

    def reduced(self, bucket: Bucket) -> Tensor:
        """The part of a bucket that holds the step's gradient after ``finish``: this rank's shard, or all."""
        return shard_of(bucket.flat, self.mesh.dp) if self.sharded else bucket.flat

    def close(self) -> None:
        """Let go of the parameters, so that another ``Gradients`` may take them."""
        for hook in self._hooks:
            hook.remove()

    # ------------------------------------------------------------------ while it runs

    def _produced(self, slot: Slot, bucket: Bucket, parameter: Tensor) -> None:
        """Autograd has added to a parameter's gradient.

        The first time it has put a tensor of its own there. Moving that into the bucket reads and writes it once;
        zeroing the bucket for autograd to add to would write the bucket twice and read both.
        """
        if parameter.grad is None:  # its product waits in a queue
            return
        if parameter.grad is not slot.main:
            assert slot.main is not None
            slot.main.copy_(parameter.grad)
            parameter.grad = slot.main
        slot.touched = True
        if bucket.chunk in self._armed:
            self._completed(slot, bucket)

    def _produced_later(self, chunk: int, parameter: nn.Parameter) -> None:
        """A queue of weight gradients has added to a parameter's gradient, after the backward pass of its chunk."""
        self._deferred.add(parameter)
        if parameter not in self._of:
            return
        slot, bucket = self._of[parameter]
        if chunk in self._armed and chunk not in self._swept:
            # The queue is what completes this chunk: its backward passes are over, and so is all that they produce.
            self._swept.add(chunk)
            for other in self.buckets:
                if other.chunk == chunk:
                    for inner in other.slots:
                        if inner.touched and inner.parameter not in self._deferred:
                            self._completed(inner, other)
        self._produced(slot, bucket, parameter)

    def _completed(self, slot: Slot, bucket: Bucket) -> None:
        if slot.final:
            return
        slot.final = True
        bucket.waiting -= 1
        self._start_those(lambda bucket: bucket.waiting == 0)

    def _start_those(self, ready: Callable[[Bucket], bool]) -> None:
        """Begin the sums whose turn it is, up to the first bucket that is not ready."""
        while self._turn < len(self.buckets):
            bucket = self.buckets[self._turn]
            if not bucket.partial:
                if not ready(bucket):
                    return
                self._sum_over_dp(bucket)
            self._turn += 1

    def _sum_over_dp(self, bucket: Bucket) -> None:
        bucket.pending = (reduce_scatter_ if self.sharded else all_reduce_)(bucket.flat, self.mesh.dp)


def decays(spec: ParameterSpec) -> bool:
    """Whether weight decay pulls at a parameter: matrices and embeddings, not vectors."""
    return len(spec.shape) >= 2
