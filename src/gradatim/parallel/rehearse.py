"""One rank of a run of any size, played through on fake devices: its real model and optimizer, a real step, no numbers.

Tensors have shapes and types but no content (torch's FakeTensorMode), the other ranks do not exist (a process group
that says every collective is done), and all else is what trains: the chunk that ``build_chunk`` cuts, ``Gradients``,
``ShardedAdamW``, and ``Pipeline`` running the lowered schedule. An ``Observer`` counts what is held and what is sent.

Many microbatches repeat themselves. A step of fewer is played where that is proven to be as good: every action of the
whole step must be met in the same situation (see ``situations``), so that memory cannot rise where it was not seen.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradatim.config.derived import microbatch_count, world_size
from gradatim.config.settings import RunConfig
from gradatim.models.layers.attention import SelfAttention
from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.feed_forward import FeedForward
from gradatim.models.layers.masked_head import MaskedHead
from gradatim.models.layers.output import Head
from gradatim.objectives import objective_of
from gradatim.parallel.build import Chunk, build_chunk
from gradatim.parallel.gradients import Gradients
from gradatim.parallel.mesh import Mesh, create_mesh
from gradatim.parallel.observe import WEIGHT_GRADIENTS, Message, Observer, as_on_gpus
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.parallel.pipeline import Microbatch, Pipeline
from gradatim.schedules import Schedule, build_schedule, lower
from gradatim.schedules.actions import peak_in_flight
from gradatim.shapes.split import layers_of_chunks
from gradatim.text.feed import empty_batch
from gradatim.train.precision import arithmetic, fixed_dtype, step_arithmetic, weight_dtype

Network = Literal["nccl", "gloo"]
CPU = torch.device("cpu")
KINDS: dict[type[nn.Module], str] = {
    Embedding: "embedding",
    SelfAttention: "attention",
    FeedForward: "feed-forward",
    nn.LayerNorm: "norm",
    nn.RMSNorm: "norm",
    Head: "output",
    MaskedHead: "output",
}
"""What modules are called; the rest of a block is the residual stream."""


@dataclass(frozen=True, slots=True)
class Collective:
    """Messages of one kind, group and size."""

    kind: str
    """all-reduce, all-gather, reduce-scatter, broadcast, send, receive."""
    group: str
    """tp, dp, pp, ends (first and last stage of a pipeline), world."""
    bytes: int
    """Of one: the whole tensor that is summed, cut or gathered, or what is sent."""
    count: int
    """How many in a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a rank holds and says in a step. Bytes are of one rank."""

    parameters: int
    """Numbers among its weights, without padding."""
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_activation_bytes: int
    """Whatever else is held, at the step's worst moment."""
    activation_bytes: dict[str, int]
    """Those bytes by what they are for."""
    peak_bytes: int
    """Everything held, at its worst moment."""
    collectives: list[Collective]
    layout: dict[str, Any]
    """The layout, and this rank's place in it."""
    microbatches: int
    """Of a step."""
    rehearsed_microbatches: int
    """Of the step that was played: fewer only where peaks are the same for certain; messages are those of all."""
    seconds: float = field(default=0.0)
    """That playing took."""


def rehearse(
    config: RunConfig,
    vocab_size: int,
    rank: int,
    *,
    network: Network = "nccl",
    fake: bool = True,
    whole: bool = False,
    device: torch.device = CPU,
) -> Rehearsal:
    """Play one rank's step.

    Args:
        config: of the run; its rules have been checked.
        vocab_size: words, without padding.
        rank: 0 … tp·pp·dp - 1.
        network: nccl for collectives as GPUs make them; gloo as CPUs do, where ranks exchange parts directly.
        fake: without, tensors are real (and their content noise, as nobody answers).
        whole: play all microbatches, though fewer would do.
        device: where tensors say they are; operations on tensors of two devices fail.
    """
    began = time.perf_counter()
    with _no_others(rank, world_size(config.layout), device.type):
        mesh = create_mesh(config.layout)
        with contextlib.ExitStack() as stack:
            if network == "nccl":
                stack.enter_context(as_on_gpus())
            scalar = None
            if fake:
                from torch._subclasses import FakeTensorMode

                stack.enter_context(FakeTensorMode())
                # Only whole windows are free of padding; a norm of 1 is clipped where clipping is below that.
                scalar = partial(_scalar, config.data.packing == "within")
            observer = stack.enter_context(Observer(silent=True, scalar=scalar))
            return _Rank(config, vocab_size, mesh, observer, device).play(began, whole)


