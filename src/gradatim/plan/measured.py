"""What a calibrated machine takes: times of this project's own operations, measured there, put together. No torch.

Cluster files of GPUs state figures from which ``physics.py`` and ``work.py`` predict. On a CPU passes over memory
depend on caches and on how the allocator hands out pages, so ``gradatim calibrate`` measures blocks, heads, updates and
messages of several sizes as training runs them, and fits each with the two or three numbers of ``cluster.Measured``:

    product     2 r c k / rate · (1 + r₀/r + c₀/c + k₀/k) + start
    block       its products, its attention, and a + b · (elements of hidden states) + c · (elements inside layers)
    attention   a + scores · (b + c · width of a head)
    message     straight lines between the sizes measured
    waiting     of ranks that share a block, at its messages: a · messages + b · seconds of computing
"""

from __future__ import annotations

from typing import Any

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture, EncoderDecoder
from gradatim.plan.cluster import Cluster, Curve, Device, Measured, Node, Stack
from gradatim.plan.times import Seconds, Times
from gradatim.plan.work import Product, backward_of, block_work, cross_work

ELEMENT = 4
"""Bytes of a number: calibrated machines compute in fp32."""
MESSAGES = ({"sum": (2, 2)}, {"gather": (2, 4), "scatter": (2, 2)})
"""How many of each a block shared by tensor parallelism sends, forward and backward: without SP and with it."""


def product_seconds(cluster: Cluster, product: Product) -> float:
    """Seconds of matrix products."""
    start, rows, columns, inner = cluster.measured.product
    lost = rows / product.rows + columns / product.columns + inner / product.inner
    return product.batch * start + product.flops / cluster.device.matmul * (1 + lost)


