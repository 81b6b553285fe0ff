"""What a neural run carries from step to step, as the tensors and counters of a checkpoint, and back.

Parameters, AdamW's moments, the hidden state of truncated back-propagation, and a few numbers. Nothing random is in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradatim.errors import CheckpointError, Problem
from gradatim.models.layers.lora import stored
from gradatim.models.neural import NeuralLanguageModel, NeuralModel
from gradatim.train.checkpoint import Checkpoint
from gradatim.train.optimizer import load_optimizer, optimizer_tensors
from gradatim.train.run_directory import MODEL
from gradatim.train.weights import load_weights

OPTIMIZER, CARRY = "optimizer/", "carry/"


@dataclass(slots=True)
class Counters:
    """The loop's small state, kept in the manifest."""

    step: int = 0
    """Updates done, skipped ones included."""
    updates: int = 0
    """Updates applied."""
    tokens: int = 0
    """Targets learned from."""
    seconds: float = 0.0
    """Time spent in steps, without evaluations and checkpoints, over all attempts."""
    valid_loss: float | None = None
    """Validation loss at this very step, if measured."""
    best: float | None = None
    """Lowest validation loss so far."""
    since_best: int = 0
    """Evaluations since then."""
    judged_at: int = 0
    """The step whose validation loss was measured last; a loss that is not finite is null in a checkpoint."""
    last_row: dict[str, Any] = field(default_factory=dict)
    """The metrics row of this step."""

    @property
    def measured(self) -> bool:
        """Whether the validation loss of this very step was measured, whatever it is."""
        return self.valid_loss is not None or (self.step > 0 and self.judged_at == self.step)

    def judged(self, loss: float) -> None:
        """Take note of a validation loss; one that is not finite is never the best."""
        self.valid_loss, self.judged_at = loss, self.step
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best, self.since_best = loss, 0
        else:
            self.since_best += 1


def state_tensors(model: NeuralModel, optimizer: torch.optim.Optimizer, carry: Any) -> dict[str, Tensor]:
    """Everything large: ``model/NAME``, ``optimizer/NAME/exp_avg``, ``carry/LAYER/PART``."""
    tensors = {MODEL + name: parameter.detach() for name, parameter in stored(model).items()}
    tensors |= {OPTIMIZER + name: value for name, value in optimizer_tensors(model, optimizer).items()}
    if carry is not None:
        for index, layer in enumerate(carry.layers):
            tensors |= {f"{CARRY}{index}/{part}": value for part, value in enumerate(layer)}
    return tensors


def restore(
    checkpoint: Checkpoint, model: NeuralModel, optimizer: torch.optim.Optimizer, rows: int
) -> tuple[Counters, Any]:
    """Fill model and optimizer from a checkpoint; its counters, and the carried state of ``rows`` streams or None.

    Raises:
        CheckpointError: what it holds is not the state of this model.
    """
    where = next(model.parameters()).device
    load_weights(model, checkpoint.tensors(MODEL), checkpoint.folder)
    carried = checkpoint.tensors(CARRY)
    try:
        counters = Counters(**checkpoint.manifest.counters)
        load_optimizer(model, optimizer, checkpoint.tensors(OPTIMIZER), counters.updates)
        layers: dict[int, list[Tensor]] = {}
        for name in sorted(carried, key=lambda name: tuple(map(int, name.split("/")))):
            layers.setdefault(int(name.split("/")[0]), []).append(carried[name].to(where))
    except (TypeError, ValueError, KeyError) as error:
        what = "the checkpoint does not hold the state of this model"
        attempt = "was it written by another version?"
        raise CheckpointError(
            Problem(where=str(checkpoint.folder), what=what, got=str(error), attempt=attempt)
        ) from None
    if not layers:
        return counters, None
    assert isinstance(model, NeuralLanguageModel)
    return counters, type(model.start(0))(rows, tuple(map(tuple, layers.values())))


def finite_json(value: Any) -> Any:
    """Numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: finite_json(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
