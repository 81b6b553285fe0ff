"""What the workers do for test_check.py: steps of training in which one thing on one rank is not as it should be."""

from __future__ import annotations

from typing import Any

import torch
from work_layouts import make_config, make_text, mesh_of

from gradatim.errors import ReplicaError
from gradatim.parallel.engine import LayoutEngine


def train(rank: int, world: int, model: dict[str, Any], layout: dict[str, Any], planted: str) -> tuple[str, str]:
    """The error of the comparison, and what it says to have compared; the last rank is at fault."""
    config = make_config(model, {**layout, "check": True})
    engine = LayoutEngine(config, make_text(), mesh_of(config.layout))
    assert engine.replicas is not None
    if planted and rank == world - 1:
        spoil(engine, planted)
    try:
        for step in range(2):
            engine.step(step)
        engine.replicas.parameters()
    except ReplicaError as error:
        return str(error), ""
    return "", engine.replicas.summary()


def spoil(engine: LayoutEngine, planted: str) -> None:
    """A difference of one number."""
    (chunk,) = engine.chunks.values()
    parameters = dict(chunk.model.named_parameters())
    kind, _, name = planted.partition(" ")
    if kind == "parameter":
        parameters[name].data.view(-1)[5] += 1e-9
    elif kind == "activation":

        def more(module: Any, given: Any, made: torch.Tensor) -> torch.Tensor:
            return made + 1e-12 * (torch.arange(made.numel()) == 40).view_as(made)

        chunk.model.get_submodule(name).register_forward_hook(more)
    elif kind == "gradient":
        parameters[name].register_hook(lambda grad: grad * (1 + 1e-12))  # type: ignore[no-untyped-call]
    elif kind == "sum":  # a sum over ranks that came out differently here
        finish = engine.gradients.finish

        def other() -> None:
            finish()
            for leaf in engine.optimizer.leaves:
                for part in leaf.parts:
                    if part.spec.global_name == name:
                        assert leaf.weight.grad is not None
                        leaf.of(part, leaf.weight.grad)[-1] += 1e-12

        engine.gradients.finish = other  # type: ignore[method-assign]
    elif kind == "targets":
        batch = engine.batches.batch
        engine.batches.batch = lambda step, rows: shifted(batch(step, rows))  # type: ignore[method-assign]
    else:
        raise ValueError(planted)


def shifted(batch: Any) -> Any:
    """Another last target."""
    batch.targets[-1, -1] = 3 + (batch.targets[-1, -1] == 3)
    return batch
