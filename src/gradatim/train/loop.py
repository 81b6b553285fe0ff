"""The training loop: batch, loss, gradient, update; now and then an evaluation and a checkpoint.

Everything a step does follows from (config, seed, step): which samples, which rate, which units dropout drops. What is
carried from step to step is in ``Trainer`` and goes into checkpoints: parameters, moments, counters and, for recurrent
models, the hidden state. So a run that was stopped continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gradatim.config import config_to_yaml
from gradatim.config.settings import NgramConfig, RunConfig
from gradatim.errors import CheckpointError, DataError, Interrupted, LaunchError, NonFiniteError, Problem
from gradatim.evaluate.likelihood import Stopped, log_probs
from gradatim.models import build_model
from gradatim.objectives.next_token import next_token, target_count
from gradatim.shapes import flops_per_token
from gradatim.text.batches import Batch, Streams, Windows
from gradatim.text.order import derive
from gradatim.text.prepare import Prepared, prepare
from gradatim.train.checkpoint import Checkpoint, cannot_resume, newest_valid, prune, remove_leftovers, save_checkpoint
from gradatim.train.manifest import Manifest
from gradatim.train.metrics import MetricsLog, Progress
from gradatim.train.optimizer import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    set_learning_rate,
)
from gradatim.train.precision import arithmetic, device, peak_flops, weight_dtype
from gradatim.train.run_directory import (
    Run,
    config_error_existing,
    config_error_foreign,
    data_changed,
    refuse_changes,
    training_hash,
)
from gradatim.train.signals import StopRequest
from gradatim.train.state import Counters, finite_json, restore, state_tensors

FAILED_SAVES = 3
"""Checkpoints that may fail in a row (a full disk) before the run gives up."""
VALID_ROWS = 16
"""Rows that a recurrent model reads side by side in evaluations during training."""


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
    config: RunConfig, directory: Path, resume: bool = False, say: Callable[[str], None] = lambda _: None
) -> TrainResult:
    """Train a model as the config says, in a run directory.

    Raises:
        ConfigError: there is a run already and ``resume`` is false.
        DataError, CheckpointError, LaunchError: text, checkpoint or machine cannot be used.
        Interrupted: a signal came; everything up to the step it came in is saved.
        NonFiniteError: loss or gradient were not finite more than ``max_skipped_steps`` times.
    """
    run = Run(directory)
    if run.exists and not resume:
        raise config_error_existing(directory)
    if run.foreign:
        raise config_error_foreign(directory)
    # Dropout seeds torch's generators in every step; a caller's own draws go on as if nothing had happened.
    with run.locked(), torch.random.fork_rng():
        if run.exists and not resume:  # another process made it a moment ago
            raise config_error_existing(directory)
        if run.exists:
            refuse_changes(run.config, config, directory / "config.yaml")
        prepared = prepare(config.data, say=say)
        fresh = not run.exists
        if fresh:
            Run.create(directory, config, prepared.tokenizer)
        elif run.tokenizer.fingerprint != prepared.tokenizer.fingerprint:
            raise data_changed(directory / "tokenizer.json")
        else:
            (directory / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        try:
            if isinstance(config.model, NgramConfig):
                from gradatim.train.counting import count

                return count(config, run, prepared, say)
            trainer = Trainer(config, run, prepared, say)
        except DataError:
            if fresh:  # refused before the first step: no run may stand in the way of the mended command
                (directory / "config.yaml").unlink()
            raise
        return trainer.train()


class Trainer:
    """A neural run in progress."""

    def __init__(self, config: RunConfig, run: Run, prepared: Prepared, say: Callable[[str], None]) -> None:
        self.config, self.run, self.prepared, self.say = config, run, prepared, say
        self.where = device()
        vocab_size = prepared.tokenizer.vocab_size
        self.model = build_model(config.model, vocab_size, config.context, config.seed)
        self.model.to(self.where, weight_dtype(config.precision)).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.batches: Windows | Streams
        if self.model.carries_state:
            self.batches = Streams(prepared.train, config.context, config.global_batch)
        else:
            packing = config.data.packing
            self.batches = Windows(prepared.train, config.context, config.global_batch, config.seed, packing)
        self.counters = Counters()
        self.carry: Any = None
        self.failed_saves = 0
        self.flops = flops_per_token(config.model, vocab_size, config.context)
        if config.compile:
            for block in self.model.blocks:
                block.compile()

    # ------------------------------------------------------------------ the loop

    def train(self) -> TrainResult:
        """All steps from where the run stands."""
        self._resume()
        config, counters = self.config, self.counters
        self.say(f"{self.model.parameter_count():,} parameters, {self.batches_per_epoch():.1f} steps see the text once")
        log = MetricsLog(self.run.metrics, config.track)
        progress = Progress(config.steps, counters.step)
        with StopRequest() as stop:
            try:
                self._catch_up(log, progress, stop)
                while counters.step < config.steps and not self._exhausted() and not stop:
                    row = self._step()
                    self._evaluate_if_due(row, progress, stop)
                    counters.last_row = row
                    log.write(row)
                    progress.step(row)
                    self._refuse_more_skips(row, progress)
                    if self._due_to_save() or stop:
                        self._save(log, progress)
            finally:
                log.close()
            if stop and counters.step < config.steps:
                raise Interrupted(
                    Problem(
                        where=str(self.run.directory),
                        what=f"stopped by {stop} after step {counters.step}; everything is saved",
                        attempt="the same command with --resume",
                    )
                )
        return self._result()

    def _step(self) -> dict[str, Any]:
        """One update; its metrics row."""
        config, counters = self.config, self.counters
        started = time.perf_counter()
        step = counters.step
        batch = self.batches.batch(step)
        if batch.fresh:
            self.carry = None
        rate = set_learning_rate(self.optimizer, config.optimizer, config.steps, step)
        count = target_count(batch)
        size = config.layout.microbatch or len(batch.ids)
        total = torch.zeros((), dtype=torch.float64, device=self.where)
        carried = []
        for number, first in enumerate(range(0, len(batch.ids), size)):
            rows = slice(first, first + size)
            part = Batch(batch.ids[rows].to(self.where), batch.targets[rows].to(self.where), batch.fresh)
            torch.manual_seed(derive(config.seed, step, number))  # dropout
            with arithmetic(config.precision, self.where):
                terms, state = next_token(self.model, part, self._carry_of(rows))
            loss, _ = terms["nll"]
            (loss / count).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            carried.append(state)
        if self.model.carries_state:
            self.carry = type(carried[0]).join([state.detach() for state in carried])
        mean = float(total / count)
        norm = float(gradient_norm(self.parameters))
        finite = math.isfinite(mean) and math.isfinite(norm)
        if finite:
            clip_gradients(self.parameters, norm, config.optimizer.clip)
            self.optimizer.step()
            counters.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        counters.tokens += count
        counters.valid_loss = None
        seconds = time.perf_counter() - started
        counters.seconds += seconds
        row = {
            "step": counters.step,
            "loss": mean,
            "lr": rate,
            "grad_norm": norm,
            "tokens": counters.tokens,
            "tokens_per_second": count / seconds,
            "seconds": counters.seconds,
        }
        if not finite:
            self.carry = None  # it may be poisoned
            row["skipped"] = counters.step - counters.updates
            row["samples"] = self.batches.draw(step)[0].tolist()
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

    def _carry_of(self, rows: slice) -> Any:
        if self.carry is None:
            return None
        return self.carry.select(torch.arange(self.config.global_batch, device=self.where)[rows])

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
        progress.note(f"step {counters.step}  validation loss {loss:.4f} nats per token (best {best:.4f})")

    def valid_loss(self, stop: Callable[[], bool] = lambda: False) -> float:
        """Nats per validation token, windows side by side."""
        assert self.prepared.valid is not None
        tokens = self.prepared.valid.tokens[: self.config.evaluation.tokens]
        self.model.eval()
        try:
            with arithmetic(self.config.precision, self.where):
                found = log_probs(
                    self.model, tokens, self.prepared.tokenizer.boundary, self.config.context, VALID_ROWS, stop
                )
        finally:
            self.model.train()
        return float(-found.mean())

    def _exhausted(self) -> bool:
        patience = self.config.evaluation.patience
        return patience is not None and self.counters.since_best >= patience

    def _catch_up(self, log: MetricsLog, progress: Progress, stop: StopRequest) -> None:
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

    def _save(self, log: MetricsLog, progress: Progress) -> None:
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
            counters=finite_json(asdict(counters)),
        )
        try:
            log.sync()
            tensors = state_tensors(self.model, self.optimizer, self.carry)
            save_checkpoint(self.run.checkpoints, manifest, tensors)
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
        prune(self.run.checkpoints, self.config.checkpoint.keep)

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one."""
        remove_leftovers(self.run.checkpoints)
        checkpoint, rejected = newest_valid(self.run.checkpoints)
        for error in rejected:
            self.say(f"WARNING: passed over a checkpoint: {error}")
        if checkpoint is None:
            if rejected:
                raise cannot_resume(self.run.checkpoints, rejected)
            return
        self._load(checkpoint)
        self.say(f"continuing after step {self.counters.step}")

    def _load(self, checkpoint: Checkpoint) -> None:
        manifest = checkpoint.manifest
        if manifest.config_hash != training_hash(self.config):
            raise CheckpointError(
                Problem(
                    where=str(checkpoint.folder),
                    what="the checkpoint was made with other settings",
                    attempt="start another run",
                )
            )
        if manifest.data_fingerprint != self.prepared.fingerprint:
            raise data_changed(checkpoint.folder)
        self.counters, self.carry = restore(checkpoint, self.model, self.optimizer, self.config.global_batch)

    # ------------------------------------------------------------------ the end

    def batches_per_epoch(self) -> float:
        """Steps that see the training text once."""
        if isinstance(self.batches, Streams):
            return float(self.batches.steps)
        return self.batches.samples / self.config.global_batch

    def _result(self) -> TrainResult:
        counters = self.counters
        rate = counters.tokens / counters.seconds if counters.seconds else None
        peak = peak_flops(self.config.precision, self.where)
        return TrainResult(
            run=str(self.run.directory),
            step=counters.step,
            loss=counters.last_row.get("loss"),
            valid_loss=counters.valid_loss,
            best_valid_loss=counters.best,
            tokens=counters.tokens,
            tokens_per_second=rate,
            mfu=rate * self.flops / peak if rate and peak else None,
            layout=asdict(self.config.layout),
            parameters=self.model.parameter_count(),
            seconds=counters.seconds,
        )
