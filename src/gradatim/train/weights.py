"""A checkpoint's parameters into a model, once all names and shapes agree."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gradatim.errors import CheckpointError, Problem
from gradatim.models.layers.lora import stored
from gradatim.shapes.bert import OF_PAIRS


def is_unused(name: str) -> bool:
    """Whether a parameter that a checkpoint has and its model has not never took part in training."""
    return name.startswith(OF_PAIRS)


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copy a checkpoint's parameters into a model; what older versions of it had for nothing is left.

    Raises:
        CheckpointError: names or shapes differ, each difference listed.
    """
    own = stored(model)
    tensors = {name: tensor for name, tensor in tensors.items() if name in own or not is_unused(name)}
    problems = (
        [
            Problem(where=str(where), what=f"the checkpoint has no parameter {name}", attempt="is it of another model?")
            for name in own.keys() - tensors.keys()
        ]
        + [
            Problem(where=str(where), what=f"the model has no parameter {name}", attempt="is it of another model?")
            for name in tensors.keys() - own.keys()
        ]
        + [
            Problem(
                where=str(where),
                what=f"{name} has another shape",
                got=str(list(tensors[name].shape)),
                allowed=str(list(own[name].shape)),
                attempt="is it of another model?",
            )
            for name in own.keys() & tensors.keys()
            if own[name].shape != tensors[name].shape
        ]
    )
    if problems:
        raise CheckpointError(*sorted(problems, key=str))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
