"""What a step of a layout takes: seconds by cause. No torch.

From the work of blocks and ends (``work.py``) come seconds per chunk and microbatch; the schedule turns them into the
time of a step (``recurrence.py``); gradients and the optimizer are added. Compared with hundreds of published runs by
``benchmarks/planner_accuracy.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from gradatim.config.settings import LayoutConfig
from gradatim.plan import measured
from gradatim.plan.architecture import Architecture, EncoderDecoder
from gradatim.plan.cluster import Cluster
from gradatim.plan.communication import Messages, collective, collective_seconds, transfer_seconds
from gradatim.plan.physics import FITTED, Physics, product_seconds, traffic_seconds
from gradatim.plan.recurrence import step_seconds
from gradatim.plan.times import Seconds, Times
from gradatim.plan.work import Pass, Work, block_work, cross_work, embedding_work, head_work

CONTENTION = 0.15
"""Share of a device that communication keeps busy meanwhile: NCCL's kernels hold some 16 of 108 to 132 units."""
PASSES = 4
"""Times that a gradient is moved when a step ends: read for the norm, read and written to scale it, cleared."""


def pass_seconds(physics: Physics, cluster: Cluster, work: Pass, tp: int) -> Seconds:
    """A pass on one rank: no faster than the host issues its operations."""
    device, stack = cluster.device, cluster.stack
    compute = sum(product_seconds(physics, device, p.rows, p.columns, p.inner, p.batch) for p in work.products)
    compute += work.flash / device.matmul + traffic_seconds(physics, device, work.traffic)
    compute = max(compute + work.operations * physics.kernel, work.operations * physics.launch)
    tensor = sum(collective_seconds(physics, cluster, c.kind, c.size, tp) for c in work.collectives)
    return Seconds(compute, tensor * (1 - stack.overlap_tensor))


def work_times(physics: Physics, cluster: Cluster, work: Work, tp: int) -> Times:
    """Both passes of something."""
    backward = pass_seconds(physics, cluster, work.backward, tp) + pass_seconds(physics, cluster, work.again, tp)
    return Times(pass_seconds(physics, cluster, work.forward, tp), backward)


@lru_cache(maxsize=4096)
def part_times(
    physics: Physics, cluster: Cluster, model: Architecture, sequences: int, tp: int, sp: bool, recompute: str
) -> tuple[Times, Times, Times]:
    """A block, the embedding and the head, for a microbatch of ``sequences``."""
    stack = cluster.stack
    if isinstance(model, EncoderDecoder):
        read, entered, _ = part_times(physics, cluster, model.encoder, sequences, tp, sp, recompute)
        block, embedding, head = part_times(physics, cluster, model.decoder, sequences, tp, sp, recompute)
        if cluster.calibrated:
            cross = measured.cross_times(cluster, model, sequences=sequences, tp=tp, recompute=recompute)
        else:
            work = cross_work(model, stack, sequences=sequences, tp=tp, recompute=recompute)
            cross = work_times(physics, cluster, work, tp)
        return block + cross, embedding + entered + read * model.encoder_layers, head
    if cluster.calibrated:
        return measured.part_times(cluster, model, sequences, tp, sp, recompute)
    works = (
        block_work(model, stack, sequences=sequences, tp=tp, sequence_parallel=sp, recompute=recompute),
        embedding_work(model, stack, sequences=sequences, tp=tp, sequence_parallel=sp),
        head_work(model, stack, sequences=sequences, tp=tp, sequence_parallel=sp),
    )
    return tuple(work_times(physics, cluster, work, tp) for work in works)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A step of a layout."""

    seconds: float
    breakdown: dict[str, float]
    """Seconds by cause; their sum is the step."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a microbatch takes in each chunk of the model, first to last, before the stack's multiplier."""

    forward: list[Seconds]
    backward: list[Seconds]
    transfer: float
    """Seconds until a result is on the next stage,"""
    blocking: float
    """of these, those in which the sender does not compute: all or none."""

    def step(self, layout: LayoutConfig, microbatches: int) -> float:
        """Seconds of all microbatches, by the schedule."""
        fs, bs = self.occupied
        return step_seconds(layout.schedule, layout.pp, microbatches, layout.chunks, fs, bs, self.beside)

    @property
    def occupied(self) -> tuple[list[float], list[float]]:
        """Seconds that a rank is busy with each chunk, forward and backward."""
        return [f.total + self.blocking for f in self.forward], [b.total + self.blocking for b in self.backward]

    @property
    def beside(self) -> float:
        """Seconds of a transfer beside the computation."""
        return self.transfer - self.blocking


