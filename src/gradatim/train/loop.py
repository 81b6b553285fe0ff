"""The training loop: batch, loss, gradient, update; now and then an evaluation and a checkpoint.

Everything a step does follows from (config, seed, step): which samples, which rate, which units dropout drops. What is
carried from step to step is in ``Trainer`` and goes into checkpoints: parameters, moments, counters and, for recurrent
models, the hidden state. So a run that was stopped continues bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradatim.config.derived import loss_unit
from gradatim.config.grid import layout_text
from gradatim.config.settings import NgramConfig, RunConfig
from gradatim.config.tuned import model_of
from gradatim.errors import CheckpointError, Interrupted, NonFiniteError, Problem
from gradatim.evaluate.likelihood import Stopped
from gradatim.shapes import flops_per_token
from gradatim.text.prepare_task import AnyPrepared, PreparedTask, prepare_run
from gradatim.train.adapted import base_of, remember_base
from gradatim.train.checkpoint import Checkpoint, cannot_resume
from gradatim.train.continuing import training_hash
from gradatim.train.engine import Engine, SerialEngine, label_count
from gradatim.train.manifest import Manifest
from gradatim.train.metrics import MetricsLog, NoLog, Progress
from gradatim.train.opening import opened
from gradatim.train.precision import device, own_gpu, peak_flops, speed_notes
from gradatim.train.publish import list_checkpoints, remove_leftovers, set_aside, step_of
from gradatim.train.run_directory import Run, data_changed
from gradatim.train.saving import Saves
from gradatim.train.signals import StopRequest
from gradatim.train.start import Start, Weights, open_weights
from gradatim.train.state import Counters
from gradatim.train.word_vectors import kept_vectors

if TYPE_CHECKING:
    from gradatim.parallel.mesh import Mesh


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
        DataError, CheckpointError, LaunchError: text, checkpoint or machine cannot be used, or its end not be saved.
        Interrupted: a signal came; everything up to the step it came in is saved.
        NonFiniteError: loss or gradient were not finite more than ``max_skipped_steps`` times.
    """
    # Dropout seeds torch's generators in every step; a caller's own draws go on as if nothing had happened.
    with torch.random.fork_rng(own_gpu()):
        if mesh is None or mesh.world == 1:
            with opened(config, directory, resume, say) as (run, prepared):
                if isinstance(config.model, NgramConfig):
                    assert not isinstance(prepared, PreparedTask)
                    from gradatim.train.counting import count

                    return count(config, run, prepared, say)
                trainer = Trainer(config, run, prepared, say, SerialEngine(config, prepared))
                return trainer.train()
        from gradatim.parallel.engine import LayoutEngine, everybody

        with contextlib.ExitStack() as held:
            if mesh.rank == 0:
                run, prepared = held.enter_context(opened(config, directory, resume, say))
            everybody(mesh)  # until the first rank has prepared the text and made the directory
            if mesh.rank != 0:
                run, prepared, say = Run.open(directory), prepare_run(config), _nothing
            trainer = Trainer(config, run, prepared, say, LayoutEngine(config, prepared, mesh, run.directory / "logs"))
            return trainer.train()


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
        self.saves = Saves(config, run, prepared, engine)
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
                        self.saves.save(counters, log, progress, last=stopping or self._ended())
            finally:
                log.close()
            for remark in engine.remarks():
                progress.note(remark)
            if stopping and (counters.step < config.steps or self._unmeasured()):
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

    def _unmeasured(self) -> bool:
        """Whether a signal has kept the run from an evaluation."""
        return self._evaluation_due() and not self.counters.measured

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
        unit = loss_unit(self.config, validation=True)
        progress.note(f"step {counters.step}  validation loss {loss:.4f} {unit} (best {best:.4f})")

    def valid_loss(self, stop: Callable[[], bool] = lambda: False) -> float:
        """Nats per validation token."""
        return self.engine.valid_loss(stop)

    def _exhausted(self) -> bool:
        patience = self.config.evaluation.patience
        return patience is not None and self.counters.since_best >= patience

    def _catch_up(self, log: MetricsLog | NoLog, progress: Progress, stop: StopRequest) -> None:
        """Do the evaluation that a signal kept a resumed run from doing."""
        if self._unmeasured() and self.counters.last_row:
            row = {key: value for key, value in self.counters.last_row.items() if key != "attempt"}
            self._evaluate_if_due(row, progress, stop)
            if not self.counters.measured:
                return
            self.counters.last_row = row
            log.write(row)
            self.saves.save(self.counters, log, progress, last=self._ended())

    # ------------------------------------------------------------------ checkpoints

    def _due_to_save(self) -> bool:
        counters = self.counters
        best = counters.valid_loss is not None and counters.since_best == 0
        return best or self._ended() or counters.step % self.config.checkpoint.every == 0

    def _ended(self) -> bool:
        return self.counters.step == self.config.steps or self._exhausted()

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
        self.saves.step = checkpoint.step
        if self.engine.leads:
            self._set_aside(checkpoint.step)
        self.say(f"continuing after step {self.counters.step}{self._layouts(checkpoint.manifest)}")

    def _set_aside(self, step: int) -> None:
        """Rename what was passed over, so that whole checkpoints are not pruned in its favour."""
        for folder in list_checkpoints(self.run.checkpoints):
            if step_of(folder) > step and (aside := set_aside(folder)) is not None:
                self.say(f"WARNING: {folder.name} is called {aside.name} from now on, and is neither read nor removed")

    def _start(self) -> None:
        """The weights that the config names, if it does."""
        if self.config.word_vectors == "counted":
            self.engine.start_from(self._source(kept_vectors(self.run, self.config)))
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