@contextlib.contextmanager
def _no_others(rank: int, world: int, device: str) -> Iterator[None]:
    """A process group whose other ranks do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # importing it makes the backend known

    backend = "fake" if device == "cpu" else f"cpu:fake,{device}:fake"
    dist.init_process_group(backend, rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _scalar(padded: bool, dtype: torch.dtype) -> bool | int | float:
    """What a program is told that looks into a tensor without content."""
    if dtype == torch.bool:
        return padded
    return 1.0 if dtype.is_floating_point else 1


class _Rank:
    """What ``LayoutEngine`` makes of a config, on fake tensors."""

    def __init__(
        self, config: RunConfig, vocab_size: int, mesh: Mesh, observer: Observer, device: torch.device
    ) -> None:
        self.config, self.mesh, self.observer, self.device = config, mesh, observer, device
        layout, self.count = config.layout, microbatch_count(config)
        self.name = layout.schedule if layout.pp > 1 else "1f1b"
        self.deferred = layout.schedule == "zero-bubble" and layout.pp > 1
        self.layers = layers_of_chunks(config, vocab_size)
        placement = build_schedule(self.name, layout.pp, layout.pp, layout.chunks).placement
        self.dtype = weight_dtype(config.precision)
        self.chunks = {
            number: self._chunk(vocab_size, number)
            for number in range(len(self.layers))
            if placement[number] == mesh.pp.index
        }
        held = list(self.chunks.values())
        for parameter in self._trained():
            parameter.register_hook(partial(_label, observer))  # type: ignore[no-untyped-call]
        self.gradients = Gradients(held, mesh, zero=layout.zero)
        self.optimizer = ShardedAdamW(self.gradients, config.optimizer)
        self.optimizer.allocate(0)
        for parameter in self._trained():  # after the hooks of ``Gradients``: what is there now stays there
            keep = partial(_keep, observer)
            parameter.register_post_accumulate_grad_hook(keep)  # type: ignore[no-untyped-call]
        for chunk in held:
            if chunk.queue is not None:
                chunk.queue.on_ready(partial(_keep, observer))

    def _chunk(self, vocab_size: int, number: int) -> Chunk:
        """Made without content, then given memory: drawing a trillion numbers that do not exist takes long, too."""
        layout = self.config.layout
        chunk = build_chunk(
            self.config.model, vocab_size, self.config.context, layers=self.layers[number], embed=number == 0,
            head=number == len(self.layers) - 1, mesh=self.mesh, sequence_parallel=layout.sequence_parallel,
            recompute=layout.recompute, deferred=self.deferred, dtype=self.dtype, device="meta",
            lora=self.config.lora, fixed_dtype=fixed_dtype(self.config.precision),
        )  # fmt: skip
        made: dict[Tensor, nn.Parameter] = {}
        for module in chunk.model.modules():
            for name, whole in list(module.named_parameters(recurse=False)):
                if whole not in made:
                    zeros = torch.zeros(whole.shape, dtype=whole.dtype, device=self.device)
                    made[whole] = nn.Parameter(zeros, requires_grad=whole.requires_grad)
                setattr(module, name, made[whole])
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=self.device))
                self.observer.label(module.get_buffer(name), "tables")
        return chunk

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for chunk in self.chunks.values() for parameter in chunk.model.parameters()]

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._parameters() if parameter.requires_grad]

    # ------------------------------------------------------------------ a step

    def play(self, began: float, whole: bool) -> Rehearsal:
        """Do a step, with as few microbatches as show its peak."""
        observer, layout = self.observer, self.config.layout
        of = partial(build_schedule, self.name, layout.pp, chunks=layout.chunks)
        schedule = lower(of(self.count))
        played = schedule if whole else shorter(schedule, self.mesh.pp.index)
        weights = [*self._parameters(), *self.optimizer._flat]
        buckets = [bucket.flat for bucket in self.gradients.buckets]
        moments = [value for state in self.optimizer.inner.state.values() for value in state.values()]
        for kind, tensors in (("weights", weights), ("gradients", buckets), ("optimizer", moments)):
            for tensor in tensors:
                observer.label(tensor, kind)
        observer.start()
        with contextlib.ExitStack() as stack:
            for chunk in self.chunks.values():
                stack.enter_context(observer.attend(_parts(chunk)))
            self._step(played, max(len(actions) for actions in schedule.compute().ranks))
        peak = observer.peak()
        gradients = [*buckets, *(parameter.grad for parameter in self._parameters())]
        mesh = self.mesh
        return Rehearsal(
            parameters=sum(parameter.numel() for parameter in self._parameters()),
            weights_bytes=observer.bytes_of(weights),
            gradient_bytes=observer.bytes_of(gradients),
            optimizer_bytes=observer.bytes_of(moments),
            peak_activation_bytes=peak.activations,
            activation_bytes=peak.by_kind,
            peak_bytes=peak.everything,
            collectives=counted(observer.messages, played.microbatches, schedule.microbatches),
            layout={
                **{name: value for name, value in asdict(layout).items() if name not in ("timeout", "check")},
                "rank": mesh.rank, "world": mesh.world,
                "stage": mesh.pp.index, "replica": mesh.dp.index, "shard": mesh.tp.index,
                "layers": [[self.layers[c].start, self.layers[c].stop - 1] for c in self.chunks],
            },
            microbatches=schedule.microbatches,
            rehearsed_microbatches=played.microbatches,
            seconds=time.perf_counter() - began,
        )  # fmt: skip

    def _step(self, schedule: Schedule, longest: int) -> None:
        """What ``LayoutEngine.step`` does; ``longest``: actions of a rank, at most, in a whole batch's schedule."""
        config, mesh, observer = self.config, self.mesh, self.observer
        layout = config.layout
        observer.kind = "tokens"
        rows = config.global_batch // layout.dp
        batch, objective = empty_batch(config, rows).to(self.device), objective_of(config)
        microbatches = [Microbatch(part) for part in batch.split(self.count)[: schedule.microbatches]]
        counts = dict.fromkeys(objective.names, config.global_batch * config.context)
        pipeline = Pipeline(
            schedule, self.chunks, mesh.pp, objective, width=getattr(config.model, "d_model", 0),
            shards=layout.tp if layout.sequence_parallel else 1, dtype=self.dtype,
            arithmetic=partial(arithmetic, config.precision, self.device),
            last_backward=self.gradients.last_backward, report=self._report,
        )  # fmt: skip
        observer.kind = "loss"
        self._gather(len(counts) + 1, mesh.world, mesh.everyone)  # of targets and tokens, how many
        self.gradients.begin()
        with step_arithmetic(config.precision):
            ran = pipeline.run(microbatches, counts)
        observer.action, observer.kind = "", "update"
        self.gradients.finish()
        self._gather(len(ran.sums), mesh.world, mesh.everyone)
        norm = self.optimizer.norm()
        self._gather(2 * longest, mesh.pp.size, mesh.pp.group)  # times of the timeline
        self.optimizer.step(config.optimizer.lr, norm, config.optimizer.clip)

    def _report(self, action: str) -> None:
        self.observer.action = action
        forward = "F" in action  # outside of the modules, a forward pass computes logits
        self.observer.kind = "output" if forward else "backward"

    def _gather(self, numbers: int, ranks: int, group: Any) -> None:
        """All ranks of a group hear so many numbers of each."""
        if ranks > 1:
            mine = torch.zeros(numbers, dtype=torch.float64, device=self.device)
            dist.all_gather([torch.empty_like(mine) for _ in range(ranks)], mine, group=group)


