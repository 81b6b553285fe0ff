"""Interleaved 1F1B: several chunks per rank make the bubble smaller, for more transfers.

Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM" (2021),
https://arxiv.org/abs/2104.04473, section 2.2.2 and figure 4; the warm-up is that of Megatron's implementation.
Microbatches go in groups of p: a group passes through a rank's first chunk, then through its second, and so on, which
is why m must be divisible by p.
"""

from __future__ import annotations

from gradatim.schedules.actions import Action


def interleaved(rank: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    """Rank's actions of interleaved 1F1B. ``microbatches`` is a multiple of ``stages``; chunk c is on rank c % stages.

    It warms up with p forwards for each chunk but the last and two for each stage below, one for the way down and one
    for the way back. Peak in flight: at most warm-up + 1.
    """
    total = microbatches * chunks
    warm_up = min(2 * (stages - rank - 1) + (chunks - 1) * stages, total)
    actions = [_forward(k, rank, stages, chunks) for k in range(warm_up)]
    for k in range(total):
        if warm_up + k < total:
            actions.append(_forward(warm_up + k, rank, stages, chunks))
        actions.append(_backward(k, rank, stages, chunks))
    return actions


def _forward(k: int, rank: int, stages: int, chunks: int) -> Action:
    """The k-th forward of a rank."""
    turn, microbatch = _place(k, stages, chunks)
    return Action(turn * stages + rank, "F", microbatch)


def _backward(k: int, rank: int, stages: int, chunks: int) -> Action:
    """The k-th backward of a rank: as the forwards, from the last chunk to the first."""
    turn, microbatch = _place(k, stages, chunks)
    return Action((chunks - 1 - turn) * stages + rank, "B", microbatch)


def _place(k: int, stages: int, chunks: int) -> tuple[int, int]:
    """Which of a rank's chunks is k-th in turn, and on which microbatch."""
    group, within = divmod(k, stages * chunks)
    turn, member = divmod(within, stages)
    return turn, group * stages + member
