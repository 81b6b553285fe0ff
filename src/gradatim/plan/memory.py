"""Bytes that each pipeline stage of a layout needs: state, activations in flight, what a pass needs besides. No torch.

Activations are counted tensor by tensor, as in Korthikanti et al. 2022 (arXiv:2205.05198, section 4), whose closed
forms follow for its software (dropout on, unfused attention): sbh(10 + 24/t + 5as/ht) a layer, sbh/t(34 + 5as/h) under
sequence parallelism; those of our own software are in ``tensors``. How many microbatches are in flight comes from the
schedule itself. The worst moment is looked for among the passes of a block and of both ends of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from gradatim.config.settings import LayoutConfig
from gradatim.plan import ends
from gradatim.plan.architecture import Architecture, EncoderDecoder
from gradatim.plan.cluster import Stack
from gradatim.plan.tensors import FULL, LOW, Case, Part, block_part, cross_part
from gradatim.schedules import build_schedule
from gradatim.schedules.actions import peak_in_flight

GIB = 2**30
Numbers = Any
"""A number, or an array of one for each layout."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on a rank of one stage."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Held from forward to backward passes, of all microbatches in flight."""
    working: float
    """Needed besides at the worst moment: a layer computed again and its gradients, or logits and theirs."""
    overhead: float
    """Context, communication library, allocator: the stack's allowance."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.activations + self.working + self.overhead

    @property
    def state(self) -> float:
        """Weights, gradients, optimizer."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True, slots=True)
class Parts:
    """What the parts of a model hold for one microbatch on one rank, and what stands between stages; bytes."""

    block: Part
    embedding: Part
    head: Part
    table: float
    """Gradient of a tied matrix that the head has computed and the embedding adds to; 0 where nobody waits for it."""
    hidden: float
    """Of a transfer between stages that counts."""
    step: float
    """Of a sequence of the batch, held through the step, for each that a replica reads,"""
    constant: float
    """and held whatever is read."""

    def columns(self) -> list[float]:
        """As a row of numbers, to be put together again by ``from_columns``."""
        parts = [
            getattr(part, field.name) for part in (self.block, self.embedding, self.head) for field in fields(Part)
        ]
        return [*parts, self.table, self.hidden, self.step, self.constant]


WIDTH = 3 * len(fields(Part)) + 4
"""Numbers of ``Parts.columns``."""


def from_columns(columns: Numbers) -> Parts:
    """``Parts`` of arrays, one number for each layout."""
    n = len(fields(Part))
    block, embedding, head = (Part(*columns[i * n : (i + 1) * n]) for i in range(3))
    return Parts(block, embedding, head, *columns[3 * n :])


@lru_cache(maxsize=4096)
def in_flight(schedule: str, stages: int, microbatches: int, chunks: int) -> tuple[int, ...]:
    """Most chunk-microbatches that each rank holds at once; beyond some microbatches it stays as it is."""
    enough = min(microbatches, (chunks + 2) * stages if schedule != "gpipe" else microbatches)
    if schedule == "gpipe":
        return (microbatches,) * stages
    if schedule == "interleaved":
        enough = -(-enough // stages) * stages
    return tuple(peak_in_flight(build_schedule(schedule, stages, enough, chunks)))


# ---------------------------------------------------------------------- parts of a model


def model_parts(
    model: Architecture,
    stack: Stack,
    *,
    sequences: int,
    tp: int,
    sequence_parallel: bool,
    recompute: str,
    waits: bool = False,
) -> Parts:
    """What blocks and ends hold, by the stack's software; ``waits``: weight gradients do, as in zero-bubble."""
    if isinstance(model, EncoderDecoder):
        return _two_sides(model, stack, sequences, tp, recompute)
    if stack.layers == "gradatim":
        case = _case(model, stack, sequences, tp, sequence_parallel, recompute, waits)
        parts = Parts(
            block_part(case), ends.embedding_part(case), ends.head_part(case),
            ends.table_gradient(case) if model.tied else 0.0, ends.stream_bytes(case),
            ends.ID_BYTES * model.context, ends.rotation_bytes(model),
        )  # fmt: skip
        wider = stack.element_bytes / FULL  # all that has four bytes in fp32 has eight in fp64
        return parts if wider <= 1 else from_columns([wider * bytes_ for bytes_ in parts.columns()])
    options: dict[str, Any] = {"sequences": sequences, "tp": tp, "sequence_parallel": sequence_parallel}
    kept, working = block_activations(model, stack, **options, recompute=recompute)
    head_kept, head_working = head_activations(model, stack, **options)
    mask = 0.0
    if stack.dropout:
        mask = 1.0 * sequences * model.context * model.width / (tp if sequence_parallel else 1)
    return Parts(
        Part(kept, backward=working, deferred=kept), Part(mask), Part(head_kept, head_working), 0.0, 0.0, 0.0,
        stack.weight_bytes * placeholders(model, tp) if stack.keeps_placeholders else 0.0,
    )  # fmt: skip


