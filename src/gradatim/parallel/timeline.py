"""What a pipeline did against what its schedule promised: spans of every action, gathered over the stages.

The bubble is makespan / busy - 1, busy being the longest time that a rank computes (Narayanan et al. 2021,
https://arxiv.org/abs/2104.04473, section 2.2). *Simulated* is the same schedule with each action's own measured
time and free transfers: what is left between the two is the network's, and that of ranks held up by others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from gradatim.parallel.mesh import Mesh
from gradatim.parallel.pipeline import Ran
from gradatim.schedules import Action, Schedule, simulate

Spans = list[list[tuple[float, float]]]
"""Per rank, start and end of each action that computes, in seconds from the step's beginning."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A step of one pipeline, as it was and as simulated from the same durations."""

    schedule: Schedule
    """Its compute actions."""
    spans: Spans
    """As measured."""
    expected: Spans
    """As simulated."""

    @property
    def measured(self) -> float:
        """The bubble as it was."""
        return bubble(self.spans)

    @property
    def simulated(self) -> float:
        """The bubble of the simulation."""
        return bubble(self.expected)

    def as_json(self) -> dict[str, Any]:
        """What ``gradatim report`` draws."""
        return {"actions": self.schedule.text(), "measured": self.spans, "simulated": self.expected}


def timeline(schedule: Schedule, ran: Ran, mesh: Mesh, device: torch.device) -> Timeline:
    """Gather every stage's spans; all ranks of a pipeline call this alike."""
    compute = schedule.compute()
    longest = max(len(actions) for actions in compute.ranks)
    mine = torch.zeros(longest, 2, dtype=torch.float64)
    mine[: len(ran.spans)] = torch.tensor(ran.spans, dtype=torch.float64)
    mine = mine.to(device)
    found = [torch.empty_like(mine) for _ in range(mesh.pp.size)]
    dist.all_gather(found, mine, group=mesh.pp.group)
    spans: Spans = [
        [(start, end) for start, end in part[: len(actions)].tolist()] for part, actions in zip(found, compute.ranks)
    ]
    took: dict[Action, float] = {
        action: end - start
        for actions, part in zip(compute.ranks, spans)
        for action, (start, end) in zip(actions, part)
    }
    expected = simulate(compute, took.__getitem__)
    return Timeline(compute, spans, [[(float(a), float(b)) for a, b in part] for part in expected.spans])


def bubble(spans: Spans) -> float:
    """Makespan / busiest rank's busy time - 1."""
    first = min(part[0][0] for part in spans if part)
    last = max(part[-1][1] for part in spans if part)
    return (last - first) / max(sum(end - start for start, end in part) for part in spans) - 1
