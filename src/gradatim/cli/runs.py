"""Opening a run for the verbs that ask its model something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from gradatim.cli.output import say
from gradatim.config.rules_pairs import is_pairs
from gradatim.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gradatim.decode.translate import Translating
    from gradatim.evaluate.answers import Tuned
    from gradatim.models.protocol import LanguageModel
    from gradatim.train import Run


def open_run(
    directory: Path, checkpoint: str = "best", translates: bool = False, average: int = 1
) -> tuple[Run, LanguageModel]:
    """The run and its model at a checkpoint (``best``, ``last``, or a step), or the mean of its newest ``average``.

    Raises:
        ConfigError: the checkpoint is neither, the model is no language model, or the run is a translator and the verb
            is not for those.
        CheckpointError: no such run or checkpoint, or it is damaged.
    """
    run = find_run(directory, checkpoint)
    if is_pairs(run.config.data) and not translates:
        raise ConfigError(
            Problem(
                where=str(directory),
                what="this run translates; without a source sentence it has nothing to say",
                got=f"kind {run.config.model.kind}",
                allowed="a language model",
                attempt=f"gradatim translate {directory} FILE",
            )
        )
    return run, run.model(checkpoint, say, average)


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


def refuse_choice_and_mean(average: int) -> None:
    """``--average`` takes the newest checkpoints, whichever ``--checkpoint`` names.

    Raises:
        ConfigError: the command line says both.
    """
    said = click.get_current_context().get_parameter_source("checkpoint")
    if average > 1 and said is ParameterSource.COMMANDLINE:
        raise ConfigError(
            Problem(
                where="--checkpoint --average",
                what="a mean is of the newest checkpoints, and does not start from one",
                allowed="one of the two",
                attempt="leave out --checkpoint",
            )
        )


def open_translator(directory: Path, checkpoint: str = "best", average: int = 1) -> tuple[Run, Translating]:
    """As ``open_run``, of a translation run: its model with both tokenizers.

    Raises:
        ConfigError: the run is a language model.
    """
    from gradatim.decode.translate import Translating
    from gradatim.models.translator import Translator

    run, model = open_run(directory, checkpoint, True, average)
    if not isinstance(model, Translator):
        raise ConfigError(
            Problem(
                where=str(directory),
                what="this run does not translate",
                got=f"kind {run.config.model.kind}",
                allowed="kind translate-lm, seq2seq or transformer",
                attempt="gradatim train translate-demo",
            )
        )
    return run, Translating(
        model=model, source_tokenizer=run.source_tokenizer, tokenizer=run.tokenizer, context=run.config.context
    )


def open_tuned(run: Run, checkpoint: str = "best", average: int = 1) -> Tuned:
    """The model of a run that was tuned for a task, ready to be asked.

    Raises:
        ConfigError: the run was not.
    """
    from gradatim.evaluate.answers import Tuned

    if run.config.task.kind == "none":
        raise ConfigError(
            Problem(
                where=str(run.directory),
                what="this run was not tuned for a task, so it has no answers",
                got="task none",
                attempt=f"gradatim train bert-classify --init_from {run.directory} --data.train FILE",
            )
        )
    return Tuned(run.network(checkpoint, say, average), run.config, run.tokenizer, run.labels)
