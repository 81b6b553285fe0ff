"""The loop and what surrounds it: optimizer, learning rate, checkpoints, signals, metrics."""

from __future__ import annotations

from gradatim.train.loop import TrainResult, train
from gradatim.train.run_directory import Run

__all__ = ["Run", "TrainResult", "train"]