def pipeline_times(
    cluster: Cluster, model: Architecture, layout: LayoutConfig, global_batch: int, physics: Physics = FITTED
) -> Pipeline:
    """What the schedule is run with."""
    counts = model.layer_counts(layout)
    assert layout.microbatch
    tp, pp, dp = layout.tp, layout.pp, layout.dp
    stack = cluster.stack
    m = global_batch // dp // layout.microbatch
    block, embedding, head = part_times(
        physics, cluster, model, layout.microbatch, tp, layout.sequence_parallel, layout.recompute
    )
    last = len(counts) - 1
    forward, backward = [], []
    for chunk, layers in enumerate(counts):
        f, b = block.forward * layers, block.backward * layers
        if chunk == 0:
            f, b = f + embedding.forward, b + embedding.backward
        if chunk == last:
            f, b = f + head.forward, b + head.backward
        if cluster.calibrated and m:  # shared out evenly, though the first microbatch may find nothing to add to
            held = layers * model.block_parameters(tp)
            b = b + Seconds(measured.accumulation_seconds(cluster, held, m, dp) / m)
        elif stack.adds_gradients:
            held = layers * model.block_parameters(tp)
            held += model.embedding_parameters(tp) if chunk == 0 else 0
            held += model.head_parameters(tp, alone=pp > 1) if chunk == last else 0
            b = b + Seconds(traffic_seconds(physics, cluster.device, held * (stack.weight_bytes + 2 * 4)))
        forward.append(f)
        backward.append(b)
    size = float(stack.element_bytes * layout.microbatch * model.context * model.width)
    if layout.sequence_parallel:
        size /= tp
    transfer = 0.0
    if pp > 1:
        transfer = transfer_seconds(physics, cluster, size, tp, dp, pp, split=layout.sequence_parallel)
        transfer += stack.transfer_operations * physics.launch
    return Pipeline(forward, backward, transfer, 0.0 if stack.overlap_pipeline else transfer)


def multiplier(cluster: Cluster, layout: LayoutConfig) -> float:
    """Measured time over that of the physics, of this stack at this size."""
    stack, devices = cluster.stack, layout.tp * layout.pp * layout.dp
    one_node = devices <= cluster.node.devices
    scale = stack.multiplier if stack.multiplier_one_node is None or not one_node else stack.multiplier_one_node
    return scale * measured.busy(cluster, devices)


def predict(
    cluster: Cluster, model: Architecture, layout: LayoutConfig, global_batch: int, physics: Physics = FITTED
) -> Prediction:
    """The seconds of a step."""
    counts = model.layer_counts(layout)
    assert layout.microbatch
    pp, v = layout.pp, layout.chunks
    m = global_batch // layout.dp // layout.microbatch
    times = pipeline_times(cluster, model, layout, global_batch, physics)
    forward, backward = times.forward, times.backward
    pipeline = times.step(layout, m)
    ranks = [[c for c in range(pp * v) if c % pp == rank] for rank in range(pp)]
    layers = rank_layers(layout, counts)
    work = [sum(forward[c].total + backward[c].total for c in own) for own in ranks]
    passes = [Times(sum((forward[c] for c in own), Seconds()), sum((backward[c] for c in own), Seconds()))
              for own in ranks]  # fmt: skip
    sharded = m * sharded_seconds(physics, cluster, model, layout, layers, passes) if layout.zero >= 2 else 0.0
    busiest = max(range(pp), key=lambda rank: work[rank])
    compute = m * sum(forward[c].compute + backward[c].compute for c in ranks[busiest])
    tensor = m * sum(forward[c].tensor + backward[c].tensor for c in ranks[busiest])
    sending = 2 * m * v * times.blocking
    # gradients hide behind the last microbatch's backward pass, gathered weights behind the next step's first forward
    data, optimizer = data_and_optimizer(physics, cluster, model, layout, layers, passes[0])
    scale = multiplier(cluster, layout)
    parts = {
        "compute": compute,
        "tensor": tensor,
        "pipeline": sending,
        "bubble": max(0.0, pipeline - compute - tensor - sending),  # zero but for rounding without stages
        "data": data + sharded,
        "optimizer": optimizer,
    }
    parts = {name: seconds * scale for name, seconds in parts.items()}
    return Prediction(sum(parts.values()), parts)


def rank_layers(layout: LayoutConfig, counts: Sequence[int]) -> list[int]:
    """Layers of each pipeline rank, from those of each chunk."""
    return [sum(counts[rank :: layout.pp]) for rank in range(layout.pp)]


def held_parameters(model: Architecture, layout: LayoutConfig, layers: Sequence[int]) -> list[int]:
    """Parameters of each pipeline rank with so many layers, before they are sharded over replicas."""
    tp, pp = layout.tp, layout.pp
    return [
        own * model.block_parameters(tp)
        + (model.embedding_parameters(tp) if rank == 0 else 0)
        + (model.head_parameters(tp, alone=pp > 1) if rank == pp - 1 else 0)
        for rank, own in enumerate(layers)
    ]