def curve_seconds(curve: Curve, size: float) -> float:
    """Seconds at a size: on the straight line between its neighbours, or on through the last two."""
    if not curve or not size:
        return 0.0
    if len(curve) == 1 or size <= curve[0][0]:
        return curve[0][1]
    after = next((place for place, (bytes_, _) in enumerate(curve) if bytes_ >= size), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[after - 1], curve[after]
    return y0 + (size - x0) * max(0.0, y1 - y0) / (x1 - x0)


def message_seconds(cluster: Cluster, name: str, size: float, ranks: int) -> float:
    """Seconds of a collective over a tensor of ``size`` bytes among so many ranks, from those measured."""
    if ranks < 2:
        return 0.0
    seconds = curve_seconds(getattr(cluster.measured, name), size)
    measured = max(2, cluster.measured.processes)
    return seconds * ((ranks - 1) / ranks) / ((measured - 1) / measured)


def waiting_seconds(cluster: Cluster, messages: int, computing: float, ranks: int) -> float:
    """How long ranks wait for one another at so many messages, between which they compute so long."""
    return of((0.0, *cluster.measured.waiting), messages, computing) if ranks > 1 and messages else 0.0


def busy(cluster: Cluster, devices: int) -> float:
    """How much longer computing takes where so many work at once than where all that were measured do; below 1."""
    alone, processes = cluster.measured.alone, cluster.measured.processes
    if processes < 2:
        return 1.0
    return alone + (1 - alone) * min(1.0, (devices - 1) / (processes - 1))


def block_times(
    cluster: Cluster, model: Architecture, *, sequences: int, tp: int, sequence_parallel: bool, recompute: str
) -> Times:
    """A block's forward and backward pass."""
    measured = cluster.measured
    work = block_work(
        model, cluster.stack, sequences=sequences, tp=tp, sequence_parallel=sequence_parallel, recompute="none"
    )
    tokens, shard = sequences * model.context, tp if sequence_parallel else 1
    hidden = tokens * model.width / shard
    inside = tokens * (2 * model.heads + 2 * model.kv_heads) * model.head_dim / tp
    inside += tokens * model.feed_forward * (2 if model.gated else 1) / tp
    scores = sequences * model.heads / tp * model.context**2
    core = [of(measured_core, scores, scores * model.head_dim)
            for measured_core in (measured.core_forward, measured.core_backward)]  # fmt: skip
    forward = sum(product_seconds(cluster, p) for p in work.forward.products)
    forward += core[0] + of(measured.forward, hidden, inside)
    backward = sum(product_seconds(cluster, p) for p in work.backward.products)
    backward += core[1] + of(measured.backward, hidden, inside)
    size = ELEMENT * tokens * model.width
    again = {"none": 0.0, "selective": core[0], "full": forward}[recompute]
    said = []
    for i, computing in enumerate((forward, backward)):
        counts = {name: both[i] for name, both in MESSAGES[sequence_parallel].items()}
        sending = sum(count * message_seconds(cluster, name, size, tp) for name, count in counts.items())
        said.append(sending + waiting_seconds(cluster, sum(counts.values()), computing, tp))
    repeated = said[0] if recompute == "full" else 0.0
    return Times(Seconds(forward, said[0]), Seconds(backward + again, said[1] + repeated))


def cross_times(cluster: Cluster, model: EncoderDecoder, *, sequences: int, tp: int, recompute: str) -> Times:
    """What attention to the source adds to a decoder's block, of whose two sublayers it is like the first."""
    measured, tokens = cluster.measured, sequences * model.context
    work = cross_work(model, cluster.stack, sequences=sequences, tp=tp, recompute="none")
    hidden, inside = tokens * model.width, 4 * tokens * model.width / tp
    scores = sequences * model.heads / tp * model.context**2
    core = [of(of_core, scores, scores * model.head_dim) for of_core in (measured.core_forward, measured.core_backward)]
    besides = [always / 2 + each * hidden / 2 + inner * inside
               for always, each, inner in (measured.forward, measured.backward)]  # fmt: skip
    forward, backward = (
        sum(product_seconds(cluster, p) for p in side.products) + core[i] + besides[i]
        for i, side in enumerate((work.forward, work.backward))
    )
    sums = [(1 + i) * message_seconds(cluster, "sum", ELEMENT * hidden, tp) for i in range(2)]
    sums = [sums[i] + waiting_seconds(cluster, 1 + i, (forward, backward)[i], tp) for i in range(2)]
    again = {"none": 0.0, "selective": core[0], "full": forward}[recompute]
    repeated = sums[0] if recompute == "full" else 0.0
    return Times(Seconds(forward, sums[0]), Seconds(backward + again, sums[1] + repeated))


def part_times(
    cluster: Cluster, model: Architecture, sequences: int, tp: int, sp: bool, recompute: str
) -> tuple[Times, Times, Times]:
    """A block, the embedding and the head, for a microbatch of ``sequences``."""
    block = block_times(cluster, model, sequences=sequences, tp=tp, sequence_parallel=sp, recompute=recompute)
    embedding = embedding_times(cluster, model, sequences=sequences, tp=tp, sequence_parallel=sp)
    return block, embedding, head_times(cluster, model, sequences=sequences, tp=tp, sequence_parallel=sp)


def embedding_times(
    cluster: Cluster, model: Architecture, *, sequences: int, tp: int, sequence_parallel: bool
) -> Times:
    """Looking up tokens, and writing the table's gradient."""
    hidden = sequences * model.context * model.width
    always, each, table = cluster.measured.embedding
    size = ELEMENT * hidden
    looking = always / 2 + each * hidden / 2
    summed = message_seconds(cluster, "scatter" if sequence_parallel else "sum", size, tp)
    writing = looking + table * model.vocabulary * model.width / tp
    gathered = message_seconds(cluster, "gather", size, tp) if sequence_parallel else 0.0
    return Times(
        Seconds(looking, summed + waiting_seconds(cluster, 1, looking, tp)),
        Seconds(writing, gathered + waiting_seconds(cluster, int(sequence_parallel), writing, tp)),
    )


def head_times(cluster: Cluster, model: Architecture, *, sequences: int, tp: int, sequence_parallel: bool) -> Times:
    """Norm, logits and loss, all of it in the forward pass, where each chunk of logits is at hand only once."""
    tokens, words = sequences * model.context, model.vocabulary // tp
    read = max(1, round(tokens * model.predicted))  # positions whose words are predicted
    product = Product(read, words, model.width)
    compute = sum(product_seconds(cluster, p) for p in (product, *backward_of(product)))
    compute += of(cluster.measured.head, read * words)
    size = ELEMENT * tokens * model.width
    entering = message_seconds(cluster, "gather", size, tp) if sequence_parallel else 0.0
    entering += waiting_seconds(cluster, int(sequence_parallel), 0.0, tp)
    leaving = message_seconds(cluster, "scatter" if sequence_parallel else "sum", size, tp)
    leaving += waiting_seconds(cluster, 1, compute, tp)
    return Times(Seconds(compute, entering), Seconds(0.0, leaving))


def of(coefficients: tuple[float, ...], *counts: float) -> float:
    """Coefficients times counts, the first by itself: a + b · n₁ + c · n₂."""
    return coefficients[0] + sum(each * count for each, count in zip(coefficients[1:], counts))


def accumulation_seconds(cluster: Cluster, parameters: float, microbatches: int, dp: int) -> float:
    """Seconds in which a step adds gradients up; buckets of replicas take the first one by copying it."""
    return cluster.measured.accumulate * parameters * (microbatches - (dp == 1))


def transfer_seconds(cluster: Cluster, size: float) -> float:
    """Seconds until ``size`` bytes are on the next stage."""
    return curve_seconds(cluster.measured.send, size)


def ends_seconds(cluster: Cluster, model: Architecture, layout: LayoutConfig, parameters: float) -> tuple[float, float]:
    """Seconds of the gradients' sum, and of norm and update with the few numbers that all ranks agree on."""
    measured, dp = cluster.measured, layout.dp
    size = float(ELEMENT * parameters)
    if layout.zero:  # from ZeRO-2 on gradients are scattered in every microbatch, weights from ZeRO-3 on gathered
        names = ("reduce_scatter", "all_gather")[layout.zero > 1 : 2 if layout.zero < 3 else 1]
        data = sum(message_seconds(cluster, name, size, dp) for name in names)
    else:
        data = message_seconds(cluster, "reduce", size, dp)
    if model.tied and layout.pp > 1:
        table = ELEMENT * model.vocabulary * model.width / layout.tp / (dp if layout.zero else 1)
        data += message_seconds(cluster, "reduce", table, 2)
    agreed = 3 * message_seconds(cluster, "sum", 8.0, layout.tp * layout.pp * dp)  # count of targets, loss, norm
    return data, of(measured.update, parameters / (dp if layout.zero else 1)) + agreed


def cluster_of(answer: dict[str, Any], name: str, memory: float) -> Cluster:
    """The cluster file of a machine from what ``parallel/calibrate.py`` answers.

    Args:
        answer: its rate, threads and measured numbers.
        name: of the processor.
        memory: bytes that a process may use.
    """
    numbers = {key: _tuples(value) for key, value in answer["measured"].items()}
    measured = Measured(**numbers)
    processes = measured.processes
    passes = max(measured.accumulate, 1e-12)
    send = measured.send or ((1.0, 1e-4), (1e6, 1e-3))
    link = (send[-1][0] - send[0][0]) / max(1e-9, send[-1][1] - send[0][1])
    bandwidth, latency = 3 * ELEMENT / passes, send[0][1]
    return Cluster(
        description=f"As gradatim calibrate found this machine: {processes} processes of {answer['threads']} threads.",
        device=Device(
            name=name, peak=answer["rate"], matmul=answer["rate"], units=1, bandwidth=bandwidth, memory=memory,
            vector=answer["rate"],
        ),
        node=Node(devices=max(1, processes), link=link, latency=latency, cards=1, card=link, network_latency=latency),
        stack=Stack(
            layers="gradatim", attention="flash", fused_dropout=False, dropout=False, scatter_gather=False,
            overlap_data=True, reduced_bytes=ELEMENT,
            element_bytes=ELEMENT, weight_bytes=ELEMENT, gradient_bytes=ELEMENT, state_bytes=2 * ELEMENT,
            logits_kept=0, logits_working=0, schedules=("gpipe", "1f1b", "interleaved", "zero-bubble"),
            overhead=3e8,
        ),
        devices=processes,
        measured=measured,
    )  # fmt: skip


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