def _label(observer: Observer, gradient: Tensor) -> None:
    observer.label(gradient, WEIGHT_GRADIENTS)


def _keep(observer: Observer, parameter: Tensor) -> None:
    observer.keep(parameter.grad)


def _parts(chunk: Chunk) -> Iterator[tuple[nn.Module, str]]:
    """A model's modules whose work has a name."""
    for block in chunk.model.blocks:
        yield block, "residual"
    for module in chunk.model.modules():
        for kind, name in KINDS.items():
            if isinstance(module, kind):
                yield module, name


# ---------------------------------------------------------------------- fewer microbatches


def shorter(schedule: Schedule, rank: int) -> Schedule:
    """The shortest lowered schedule of the same kind in which this rank meets the same situations, or the same one."""
    wanted, most = situations(schedule, rank), peak_in_flight(schedule)[rank]
    stages, chunks = schedule.stages, schedule.chunks
    if chunks > 1:  # in groups of as many as there are stages
        tried = [stages * n for n in (2, 3, 4, 5, 6, 8)]
    else:
        tried = sorted({4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, stages + 3, 2 * stages})
    for microbatches in tried:
        if microbatches * chunks < most:
            continue
        if microbatches >= schedule.microbatches:
            break
        found = lower(build_schedule(schedule.name, stages, microbatches, chunks))
        if situations(found, rank) == wanted:
            return found
    return schedule


