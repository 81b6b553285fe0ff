"""Averaging the weights of a run's last checkpoints, which often translates better than any of them.

Vaswani et al. (2017), 6.1: the last five of a base model, written at intervals. Sums are taken in float64.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gradatim.errors import CheckpointError, ConfigError, Problem
from gradatim.train.checkpoint import open_checkpoint
from gradatim.train.publish import list_checkpoints

MODEL = "model/"


def averaged(checkpoints: Path, count: int) -> dict[str, Tensor]:
    """The mean of each parameter over the ``count`` newest checkpoints.

    Raises:
        ConfigError: there are not so many.
        CheckpointError: one of them is damaged.
    """
    folders = list_checkpoints(checkpoints)
    if len(folders) < count:
        raise ConfigError(
            Problem(
                where="--average",
                what="the run has not kept so many checkpoints",
                got=str(count),
                allowed=f"1 to {len(folders)}",
                attempt=f"train with --checkpoint.keep {count}, and --checkpoint.every so that as many are written",
            )
        )
    total: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for folder in folders[:count]:
        tensors = open_checkpoint(folder).tensors(MODEL)
        if total and total.keys() != tensors.keys():
            raise CheckpointError(Problem(where=str(folder), what="the checkpoint holds other parameters"))
        for name, value in tensors.items():
            kinds[name] = value.dtype
            total[name] = total[name] + value.double() if name in total else value.double()
    return {name: (value / count).to(kinds[name]) for name, value in total.items()}
