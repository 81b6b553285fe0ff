"""Pipelines with one chunk per rank and whole backward passes: unpipelined, GPipe, 1F1B.

Huang et al., "GPipe" (2018), https://arxiv.org/abs/1811.06965, section 2.3: all forward passes, then all backward.
Narayanan et al., "PipeDream" (2019), https://arxiv.org/abs/1806.03377, section 3.2, and with a flush at the end of each
step "Memory-Efficient Pipeline-Parallel DNN Training" (2021), https://arxiv.org/abs/2006.09503: one forward, one
backward (1F1B), which bounds the activations in flight by the number of stages instead of microbatches.
"""

from __future__ import annotations

from gradatim.schedules.actions import Action


def naive(rank: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    """Rank's actions of model parallelism without a pipeline: a microbatch is done before the next one starts.

    ``chunks`` is 1; any number of microbatches does. Peak in flight: 1.
    """
    return [action for i in range(microbatches) for action in (Action(rank, "F", i), Action(rank, "B", i))]


def gpipe(rank: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    """Rank's actions of GPipe: all forward passes, then all backward, both from the first microbatch on.

    ``chunks`` is 1; any number of microbatches does. Peak in flight: the number of microbatches.
    """
    return [Action(rank, "F", i) for i in range(microbatches)] + [Action(rank, "B", i) for i in range(microbatches)]


def one_forward_one_backward(rank: int, stages: int, microbatches: int, chunks: int) -> list[Action]:
    """Rank's actions of 1F1B: as many forwards as there are stages below, then one forward, one backward in turns.

    ``chunks`` is 1; any number of microbatches does. Peak in flight: min(microbatches, stages − rank).
    """
    warm_up = min(stages - rank - 1, microbatches)
    actions = [Action(rank, "F", i) for i in range(warm_up)]
    for i in range(microbatches):
        if warm_up + i < microbatches:
            actions.append(Action(rank, "F", warm_up + i))
        actions.append(Action(rank, "B", i))
    return actions
