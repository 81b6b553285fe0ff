"""Running a lowered schedule: what was validated, simulated and drawn is what is carried out here, action by action.

A rank goes through its own list. Transfers are begun where they stand and waited for where their content is used: a
receive before the action that needs it, a send only to free its buffer. Transfers that the lowering grouped (opposite
directions between two ranks) are given to the network in one batch. Nothing carries a tag: the k-th send from a to b
meets the k-th receive on b from a, which the validator has made sure of, so the same list runs on NCCL and on gloo.

The backward pass of a chunk starts from the edge of its graph, not from its output: once sent, an activation is freed,
though its backward pass may be many actions away (as the "pseudo-deallocated" outputs of Megatron-LM are).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradatim.objectives.objective import Objective
from gradatim.parallel.build import Chunk
from gradatim.parallel.mesh import Axis
from gradatim.schedules import Action, Schedule
from gradatim.schedules.actions import Result
from gradatim.text.batches import Batch


@dataclass(frozen=True, slots=True)
class Microbatch:
    """What one pass through the pipeline works on."""

    batch: Batch
    """On this rank's device. The first chunk reads ids, the last one targets, all of them which positions are text."""
    seeds: Mapping[int, int] = field(default_factory=dict)
    """Chunk: what seeds dropout in its forward pass; none where nothing is dropped."""
    head_seed: int | None = None
    """What seeds dropout anew behind the last block, where blocks hold shards of the sequence and draw units of their
    own: a head that reads whole sequences is computed by every shard, and they must drop the same."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a rank did in one run of the schedule."""

    sums: dict[str, Tensor]
    """Each term's sum over the microbatches, float64; 0 where this rank does not hold the last chunk."""
    actions: tuple[Action, ...]
    """The actions that compute, in order."""
    spans: tuple[tuple[float, float], ...]
    """Start and end of each, seconds since the run began on this rank."""