def placeholders(model: Architecture, tp: int) -> int:
    """Numbers in one tensor of each shape that the matrices of a block have on a rank; a gated pair is one matrix."""
    q, kv = model.heads * model.head_dim // tp, 2 * model.kv_heads * model.head_dim // tp
    f, d = model.feed_forward // tp, model.width
    return sum(rows * columns for rows, columns in {(q + kv, d), (d, q), (f * (1 + model.gated), d), (d, f)})


def _case(
    model: Architecture, stack: Stack, sequences: int, tp: int, split: bool, recompute: str, waits: bool = False
) -> Case:
    """What our own layers do in this case."""
    exact, scores = stack.element_bytes > LOW, model.core_dropout > 0 and not stack.fused_dropout
    return Case(model, sequences, tp, split, recompute, waits, exact, scores)


def _two_sides(model: EncoderDecoder, stack: Stack, sequences: int, tp: int, recompute: str) -> Parts:
    """Of an encoder-decoder in one stage: what the encoder keeps counts with the embedding."""
    options: dict[str, Any] = {"sequences": sequences, "tp": tp, "sequence_parallel": False, "recompute": recompute}
    read, written = (model_parts(half, stack, **options) for half in (model.encoder, model.decoder))
    if stack.layers == "gradatim":
        case = _case(model.encoder, stack, sequences, tp, False, recompute)
        cross, hidden = cross_part(case), ends.stream_bytes(case)
    else:
        hidden = 1.0 * stack.element_bytes * sequences * model.context * model.width
        kept = cross_activations(model, stack, sequences=sequences, tp=tp, recompute=recompute)
        cross = Part(kept[0], backward=kept[1])
    block, encoder, n = written.block, read.block, model.encoder_layers
    return Parts(
        Part(
            block.kept + cross.kept,
            max(block.forward, cross.forward),
            max(block.backward, cross.backward) + hidden,  # with the gradient of the encoder's output
            block.copies + cross.copies,
        ),
        Part(
            read.embedding.kept + n * encoder.kept + 2 * hidden + written.embedding.kept,  # its last norm, the output
            max(read.embedding.forward, encoder.forward, written.embedding.forward),
            max(read.embedding.backward, encoder.backward, written.embedding.backward),
        ),
        written.head,
        written.table,
        0.0,
        read.step + written.step,
        written.constant + n * encoder.copies,
    )


def block_activations(
    model: Architecture, stack: Stack, *, sequences: int, tp: int, sequence_parallel: bool, recompute: str
) -> tuple[float, float]:
    """Bytes that a block keeps for its backward pass, and most that it needs besides during that."""
    tokens = sequences * model.context
    size = 1.0 * stack.element_bytes
    width = size * tokens * model.width  # a hidden state
    shard = tp if sequence_parallel else 1
    heads = model.heads // tp
    q, kv = size * tokens * heads * model.head_dim, 2 * size * tokens * model.kv_heads // tp * model.head_dim
    inner = size * tokens * model.feed_forward / tp
    mask = 1.0 * tokens * model.width / shard if stack.dropout else 0.0
    inputs = width / shard
    # input of each norm and of the matrices behind it; masks of the two dropouts
    kept = 4 * inputs + 2 * mask if stack.keeps_norm_input else 2 * inputs + 2 * mask
    kept += q + kv  # queries, keys, values
    kept += q  # what enters the output matrix, which fused attention needs too
    if stack.keeps_gathered:
        kept += 2 * (width - inputs)
    gated = 3 if stack.fused else 4  # without a fused pass also what the gate's non-linearity gives
    kept += (gated if model.gated else 1 if model.config.activation == "relu" else 2) * inner
    core = 0.0
    if stack.attention == "flash":
        kept += 4.0 * tokens * heads  # logarithms of the softmax's sums
    else:
        core = _scores(model, stack, sequences=sequences, tp=tp)
    everything = kept + core
    # Going backward, in the feed-forward layer: the stream's gradient, that of what enters its last matrix, and that of
    # what leaves its first.
    working = inputs + inner + (2 if model.gated else 1) * inner
    if recompute == "full":
        return inputs, everything + working
    if recompute == "selective" and core:
        # The core is computed again once the feed-forward layer's tensors are gone.
        return kept, max(working, core)
    return everything, working


