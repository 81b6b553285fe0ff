"""Opening a run for the verbs that ask its model something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradatim.cli.output import say
from gradatim.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gradatim.models.protocol import LanguageModel
    from gradatim.train import Run


def open_run(directory: Path, checkpoint: str = "best") -> tuple[Run, LanguageModel]:
    """The run and its language model at a checkpoint: ``best``, ``last``, or a step.

    Raises:
        ConfigError: the checkpoint is neither, or the model is no language model.
        CheckpointError: no such run or checkpoint, or it is damaged.
    """
    run = find_run(directory, checkpoint)
    return run, run.model(checkpoint, say)


def find_run(directory: Path, checkpoint: str = "best") -> Run:
    """The run, once the choice of a checkpoint makes sense.

    Raises:
        ConfigError: the checkpoint is neither ``best`` nor ``last`` nor a step.
        CheckpointError: no such run.
    """
    if checkpoint not in ("best", "last") and not checkpoint.isdigit():
        raise ConfigError(
            Problem(where="--checkpoint", what="no such choice", got=checkpoint, allowed="best, last, or a step")
        )

    from gradatim.train import Run

    return Run.open(directory)