def sharded_seconds(
    physics: Physics,
    cluster: Cluster,
    model: Architecture,
    layout: LayoutConfig,
    layers: Sequence[int],
    passes: Sequence[Times] | None,
) -> float:
    """Seconds that a microbatch waits for what is sharded, on the rank that waits longest.

    Layer by layer gradients are scattered, from ZeRO-2 on: those of a microbatch are added to a shard, since no rank
    keeps all of them (Rajbhandari et al. 2020, arXiv:1910.02054, section 5). Under ZeRO-3 weights are gathered for
    either pass.

    Args:
        layers: of each pipeline rank.
        passes: of a microbatch through all that a rank holds, which communication may hide behind; None: however long.
    """
    stack, found = cluster.stack, []
    for rank, held in enumerate(held_parameters(model, layout, layers)):
        many = layers[rank]

        def seconds(kind: str, size: int, held: int = held, many: int = many) -> Messages:
            each = held * size / many
            if cluster.calibrated:
                return Messages(many * measured.message_seconds(cluster, kind.replace("-", "_"), each, layout.dp), 0.0)
            return collective(physics, cluster, kind, each, layout.dp, stride=layout.tp) * many

        gather = seconds("all-gather", stack.weight_bytes) if layout.zero == 3 else Messages()
        scatter = seconds("reduce-scatter", stack.reduced_bytes)
        if not stack.overlap_data:
            found.append(2 * gather.total + scatter.total)
        elif passes is None:
            hops = 2 * gather.hops + scatter.hops
            found.append(hops + CONTENTION * (2 * gather.moving + scatter.moving))
        else:
            forward, backward = passes[rank].forward.total, passes[rank].backward.total
            found.append(exposed(gather, forward) + exposed(gather + scatter, backward))
    return max(found)


def exposed(communication: Messages, computation: float) -> float:
    """Seconds that communication beside a computation adds: what is longer, and what it takes from the computation.

    Hops are not hidden, as training under FSDP shows: on 512 H100 steps of the same work take 3 to 11 per cent longer
    than on 128, which is what the hops of all its collectives come to (``benchmarks/planner_unseen.py``).
    """
    moving = communication.moving
    return communication.hops + max(0.0, moving - computation) + CONTENTION * min(moving, computation)


def data_and_optimizer(
    physics: Physics, cluster: Cluster, model: Architecture, layout: LayoutConfig, layers: Sequence[int], beside: Times
) -> tuple[float, float]:
    """Seconds of the gradients' sum and of the update, of the rank that holds most.

    Args:
        layers: of each pipeline rank.
        beside: the passes of one microbatch that communication can hide behind, where the stack overlaps it.
    """
    stack, tp, dp = cluster.stack, layout.tp, layout.dp
    most = max(held_parameters(model, layout, layers))
    if cluster.calibrated:
        return measured.ends_seconds(cluster, model, layout, most)
    gradients, weights = most * stack.reduced_bytes, most * stack.weight_bytes
    tensors = model.tensors(max(layers))
    buckets = min(tensors, math.ceil(weights / stack.bucket)) if stack.bucket else 1  # none smaller than a tensor
    reduce = gather = Messages()
    late = copies = 0.0
    if layout.zero < 2:  # else in every microbatch, counted there
        kind = "reduce-scatter" if layout.zero and stack.scatters_gradients else "all-reduce"
        reduce = collective(physics, cluster, kind, gradients / buckets, dp, stride=tp) * buckets
        last = model.embedding_parameters(tp) * stack.reduced_bytes  # known when the backward pass is over
        late = collective(physics, cluster, kind, last, dp, stride=tp).moving
    if layout.zero in (1, 2):
        gather = collective(physics, cluster, "all-gather", weights, dp, stride=tp)
        copies = tensors * dp * physics.kernel if stack.copies_weights and dp > 1 else 0.0
    if stack.overlap_data:
        hidden = beside.forward.total if stack.overlap_weights else 0.0
        early = replace(reduce, moving=max(0.0, reduce.moving - late))
        data = exposed(early, beside.backward.total) + late + exposed(gather, hidden)
    else:
        data = reduce.total + gather.total
    data += copies
    if model.tied and layout.pp > 1:  # the first stage's and the last one's, summed
        shared = model.vocabulary * model.width // tp * stack.reduced_bytes
        data += collective_seconds(physics, cluster, "all-reduce", shared, 2, stride=tp * dp * (layout.pp - 1))
    shards = dp if layout.zero else 1
    # master weight and moments are read and written, the gradient read, the weight written
    moved = most / shards * (2 * stack.state_bytes + 4 + stack.weight_bytes) + PASSES * most * stack.gradient_bytes / (
        dp if layout.zero >= 2 else 1
    )
    return data, traffic_seconds(physics, cluster.device, moved)
