"""Checkpoints as a run in progress makes them: a full disk is a warning, unless it stays full or the run ends."""

from __future__ import annotations

from dataclasses import asdict

from gradatim.config.settings import RunConfig
from gradatim.errors import LaunchError, Problem
from gradatim.text.prepare_task import AnyPrepared
from gradatim.train.continuing import training_hash
from gradatim.train.engine import Engine
from gradatim.train.manifest import Manifest
from gradatim.train.metrics import MetricsLog, NoLog, Progress
from gradatim.train.publish import prune
from gradatim.train.run_directory import Run
from gradatim.train.state import Counters, finite_json

FAILED_SAVES = 3
"""Checkpoints that may fail in a row before the run gives up."""


class Saves:
    """The saves of a run; all ranks ask for the same ones, and fail alike."""

    def __init__(self, config: RunConfig, run: Run, prepared: AnyPrepared, engine: Engine) -> None:
        self.config, self.run, self.prepared, self.engine = config, run, prepared, engine
        self.failed = 0
        """In a row."""
        self.step: int | None = None
        """Of the newest checkpoint that this run could go on from."""

    def save(self, counters: Counters, log: MetricsLog | NoLog, progress: Progress, last: bool) -> None:
        """Publish a checkpoint once its metrics are on disk, then drop old ones.

        Args:
            last: whether no other will follow; then a failure is tried once more, and ends the run.

        Raises:
            LaunchError: it failed, and was the last one or one too many.
        """
        error = self._attempt(counters, log)
        if error is not None:
            self.failed += 1
            progress.note(
                f"WARNING: step {counters.step} could not be saved ({_why(error)}); "
                + ("trying once more" if last else "earlier checkpoints are whole")
            )
            if last:
                error = self._attempt(counters, log)
        if error is not None:
            if last or self.failed >= FAILED_SAVES:
                raise self._given_up(counters.step, error, last) from None
            return
        self.failed, self.step = 0, counters.step
        if self.engine.leads:
            prune(self.run.checkpoints, self.config.checkpoint.keep, counters.step)

    def _attempt(self, counters: Counters, log: MetricsLog | NoLog) -> OSError | None:
        manifest = Manifest(
            step=counters.step,
            tokens=counters.tokens,
            samples=counters.step * self.config.global_batch,
            config_hash=training_hash(self.config),
            data_fingerprint=self.prepared.fingerprint,
            tokenizer_fingerprint=self.prepared.tokenizer.fingerprint,
            layout=asdict(self.config.layout),
            counters=finite_json(asdict(counters)),
        )
        try:
            self.engine.save(self.run.checkpoints, manifest, log.sync)
        except OSError as error:
            return error
        return None

    def _given_up(self, step: int, error: OSError, last: bool) -> LaunchError:
        saved = "nothing is saved" if self.step is None else f"step {self.step} is the last one saved"
        times = "the last checkpoint" if last else f"{self.failed} failures in a row"
        return LaunchError(
            Problem(
                where=str(self.run.checkpoints),
                what=f"checkpoints cannot be written ({_why(error)})",
                got=f"{times}, at step {step}; {saved}",
                attempt="free some disk space, then --resume",
            )
        )


def _why(error: OSError) -> str:
    return error.strerror or str(error)
