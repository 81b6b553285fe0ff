"""The training loop: batch, loss, gradient, update; now and then an evaluation and a checkpoint.

Everything a step does follows from (config, seed, step): which samples, which rate, which units dropout drops. What is
carried from step to step is in ``Trainer`` and goes into checkpoints: parameters, moments, counters and, for recurrent
models, the hidden state. So a run that was stopped continues bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradatim.config import config_to_yaml
from gradatim.config.derived import loss_unit
from gradatim.config.grid import layout_text
from gradatim.config.settings import NgramConfig, RunConfig
from gradatim.config.tuned import model_of
from gradatim.errors import CheckpointError, DataError, Interrupted, LaunchError, NonFiniteError, Problem
from gradatim.evaluate.likelihood import Stopped
from gradatim.shapes import flops_per_token
from gradatim.text.prepare_task import AnyPrepared, PreparedTask, prepare_run
from gradatim.train.adapted import base_of, remember_base
from gradatim.train.checkpoint import Checkpoint, cannot_resume, list_checkpoints, prune, remove_leftovers
from gradatim.train.engine import Engine, SerialEngine, label_count
from gradatim.train.manifest import Manifest
from gradatim.train.metrics import MetricsLog, NoLog, Progress
from gradatim.train.precision import device, peak_flops, speed_notes
from gradatim.train.run_directory import (
    Run,
    config_error_existing,
    config_error_foreign,
    data_changed,
    refuse_changes,
    refuse_fewer_steps,
    training_hash,
)
from gradatim.train.signals import StopRequest
from gradatim.train.start import Start, Weights, open_weights
from gradatim.train.state import Counters, finite_json

if TYPE_CHECKING:
    from gradatim.parallel.mesh import Mesh

FAILED_SAVES = 3
"""Checkpoints that may fail in a row (a full disk) before the run gives up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What ``gradatim train`` answers."""

    run: str
    step: int
    loss: float | None
    valid_loss: float | None
    best_valid_loss: float | None
    tokens: int
    tokens_per_second: float | None
    mfu: float | None
    layout: dict[str, Any]
    parameters: int
    seconds: float


def train(
    config: RunConfig,
    directory: Path,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    mesh: Mesh | None = None,
) -> TrainResult:
    """Train a model as the config says, in a run directory.

    ``mesh`` is this rank's place among several; all ranks call this alike, the first one keeps the directory.

    Raises:
        ConfigError: there is a run already and ``resume`` is false.
        DataError, CheckpointError, LaunchError: text, checkpoint or machine cannot be used.
        Interrupted: a signal came; everything up to the step it came in is saved.
        NonFiniteError: loss or gradient were not finite more than ``max_skipped_steps`` times.
    """
    # Dropout seeds torch's generators in every step; a caller's own draws go on as if nothing had happened.
    with torch.random.fork_rng():
        if mesh is None or mesh.world == 1:
            with _opened(config, directory, resume, say) as (run, prepared):
                if isinstance(config.model, NgramConfig):
                    assert not isinstance(prepared, PreparedTask)
                    from gradatim.train.counting import count

                    return count(config, run, prepared, say)
                trainer = Trainer(config, run, prepared, say, SerialEngine(config, prepared))
                return trainer.train()
        from gradatim.parallel.engine import LayoutEngine, everybody

        with contextlib.ExitStack() as opened:
            if mesh.rank == 0:
                run, prepared = opened.enter_context(_opened(config, directory, resume, say))
            everybody(mesh)  # until the first rank has prepared the text and made the directory
            if mesh.rank != 0:
                run, prepared, say = Run.open(directory), prepare_run(config), _nothing
            trainer = Trainer(config, run, prepared, say, LayoutEngine(config, prepared, mesh, run.directory / "logs"))
            return trainer.train()


@contextlib.contextmanager
def _opened(
    config: RunConfig, directory: Path, resume: bool, say: Callable[[str], None]
) -> Iterator[tuple[Run, AnyPrepared]]:
    """Lock a run's directory, made if need be, with its text prepared."""
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
        fresh = not run.exists
        if fresh:
            Run.create(directory, config, prepared.tokenizer, prepared.source_tokenizer)
            if "languages" in prepared.report:
                run.remember_languages(prepared.report["languages"])
            if isinstance(prepared, PreparedTask):
                run.remember_labels(prepared.labels)
        elif run.tokenizer.fingerprint != prepared.tokenizer.fingerprint:
            raise data_changed(directory / "tokenizer.json")
        else:
            (directory / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        try:
            yield run, prepared
        except (DataError, CheckpointError):
            # Refused before the first step: no run may stand in the way of the mended command.
            if fresh and not list_checkpoints(run.checkpoints):
                (directory / "config.yaml").unlink()
            raise


def _nothing(_: str) -> None:
    """What ranks say that do not lead."""


class Trainer:
    """A neural run in progress: what happens when, whatever the engine."""

    def __init__(
        self,
        config: RunConfig,
        run: Run,
        prepared: AnyPrepared,
        say: Callable[[str], None],
        engine: Engine,
    ) -> None:
        self.config, self.run, self.prepared, self.say, self.engine = config, run, prepared, say, engine
        self.counters = Counters()
        self.failed_saves = 0
        self.model = model_of(config, label_count(prepared))
        self.flops = flops_per_token(self.model, prepared.tokenizer.vocab_size, config.context)

    # ------------------------------------------------------------------ the loop

    def train(self) -> TrainResult:
        """All steps from where the run stands."""
        self._resume()
        config, counters = self.config, self.counters
        engine = self.engine
        self.say(f"{engine.parameters:,} parameters, {engine.steps_per_epoch():.1f} steps see the text once")
        for note in (*engine.notes, *(speed_notes(config.precision, device()) if engine.leads else ())):
            self.say(note)
        log = MetricsLog(self.run.metrics, config.track) if engine.leads else NoLog()
        progress = Progress(config.steps, counters.step, quiet=not engine.leads)
        with StopRequest() as stop:
            try:
                self._catch_up(log, progress, stop)
                stopping = engine.agreed(bool(stop))
                while counters.step < config.steps and not self._exhausted() and not stopping:
                    row = self._step()
                    self._evaluate_if_due(row, progress, stop)
                    counters.last_row = row
                    log.write(row)
                    progress.step(row)
                    self._refuse_more_skips(row, progress)
                    stopping = engine.agreed(bool(stop))
                    if self._due_to_save() or stopping:
                        self._save(log, progress)
            finally:
                log.close()
            for remark in engine.remarks():
                progress.note(remark)
            if stopping and counters.step < config.steps:
                raise Interrupted(
                    Problem(
                        where=str(self.run.directory),
                        what=f"stopped by {stop or 'a signal'} after step {counters.step}; everything is saved",
                        attempt="the same command with --resume",
                    )
                )
        return self._result()

    def _step(self) -> dict[str, Any]:
        """One update; its metrics row."""
        counters = self.counters
        step = counters.step
        started = time.perf_counter()
        outcome = self.engine.step(step)
        seconds = time.perf_counter() - started
        counters.step += 1
        counters.updates += outcome.finite
        counters.tokens += outcome.count
        counters.valid_loss = None
        counters.seconds += seconds
        row: dict[str, Any] = {
            "step": counters.step,
            "loss": outcome.loss,
            "lr": outcome.rate,
            "grad_norm": outcome.norm,
            "tokens": counters.tokens,
            "tokens_per_second": outcome.count / seconds,
            "seconds": counters.seconds,
            **outcome.measured,
        }
        if not outcome.finite:
            row["skipped"] = counters.step - counters.updates
            row["samples"] = self.engine.samples(step)
        return row

    def _refuse_more_skips(self, row: dict[str, Any], progress: Progress) -> None:
        """Say which samples a skipped update was made of; give up when there have been too many."""
        if "skipped" not in row:
            return
        what = f"loss {row['loss']}, gradient norm {row['grad_norm']}"
        progress.note(f"WARNING: step {row['step']} skipped: {what}; samples {row['samples']}")
        if row["skipped"] > self.config.max_skipped_steps:
            raise NonFiniteError(
                Problem(
                    where=f"step {row['step']}",
                    what="loss or gradient was not finite once too often",
                    got=f"{row['skipped']} updates skipped, {what}",
                    allowed=f"{self.config.max_skipped_steps} (max_skipped_steps)",
                    attempt="a smaller optimizer.lr, a longer warm-up, or precision fp32",
                )
            )

    # ------------------------------------------------------------------ evaluation

    def _evaluation_due(self) -> bool:
        step = self.counters.step
        return (
            self.prepared.valid is not None
            and step > 0
            and (step % self.config.evaluation.every == 0 or step == self.config.steps)
        )

    def _evaluate_if_due(self, row: dict[str, Any], progress: Progress, stop: StopRequest) -> None:
        """Measure the validation loss; a signal in the middle leaves it to the run that resumes."""
        counters = self.counters
        if not self._evaluation_due():
            return
        try:
            loss = self.valid_loss(lambda: bool(stop))
        except Stopped:
            return
        row["valid_loss"] = loss
        counters.judged(loss)
        best = math.nan if counters.best is None else counters.best
        progress.note(f"step {counters.step}  validation loss {loss:.4f} {loss_unit(self.config)} (best {best:.4f})")

    def valid_loss(self, stop: Callable[[], bool] = lambda: False) -> float:
        """Nats per validation token."""
        return self.engine.valid_loss(stop)

    def _exhausted(self) -> bool:
        patience = self.config.evaluation.patience
        return patience is not None and self.counters.since_best >= patience

    def _catch_up(self, log: MetricsLog | NoLog, progress: Progress, stop: StopRequest) -> None:
        """Do the evaluation that a signal kept a resumed run from doing."""
        if self._evaluation_due() and self.counters.valid_loss is None and self.counters.last_row:
            row = {key: value for key, value in self.counters.last_row.items() if key != "attempt"}
            self._evaluate_if_due(row, progress, stop)
            self.counters.last_row = row
            log.write(row)
            self._save(log, progress)

    # ------------------------------------------------------------------ checkpoints

    def _due_to_save(self) -> bool:
        counters = self.counters
        best = counters.valid_loss is not None and counters.since_best == 0
        end = counters.step == self.config.steps or self._exhausted()
        return best or end or counters.step % self.config.checkpoint.every == 0

    def _save(self, log: MetricsLog | NoLog, progress: Progress) -> None:
        """Publish a checkpoint once its metrics are on disk, then drop old ones; a full disk is a warning, until it
        happens too often.
        """
        counters = self.counters
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
            log.sync()
            self.engine.save(self.run.checkpoints, manifest)
        except OSError as error:
            self.failed_saves += 1
            progress.note(
                f"WARNING: step {counters.step} could not be saved ({error.strerror}); earlier checkpoints are whole"
            )
            if self.failed_saves >= FAILED_SAVES:
                raise LaunchError(
                    Problem(
                        where=str(self.run.checkpoints),
                        what=f"checkpoints cannot be written ({error.strerror})",
                        got=f"{self.failed_saves} failures in a row",
                        attempt="free some disk space, then --resume",
                    )
                ) from None
            return
        self.failed_saves = 0
        if self.engine.leads:
            prune(self.run.checkpoints, self.config.checkpoint.keep)

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one."""
        if self.engine.leads:
            remove_leftovers(self.run.checkpoints)
        checkpoint, rejected = self.engine.newest(self.run.checkpoints)
        for error in rejected:
            self.say(f"WARNING: passed over a checkpoint: {error}")
        if checkpoint is None:
            if rejected:
                raise cannot_resume(self.run.checkpoints, rejected)
            self._start()
            return
        if self.config.lora.rank is not None:  # a checkpoint has nothing of what stays as it is
            self.engine.start_from(self._source(base_of(self.run)))
        self._load(checkpoint)
        self.say(f"continuing after step {self.counters.step}{self._layouts(checkpoint.manifest)}")

    def _start(self) -> None:
        """The weights that the config names, if it does."""
        source = self.config.init_from
        if source is None:
            return
        start = self._source(open_weights(Path(source)))
        self.engine.start_from(start)
        if self.config.lora.rank is not None and self.engine.leads:
            remember_base(self.run, start.weights)
        self.say(f"starting from the weights of {source}")
        for name in start.drawn:
            self.say(f"{source} has no {name}: it is drawn anew")

    def _source(self, weights: Weights) -> Start:
        labels = self.prepared.labels if isinstance(self.prepared, PreparedTask) else ()
        return Start(weights, self.config, self.prepared.tokenizer, self.prepared.source_tokenizer, self.model, labels)

    def _layouts(self, manifest: Manifest) -> str:
        """Under which layout a checkpoint was saved and goes on: the command's, which may have named none."""
        before, now = (layout_text(fields) for fields in (manifest.layout, asdict(self.config.layout)))
        if not manifest.layout or before == now:
            return f" (layout: {now})" if self.engine.world > 1 else ""
        return f", saved under the layout {before}; it is {now} from here on, as the command and its recipe say"

    def _load(self, checkpoint: Checkpoint) -> None:
        manifest = checkpoint.manifest
        if manifest.config_hash != training_hash(self.config):
            raise CheckpointError(
                Problem(
                    where=str(checkpoint.folder),
                    what="the checkpoint was made with other settings than the run's config.yaml has",
                    attempt="put back the config.yaml that the run was started with, or start another run",
                )
            )
        if manifest.data_fingerprint != self.prepared.fingerprint:
            raise data_changed(checkpoint.folder)
        self.counters = self.engine.load(checkpoint)

    # ------------------------------------------------------------------ the end

    def _result(self) -> TrainResult:
        counters = self.counters
        rate = counters.tokens / counters.seconds if counters.seconds else None
        peak = peak_flops(self.config.precision, device())
        return TrainResult(
            run=str(self.run.directory),
            step=counters.step,
            loss=counters.last_row.get("loss"),
            valid_loss=counters.valid_loss,
            best_valid_loss=counters.best,
            tokens=counters.tokens,
            tokens_per_second=rate,
            mfu=rate * self.flops / (peak * self.engine.world) if rate and peak else None,
            layout=asdict(self.config.layout),
            parameters=self.engine.parameters,
            seconds=counters.seconds,
        )