Situation = tuple[Any, ...]


def situations(schedule: Schedule, rank: int) -> frozenset[Situation]:
    """Everything that a rank does in a step, with what it holds and has done when it does that.

    Held are graphs between F and B, products between I and W, results and buffers that wait, the last thing sent. Done
    is whether a chunk's gradients exist, and whether they are being summed. All microbatches being of one size, memory
    is a function of these; two schedules with equal situations have equal peaks.
    """
    held: Counter[tuple[str, int]] = Counter()
    done: set[tuple[str, int]] = set()
    left = Counter((action.chunk, action.kind) for action in schedule.ranks[rank])
    sent: tuple[Any, ...] = ()
    found = set()
    for batch in schedule.batches(rank):
        signature = tuple((action.chunk, action.kind) for action in batch)
        final = tuple(left[which] == 1 for which in signature)
        state = frozenset((what, count) for what, count in held.items() if count)
        found.add((signature, final, state, frozenset(done), sent))
        for action in batch:
            left[action.chunk, action.kind] -= 1
            if action.computes:
                for kind, chunk, _ in action.needs(schedule.last_chunk):
                    if action.kind != "W" and (kind, chunk) != ("F", action.chunk):
                        held[f"result {kind}", chunk] -= 1
                held["graph", action.chunk] += {"F": 1, "B": -1, "I": -1, "W": 0}[action.kind]
                held["product", action.chunk] += {"I": 1, "W": -1}.get(action.kind, 0)
                done.add((action.kind, action.chunk))
                result = action.produces()
                if result is not None and _taken(schedule, result):
                    held[f"result {result[0]}", result[1]] += 1
            else:
                kind, chunk, _ = action.carried()
                held[f"result {kind}", chunk] += -1 if action.sends else 1
        sent = signature if any(action.sends for action in batch) else sent
    return frozenset(found)


def _taken(schedule: Schedule, result: tuple[str, int, int]) -> bool:
    """Whether another chunk waits for a result: the loss, and the gradient of token ids, are nobody's."""
    return result[1] != schedule.last_chunk if result[0] == "F" else result[1] > 0


def counted(messages: Sequence[Message], played: int, whole: int) -> list[Collective]:
    """Messages of a step of ``whole`` microbatches, from those of one that was played with fewer.

    Transfers between stages, and what layers say within an action, recur with every microbatch; the rest is said once.
    """
    found: Counter[tuple[str, str, int, bool]] = Counter()
    for message in messages:
        transfer = message.group == "pp" and message.kind in ("send", "receive")
        recurs = transfer or (message.group == "tp" and message.during != "")
        found[message.kind, message.group, message.bytes, recurs] += 1
    total: Counter[tuple[str, str, int]] = Counter()
    for (kind, group, size, recurs), count in found.items():
        assert not recurs or count % played == 0, (kind, group, size)
        total[group, kind, size] += count // played * whole if recurs else count
    order = {group: place for place, group in enumerate(("tp", "pp", "dp", "ends", "world"))}
    return [
        Collective(kind, group, size, count)
        for (group, kind, size), count in sorted(total.items(), key=lambda item: (order[item[0][0]], item[0]))
    ]
