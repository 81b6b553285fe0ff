"""Bytes that each pipeline stage of a layout needs: state, activations in flight, what a pass needs besides. No torch.

Activations are counted tensor by tensor, as in Korthikanti et al. 2022 (arXiv:2205.05198, section 4), whose closed
forms follow for its software (dropout on, unfused attention): sbh(10 + 24/t + 5as/ht) a layer, sbh/t(34 + 5as/h) under
sequence parallelism. How many microbatches are in flight comes from the schedule itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Stack
from gradatim.schedules import build_schedule

GIB = 2**30


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on a rank of one stage."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Held from forward to backward passes, of all microbatches in flight."""
    working: float
    """Needed besides at the worst moment: a layer computed again, or logits and their gradient."""
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


@lru_cache(maxsize=4096)
def in_flight(schedule: str, stages: int, microbatches: int, chunks: int) -> tuple[int, ...]:
    """Most chunk-microbatches that each rank holds at once; beyond some microbatches it stays as it is."""
    enough = min(microbatches, (chunks + 2) * stages if schedule != "gpipe" else microbatches)
    if schedule == "gpipe":
        return (microbatches,) * stages
    if schedule == "interleaved":
        enough = -(-enough // stages) * stages
    from gradatim.schedules.actions import peak_in_flight

    return tuple(peak_in_flight(build_schedule(schedule, stages, enough, chunks)))


def block_activations(
    model: Architecture, stack: Stack, *, sequences: int, tp: int, sequence_parallel: bool, recompute: str
) -> tuple[float, float]:
    """Bytes that a block keeps for its backward pass, and bytes that come back when it is computed again."""
    tokens, s = sequences * model.context, model.context
    width = 2.0 * tokens * model.width  # a hidden state of 16 bits
    shard = tp if sequence_parallel else 1
    heads = model.heads // tp
    q, kv = 2.0 * tokens * heads * model.head_dim, 4.0 * tokens * model.kv_heads // tp * model.head_dim
    inner = 2.0 * tokens * model.feed_forward / tp
    mask = width / 2 / shard if stack.dropout else 0.0
    inputs = width / shard
    # input of each norm and of the matrices behind it; masks of the two dropouts
    kept = 4 * inputs + 2 * mask if stack.keeps_norm_input else 2 * inputs + 2 * mask
    kept += q + kv  # queries, keys, values
    kept += q  # what enters the output matrix, which fused attention needs too
    kept += (3 if model.gated else 2) * inner
    square = 1.0 * sequences * heads * s * s  # one byte for each score
    core = 0.0
    if stack.attention == "flash":
        kept += 4.0 * tokens * heads  # logarithms of the softmax's sums
    else:
        core = square * (2 + (3 if stack.dropout else 0)) + (2 * square if stack.attention == "unfused" else 0)
    everything = kept + core
    if recompute == "full":
        return inputs, everything
    if recompute == "selective" and core:
        return kept, core
    return everything, 0.0


def head_activations(
    model: Architecture, stack: Stack, *, sequences: int, tp: int, sequence_parallel: bool
) -> tuple[float, float]:
    """Bytes that the head keeps (its inputs, its softmax), and what its backward pass needs besides."""
    tokens = sequences * model.context
    shard = tp if sequence_parallel else 1
    logits = 1.0 * tokens * model.predicted * model.vocabulary / tp
    return 2 * 2.0 * tokens * model.width / shard + stack.logits_kept * logits, stack.logits_working * logits


def stage_memory(stack: Stack, model: Architecture, layout: LayoutConfig, global_batch: int) -> list[StageMemory]:
    """Bytes of a rank of every stage."""
    assert layout.microbatch
    counts = model.layer_counts(layout)
    tp, pp, dp, v, zero = layout.tp, layout.pp, layout.dp, layout.chunks, layout.zero
    m = global_batch // dp // layout.microbatch
    held = in_flight(layout.schedule, pp, m, v)
    options = {"sequences": layout.microbatch, "tp": tp, "sequence_parallel": layout.sequence_parallel}
    kept, again = block_activations(model, stack, **options, recompute=layout.recompute)  # type: ignore[arg-type]
    head_kept, head_working = head_activations(model, stack, **options)  # type: ignore[arg-type]
    found = []
    for rank in range(pp):
        layers = sum(counts[rank::pp])
        parameters = layers * model.block_parameters(tp)
        first, last = rank == 0, rank == pp - 1
        if first:
            parameters += model.embedding_parameters(tp)
        if last:
            parameters += model.head_parameters(tp, alone=pp > 1)
        weights = stack.weight_bytes * parameters / (dp if zero >= 3 else 1)
        gradients = stack.gradient_bytes * parameters / (dp if zero >= 2 else 1)
        optimizer = stack.state_bytes * parameters / (dp if zero >= 1 else 1)
        per_chunk = layers / v * kept
        activations = held[rank] * per_chunk
        hidden = 2.0 * layout.microbatch * model.context * model.width / (tp if layout.sequence_parallel else 1)
        if first and stack.dropout:
            activations += held[rank] / v * hidden / 2
        working = again
        if last:
            activations += head_kept
            working = max(working, head_working)
        found.append(StageMemory(weights, gradients, optimizer, activations, working, stack.overhead))
    return found