class Pipeline:
    """A rank's part of a pipeline.

    Args:
        schedule: lowered; its rank ``axis.index`` is run here.
        chunks: the model chunks of this rank, by their number in the schedule.
        axis: the stages.
        objective: how a batch is fed to the model, and what is summed at its end.
        width: of the activations that pass between chunks, ``[b t width]``.
        shards: how many equal parts of ``t`` an activation is cut into (sequence parallelism), else 1.
        dtype: of the activations.
        arithmetic: a context for forward passes (autocast).
        last_backward: called before a chunk's gradients of this step become final.
        report: told each action before it is done, for whoever must name it when it fails.
    """

    def __init__(
        self,
        schedule: Schedule,
        chunks: Mapping[int, Chunk],
        axis: Axis,
        objective: Objective,
        *,
        width: int,
        shards: int = 1,
        dtype: torch.dtype = torch.float32,
        arithmetic: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        last_backward: Callable[[Chunk], None] = lambda chunk: None,
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.schedule, self.chunks, self.axis, self.objective = schedule, chunks, axis, objective
        self.width, self.shards, self.dtype, self.arithmetic = width, shards, dtype, arithmetic
        self.last_backward, self.report = last_backward, report
        self.batches = list(schedule.batches(axis.index))
        final = ("B", "W")
        left = [action for action in schedule.ranks[axis.index] if action.kind in final]
        self.finishing = {next(action for action in reversed(left) if action.chunk == c) for c in chunks if left}
        """Of each chunk, the action after which its gradients are complete."""

    def run(
        self, microbatches: Sequence[Microbatch], counts: Mapping[str, int] | None = None, backward: bool = True
    ) -> Ran:
        """Do all actions once; gradients of (sum of a term / its count) are accumulated in the chunks' parameters.

        Args:
            microbatches: as many as the schedule has, of any sizes, equal on all stages.
            counts: what each term is divided by before its gradients are taken; 1 where not given.
            backward: without, the schedule holds forward passes only and no graph is kept.
        """
        if len(microbatches) != self.schedule.microbatches:
            raise ValueError(f"{len(microbatches)} microbatches for a schedule of {self.schedule.microbatches}")
        step = _Step(self, microbatches, counts or {})
        with torch.set_grad_enabled(backward):
            for batch in self.batches:
                if batch[0].computes:
                    step.compute(batch[0])
                else:
                    step.transfer(batch)
        return step.end()


class _Transfer:
    """A send or receive under way; its tensor lives until it is done."""

    def __init__(self, works: list[Any], tensor: Tensor) -> None:
        self.works, self.tensor = works, tensor

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        self.works = []
        return self.tensor

    @property
    def done(self) -> bool:
        return all(work.is_completed() for work in self.works)


class _Step:
    """One run of the schedule, and what it holds meanwhile."""

    def __init__(self, pipeline: Pipeline, microbatches: Sequence[Microbatch], counts: Mapping[str, int]) -> None:
        self.pipeline, self.microbatches, self.counts = pipeline, microbatches, counts
        self.device = microbatches[0].batch.ids.device
        self.here: dict[Result, Tensor] = {}
        """Results made on this rank that a neighbouring chunk of this rank, or a send, will take."""
        self.coming: dict[Result, _Transfer] = {}
        self.going: list[_Transfer] = []
        self.kept: dict[tuple[int, int], tuple[Tensor | None, tuple[GradientEdge, ...], tuple[torch.dtype, ...]]] = {}
        """(chunk, microbatch): its input, and edges and types of its outputs, from F to B or I."""
        self.deferred: dict[tuple[int, int], Any] = {}
        names = pipeline.objective.names
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=self.device) for name in names}
        self.actions: list[Action] = []
        self.clock = _Clock(self.device)

    # ------------------------------------------------------------------ computation

    def compute(self, action: Action) -> None:
        """F, B, I or W of one chunk and microbatch."""
        pipeline = self.pipeline
        pipeline.report(str(action))
        given = [self._take(result) for result in action.needs(pipeline.schedule.last_chunk) if self._moves(result)]
        if action in pipeline.finishing:
            pipeline.last_backward(pipeline.chunks[action.chunk])
        self.actions.append(action)
        self.clock.start()
        if action.kind == "F":
            self._forward(action, given[0] if given else None)
        elif action.kind == "W":
            queue = pipeline.chunks[action.chunk].queue
            assert queue is not None
            with torch.no_grad():
                queue.run(self.deferred.pop((action.chunk, action.microbatch)))
        else:
            self._backward(action, given[0] if given else None)
        self.clock.stop()

    def _moves(self, result: Result) -> bool:
        """Whether a result is a tensor that passes between chunks (and not a chunk's own graph)."""
        return result in self.here or result in self.coming

    def _take(self, result: Result) -> Tensor:
        if result in self.coming:
            return self.coming.pop(result).wait()
        return self.here.pop(result)

    def _forward(self, action: Action, x: Tensor | None) -> None:
        pipeline, microbatch = self.pipeline, self.microbatches[action.microbatch]
        model = pipeline.chunks[action.chunk].model
        if action.chunk in microbatch.seeds:
            torch.manual_seed(microbatch.seeds[action.chunk])
        if x is not None:
            x = x.detach().requires_grad_(torch.is_grad_enabled())
        objective, batch = pipeline.objective, microbatch.batch
        with pipeline.arithmetic():
            out = objective.run(model, objective.enter(model, batch) if x is None else x, batch)
            if action.chunk == pipeline.schedule.last_chunk:
                if microbatch.head_seed is not None:
                    torch.manual_seed(microbatch.head_seed)
                sums = objective.sums(model, out, batch)
        if action.chunk == pipeline.schedule.last_chunk:
            outs = tuple(sums[name] for name in objective.names)
            for name in objective.names:
                self.sums[name] += sums[name].detach()
        else:
            outs = (out,)
            self.here["F", action.chunk, action.microbatch] = out.detach()
        if torch.is_grad_enabled():
            edges, types = tuple(map(get_gradient_edge, outs)), tuple(out.dtype for out in outs)
            self.kept[action.chunk, action.microbatch] = (x, edges, types)

    def _backward(self, action: Action, gradient: Tensor | None) -> None:
        x, edges, types = self.kept.pop((action.chunk, action.microbatch))
        if gradient is None:  # the last chunk: of the losses themselves
            counts = [self.counts.get(name, 1) for name in self.pipeline.objective.names]
            shares = [1.0 / count if count else 0.0 for count in counts]
            gradients = tuple(torch.full((), s, dtype=d, device=self.device) for s, d in zip(shares, types))
        else:
            gradients = (gradient,)
        queue = self.pipeline.chunks[action.chunk].queue if action.kind == "I" else None
        with queue.hold() if queue is not None else contextlib.nullcontext():
            torch.autograd.backward(edges, gradients)
        if queue is not None:
            self.deferred[action.chunk, action.microbatch] = queue.pop()
        if x is not None:
            assert x.grad is not None
            self.here["B", action.chunk, action.microbatch] = x.grad
            x.grad = None

    # ------------------------------------------------------------------ transfers

    def transfer(self, batch: tuple[Action, ...]) -> None:
        """Begin the transfers of a batch, together where there are several."""
        axis = self.pipeline.axis
        tensors = [self._outgoing(action) if action.sends else self._buffer(action) for action in batch]
        peers = [axis.ranks[self.pipeline.schedule.peer(action)] for action in batch]
        if len(batch) == 1:
            begin = dist.isend if batch[0].sends else dist.irecv
            works = [[begin(tensors[0], peers[0], group=axis.group)]]
        else:
            operations = [
                dist.P2POp(dist.isend if action.sends else dist.irecv, tensor, peer, group=axis.group)
                for action, tensor, peer in zip(batch, tensors, peers)
            ]
            begun = dist.batch_isend_irecv(operations)
            works = [[work] for work in begun] if len(begun) == len(batch) else [list(begun) for _ in batch]
        for action, tensor, work in zip(batch, tensors, works):
            if action.sends:
                self.going = [transfer for transfer in self.going if not transfer.done]
                self.going.append(_Transfer(work, tensor))
            else:
                self.coming[action.carried()] = _Transfer(work, tensor)

    def _outgoing(self, action: Action) -> Tensor:
        return self.here.pop(action.carried()).contiguous()

    def _buffer(self, action: Action) -> Tensor:
        *rows, t = self.microbatches[action.microbatch].batch.ids.shape
        shape = (math.prod(rows), t // self.pipeline.shards, self.pipeline.width)
        return torch.empty(shape, dtype=self.pipeline.dtype, device=self.device)

    def end(self) -> Ran:
        """Wait for what is still being sent."""
        for transfer in self.going:
            transfer.wait()
        assert not self.kept and not self.deferred and not self.coming
        return Ran(self.sums, tuple(self.actions), self.clock.spans())


class _Clock:
    """Starts and ends of actions, on the CPU by its clock, on a GPU by events that do not stop it."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.marks: list[Any] = []
        self.zero = self._now()

    def _now(self) -> Any:
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self) -> None:
        self.marks.append(self._now())

    stop = start

    def spans(self) -> tuple[tuple[float, float], ...]:
        """Seconds since the beginning; waits for a GPU."""
        if self.gpu:
            torch.cuda.synchronize()
            seconds = [self.zero.elapsed_time(mark) / 1000 for mark in self.marks]
        else:
            seconds = [mark - self.zero for mark in self.marks]
        return tuple(zip(seconds[::2], seconds[1::2]))