def _scores(model: Architecture, stack: Stack, *, sequences: int, tp: int) -> float:
    """Bytes of the scores that attention keeps where no kernel computes them again: softmax, dropout, both."""
    square = 1.0 * sequences * (model.heads // tp) * model.context**2  # one byte for each, as a mask
    size = stack.element_bytes
    return square * (size + (1 + size if stack.dropout else 0) + (size if stack.attention == "unfused" else 0))


def cross_activations(
    model: EncoderDecoder, stack: Stack, *, sequences: int, tp: int, recompute: str
) -> tuple[float, float]:
    """What attention to the source keeps besides, and needs going backward, as ``block_activations`` counts."""
    tokens = sequences * model.context
    width = 1.0 * stack.element_bytes * tokens * model.width
    kept = (2 if stack.keeps_norm_input else 1) * width + (1.0 * tokens * model.width if stack.dropout else 0.0)
    kept += 4 * width / tp  # queries, keys, values, and what enters the output matrix
    flash = stack.attention == "flash"
    kept += 4.0 * tokens * model.heads / tp if flash else 0.0
    core = 0.0 if flash else _scores(model, stack, sequences=sequences, tp=tp)
    working = width + 4 * width / tp
    if recompute == "full":
        return 0.0, kept + core + working
    if recompute == "selective":
        return kept, max(working, core)
    return kept + core, working


def head_activations(
    model: Architecture, stack: Stack, *, sequences: int, tp: int, sequence_parallel: bool
) -> tuple[float, float]:
    """Bytes that the head keeps (its inputs, its softmax), and what its backward pass needs besides."""
    tokens = sequences * model.context
    shard = tp if sequence_parallel else 1
    logits = 1.0 * tokens * model.vocabulary / tp
    inputs = 2.0 * stack.element_bytes * tokens * model.width / shard
    return inputs + stack.logits_kept * logits, stack.logits_working * logits


# ---------------------------------------------------------------------- a stage


@dataclass(frozen=True, slots=True)
class Stages:
    """Ranks of pipelines, one number for each in every array."""

    rank: Numbers
    pp: Numbers
    chunks: Numbers
    layers: Numbers
    """Of a chunk."""
    microbatches: Numbers
    in_flight: Numbers
    """Chunk-microbatches held at once, at most: those whose backward pass is to come, or whose weight gradients are."""
    schedule: Numbers
    """Its name."""


def between_stages(at: Stages, once: Numbers) -> tuple[Numbers, Numbers]:
    """Hidden states that are in no graph, during a forward and during a backward pass; counted on lowered schedules.

    They are the last one sent, which may not have arrived, and those to be received next, for which there is a place
    before they come (``schedules/lower``). In the interleaved schedule the last rank goes forward and back in turn
    while its inputs come one after the other, so that up to a third of a group wait.
    """
    first, last, alone = at.rank == 0, at.rank == at.pp - 1, at.pp == 1
    gpipe, looped, zero_bubble = (at.schedule == name for name in ("gpipe", "interleaved", "zero-bubble"))
    one_way = np.where(first | last, 1, 2)
    few = np.where(once, 2, np.minimum(4, at.pp // 2 + 1)), np.where(once, 3, np.minimum(4, at.pp // 2 + 2))
    piled = np.maximum(few[0], at.pp // 3 + 1), np.maximum(few[1], -(-at.pp // 3) + 1)
    kinds = [alone, gpipe, looped & last, looped & ~once, zero_bubble & ~last]
    going = np.select(kinds, [0, 1 - last, piled[0], 2, 2], one_way)
    return going, np.select(kinds, [0, 2 - 2 * last, piled[1], 3, 1], one_way)


def activation_peak(parts: Parts, at: Stages) -> tuple[Numbers, Numbers]:
    """Bytes that microbatches in flight hold, and bytes besides at the worst moment of the passes then at work."""
    block, embedding, head = parts.block, parts.embedding, parts.head
    first, last, alone = at.rank == 0, at.rank == at.pp - 1, at.pp == 1
    gpipe, looped, zero_bubble = ((at.schedule == name) & ~alone for name in ("gpipe", "interleaved", "zero-bubble"))
    waiting = np.where(zero_bubble, at.in_flight - np.minimum(at.microbatches, at.pp - at.rank), 0)
    graphs = at.in_flight - waiting
    chunk = at.layers * block.kept
    held = graphs * chunk + waiting * at.layers * block.deferred
    held = held + np.where(first, at.in_flight / at.chunks * embedding.kept, 0.0)
    held = held + np.where(last & gpipe, (at.microbatches - 1) * head.kept, 0.0)
    held = held + at.chunks * at.layers * block.copies + np.where(last, head.copies, 0.0)

    once = looped & (at.microbatches <= at.pp)  # all pass a rank's first chunk before any comes back
    going, coming = between_stages(at, once)
    forward, backward = going * parts.hidden, coming * parts.hidden
    given = np.where(last, 0.0, parts.hidden)  # the gradient that came from the next stage stays to the end
    tied = np.where(alone, parts.table, 0.0)
    # While the embedding works its chunk holds nothing; at the end of a backward pass, what has been left to wait.
    empty = (np.where(once, at.microbatches, graphs) - 1 - graphs) * chunk
    left = np.where(zero_bubble, at.layers * block.deferred, 0.0)
    # When a chunk's first block goes backward, those behind it have left what waits in place of what they kept.
    behind = (at.layers - 1) * (block.deferred - block.kept) + given
    moments = [
        block.forward + forward,
        block.backward + backward + tied,
        block.backward + backward + tied + np.where(at.layers > 1, behind, 0.0),
        np.where(zero_bubble, at.layers * (block.deferred - block.kept) + block.products + backward, 0.0),
        np.where(last, head.kept + head.forward + forward, 0.0),
        np.where(last, head.backward + backward + tied, 0.0),
        np.where(first, embedding.forward + forward + empty, 0.0),
        np.where(first, embedding.backward + backward + given + 2 * tied + empty + left, 0.0),
    ]
    return held, np.max(np.broadcast_arrays(*moments), axis=0)


def whole_again(stack: Stack, block: Numbers, end: Numbers, zero: Numbers, dp: Numbers) -> Numbers:
    """Bytes of what is sharded, while it is whole: from ZeRO-2 on the gradients of a layer, or of an end of the model,
    before they are scattered; under ZeRO-3 its weights, and those of the next layer where that is gathered meanwhile.
    """
    one = np.maximum(block, end)
    weights = one + (block if stack.overlap_data else 0)
    needed = np.where(zero >= 2, one * stack.reduced_bytes, 0) + np.where(zero >= 3, weights * stack.weight_bytes, 0)
    return np.where(dp > 1, needed, 0)


def stage_memory(stack: Stack, model: Architecture, layout: LayoutConfig, global_batch: int) -> list[StageMemory]:
    """Bytes of a rank of every stage."""
    assert layout.microbatch
    counts = model.layer_counts(layout)
    tp, pp, dp, v, zero = layout.tp, layout.pp, layout.dp, layout.chunks, layout.zero
    m = global_batch // dp // layout.microbatch
    parts = model_parts(
        model, stack, sequences=layout.microbatch, tp=tp, sequence_parallel=layout.sequence_parallel,
        recompute=layout.recompute, waits=layout.schedule == "zero-bubble" and pp > 1,
    )  # fmt: skip
    ranks, layers = np.arange(pp), np.array([sum(counts[rank::pp]) for rank in range(pp)])
    held = np.array(in_flight(layout.schedule, pp, m, v))
    activations, working = activation_peak(
        parts, Stages(ranks, np.full(pp, pp), v, layers / v, m, held, np.full(pp, layout.schedule))
    )
    activations = activations + parts.step * global_batch / dp + parts.constant
    found = []
    for rank in range(pp):
        block = model.block_parameters(tp)
        ends = (
            model.embedding_parameters(tp) if rank == 0 else 0,
            model.head_parameters(tp, alone=pp > 1) if rank == pp - 1 else 0,
        )
        parameters = int(layers[rank]) * block + sum(ends)
        needed = float(working[rank]) + float(whole_again(stack, block, max(ends), zero, dp))
        weights = stack.weight_bytes * parameters / (dp if zero >= 3 else 1)
        gradients = stack.gradient_bytes * parameters / (dp if zero >= 2 else 1)
        optimizer = stack.state_bytes * parameters / (dp if zero >= 1 else 1)
        found.append(StageMemory(weights, gradients, optimizer, float(activations[rank]), needed, stack.overhead))
    return found
