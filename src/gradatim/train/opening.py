"""What happens before a run's first step: its directory is locked, what it is asked for is held against what it is, its
text is prepared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gradatim.config.settings import RunConfig
from gradatim.text.prepare_pairs import tell_unknown
from gradatim.text.prepare_task import AnyPrepared, PreparedTask, prepare_run
from gradatim.train.continuing import refuse_changes, refuse_fewer_steps
from gradatim.train.publish import list_checkpoints
from gradatim.train.run_directory import Run, config_error_existing, config_error_foreign, data_changed
from gradatim.train.word_vectors import keep_vectors, refuse_few_words


@contextlib.contextmanager
def opened(
    config: RunConfig, directory: Path, resume: bool, say: Callable[[str], None]
) -> Iterator[tuple[Run, AnyPrepared]]:
    """A run's directory, locked, made if need be, and its text prepared.

    Raises:
        ConfigError: there is a run already and ``resume`` is false, or there are other files.
        DataError, CheckpointError, LaunchError: text, run or machine cannot be used.
    """
    run = Run(directory)
    if run.exists and not resume:
        raise config_error_existing(directory)
    if run.foreign:
        raise config_error_foreign(directory)
    with run.locked():
        if run.exists and not resume:  # another process made it a moment ago
            raise config_error_existing(directory)
        if run.exists:
            refuse_changes(run.config, config, directory / "config.yaml")
            refuse_fewer_steps(run, config)
            if config.steps != run.config.steps and config.optimizer.schedule in (
                "linear",
                "cosine",
                "warmup-stable-decay",
            ):
                say(
                    f"steps were {run.config.steps} and are {config.steps} now: the {config.optimizer.schedule} rate "
                    "follows the new number from here on, so this is not the run that had that length from its start"
                )
        prepared = prepare_run(config, say)
        fresh, counted = not run.exists, config.word_vectors == "counted"
        if counted:
            refuse_few_words(config, prepared)
        if fresh:
            Run.create(directory, config, prepared.tokenizer, prepared.source_tokenizer)
            if "languages" in prepared.report:
                run.remember_languages(prepared.report["languages"])
                tell_unknown(prepared.report, prepared.tokenizer.kind, config.data, say)
            if isinstance(prepared, PreparedTask):
                run.remember_labels(prepared.labels)
        elif run.tokenizer.fingerprint != prepared.tokenizer.fingerprint:
            raise data_changed(directory / "tokenizer.json")
        elif run.config != config:
            run.rewrite_config(config)
        if counted and not list_checkpoints(run.checkpoints):
            keep_vectors(run, config, prepared, say)
        try:
            yield run, prepared
        except BaseException:
            # Refused or stopped before the first step: no run may stand in the way of the same command, or the mended.
            if fresh and not list_checkpoints(run.checkpoints) and not run.has_steps:
                run.metrics.unlink(missing_ok=True)  # empty, and no file of a directory without a run
                (directory / "config.yaml").unlink(missing_ok=True)
            raise
