"""Zero-bubble schedule ZB-H1: the weight half of each backward pass waits until there is nothing better to do.

Qi et al., "Zero Bubble Pipeline Parallelism" (2023), https://arxiv.org/abs/2401.10241, section 2.1 and figure 2. The
gradient that others wait for (I) goes ahead; the gradient of the weights (W), which nobody waits for, fills what would
be a bubble. Rank r defers r of them, so every rank holds the activations of at most p microbatches: as many as the
first rank does under 1F1B, hence the same peak over the ranks. With F = I = W the bubble is a third of 1F1B's.
"""

from __future__ import annotations

from gradatim.schedules.actions import Action


def zero_bubble(rank: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    """Rank's actions of ZB-H1. ``chunks`` is 1; any number of microbatches does. Peak in flight: min(m, p)."""
    warm_up = min(stages - rank - 1, microbatches)
    actions = [Action(rank, "F", i) for i in range(warm_up)]
    for i in range(microbatches):
        if warm_up + i < microbatches:
            actions.append(Action(rank, "F", warm_up + i))
        actions.append(Action(rank, "I", i))
        if i >= rank:
            actions.append(Action(rank, "W", i - rank))
    return actions + [Action(rank, "W", i) for i in range(max(microbatches - rank, 0), microbatches)]
