"""What carries out a step of training, behind one interface, and the engine of a single process.

The loop decides what happens when (rates, evaluations, checkpoints, stopping); an engine holds the weights and moves
them. There are two: this file's, one process that needs no torch.distributed, and ``parallel/engine.py``'s, one rank of
a layout. Both compute the same training, so the loop is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gradatim.config.settings import RunConfig
from gradatim.config.tuned import is_frozen, model_of
from gradatim.errors import CheckpointError
from gradatim.evaluate.likelihood import Stopped, log_probs
from gradatim.models import build_adapted, build_model
from gradatim.models.layers.init import draw, init_of
from gradatim.models.neural import NeuralLanguageModel, NeuralModel
from gradatim.objectives import objective_of
from gradatim.objectives.next_token import NextToken
from gradatim.shapes.lora import is_adapter, trained_parameters
from gradatim.text.feed import Feed, feed_of, notes_of, source_vocabulary, steps_per_epoch, validation_rows
from gradatim.text.order import derive
from gradatim.text.prepare_task import AnyPrepared, PreparedTask
from gradatim.train.allocator import keep_freed_memory
from gradatim.train.checkpoint import Checkpoint, newest_valid, save_checkpoint
from gradatim.train.manifest import Manifest
from gradatim.train.optimizer import build_optimizer, clip_gradients, gradient_norm, set_learning_rate
from gradatim.train.precision import arithmetic, device, fixed_dtype, step_arithmetic, weight_dtype
from gradatim.train.start import Start
from gradatim.train.state import Counters, restore, state_tensors

VALID_ROWS = 16
"""Rows that a recurrent model reads side by side in evaluations during training."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to; the same on every rank, to the bit."""

    loss: float
    """Mean over the step's targets, in nats; of several terms, the sum of their means."""
    norm: float
    """Euclidean norm of the whole gradient, before clipping."""
    count: int
    """Tokens learned from."""
    rate: float
    """Learning rate."""
    measured: dict[str, float] = field(default_factory=dict)
    """Further columns of the metrics row."""

    @property
    def finite(self) -> bool:
        """Whether the weights were updated; else the step was skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Engine(Protocol):
    """Holds weights and moments, and makes steps."""

    leads: bool
    """Whether this process speaks and writes what there is once: metrics, manifest, progress."""
    world: int
    """Processes in all."""
    parameters: int
    """Trainable numbers of the whole model, a tied matrix once."""
    notes: tuple[str, ...]
    """What is to be said before the first step."""

    def step(self, step: int) -> Outcome:
        """Forward, backward and, where loss and norm are finite, the update; 0 is the first step."""
        ...

    def samples(self, step: int) -> list[int]:
        """The numbers of the samples that a step draws."""
        ...

    def steps_per_epoch(self) -> float:
        """Steps that see the training text once."""
        ...

    def valid_loss(self, stop: Callable[[], bool]) -> float:
        """Nats per validation token; raises ``Stopped`` where ``stop`` says so."""
        ...

    def agreed(self, stop: bool) -> bool:
        """Whether to stop: whether any process says so."""
        ...

    def save(self, checkpoints: Path, manifest: Manifest, before: Callable[[], None] = lambda: None) -> None:
        """Publish a checkpoint, or raise OSError on every rank.

        ``before`` is done first, where this process leads; its OSError is every rank's.
        """
        ...

    def load(self, checkpoint: Checkpoint) -> Counters:
        """Take everything from a checkpoint. Raises CheckpointError where it is of another model."""
        ...

    def start_from(self, start: Start) -> None:
        """Take the weights of another model before the first step."""
        ...

    def newest(self, checkpoints: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
        """The newest checkpoint that verifies, and why newer ones did not."""
        ...

    def remarks(self) -> list[str]:
        """Lines for people about the steps made here, once they are over."""
        ...


def label_count(prepared: AnyPrepared) -> int:
    """How many labels a task's head tells apart."""
    return len(prepared.labels) if isinstance(prepared, PreparedTask) else 0


def mean_of_terms(sums: dict[str, float], counts: dict[str, int]) -> tuple[float, dict[str, float]]:
    """The loss, each term divided by its count; and, where there are several, the mean of each by name."""
    means = {name: sums[name] / count for name, count in counts.items() if count}
    return sum(means.values()), {f"loss_{name}": mean for name, mean in means.items()} if len(sums) > 1 else {}


class SerialEngine:
    """One process, any neural model."""

    leads, world = True, 1

    def __init__(self, config: RunConfig, prepared: AnyPrepared) -> None:
        keep_freed_memory()
        self.config, self.prepared = config, prepared
        self.where = device()
        self.model = self._model(prepared).train()
        if config.layout.recompute != "none":
            self.model.set_recompute(config.layout.recompute)
        for name, parameter in self.model.named_parameters():
            if is_frozen(name, config.task):
                parameter.requires_grad_(False)
        self.weights = list(self.model.parameters())
        words, labels = prepared.tokenizer.vocab_size, label_count(prepared)
        trained = trained_parameters(
            model_of(config, labels), config.lora, words, config.context, source_vocabulary(prepared)
        )
        self.parameters = sum(shape.size for shape in trained)
        self.optimizer = build_optimizer(self.model, config.optimizer, config.task)
        self.objective = objective_of(config)
        self.batches: Feed = feed_of(config, prepared)
        self.notes = notes_of(self.batches, config)
        self.carry: Any = None
        if config.compile:
            for block in self.model.blocks:
                block.compile()

    def _model(self, prepared: AnyPrepared) -> NeuralModel:
        config, words = self.config, prepared.tokenizer.vocab_size
        kind, dtype = model_of(config, label_count(prepared)), weight_dtype(config.precision)
        if config.lora.rank is None:
            model = build_model(kind, words, config.context, config.seed, source_vocabulary(prepared))
            return model.to(self.where, dtype)
        return build_adapted(
            kind, config.lora, words, config.context, seed=config.seed, dtype=dtype,
            fixed_dtype=fixed_dtype(config.precision), device=self.where,
        )  # fmt: skip

    def step(self, step: int) -> Outcome:
        """See ``Engine``. Microbatches are accumulated; a carried state is handed on from step to step."""
        config = self.config
        batch = self.batches.batch(step)
        if batch.fresh:
            self.carry = None
        rate = set_learning_rate(self.optimizer, config.optimizer, config.steps, step)
        counts = self.objective.counts(batch)
        size = config.layout.microbatch or len(batch.ids)
        totals = {name: torch.zeros((), dtype=torch.float64, device=self.where) for name in counts}
        carried: list[Any] = []
        with step_arithmetic(config.precision):
            for number, first in enumerate(range(0, len(batch.ids), size)):
                rows = slice(first, first + size)
                part = batch.rows(rows).to(self.where)
                torch.manual_seed(derive(config.seed, step, number))  # dropout
                with arithmetic(config.precision, self.where):
                    terms, state = self.objective(self.model, part, self._carry_of(rows))
                torch.autograd.backward([terms[name][0] / count for name, count in counts.items()])
                for name, total in totals.items():
                    total += terms[name][0].detach()
                carried.append(state)
        if self.model.carries_state:
            self.carry = type(carried[0]).join([state.detach() for state in carried])
        loss, parts = mean_of_terms({name: float(total) for name, total in totals.items()}, counts)
        outcome = Outcome(loss, float(gradient_norm(self.weights)), self.objective.tokens(batch), rate, parts)
        if outcome.finite:
            clip_gradients(self.weights, outcome.norm, config.optimizer.clip)
            self.optimizer.step()
        else:
            self.carry = None  # it may be poisoned
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _carry_of(self, rows: slice) -> Any:
        if self.carry is None:
            return None
        return self.carry.select(torch.arange(self.config.global_batch, device=self.where)[rows])

    def samples(self, step: int) -> list[int]:
        """See ``Engine``."""
        return list(self.batches.draw(step)[0].tolist())

    def steps_per_epoch(self) -> float:
        """See ``Engine``."""
        return steps_per_epoch(self.batches)

    def valid_loss(self, stop: Callable[[], bool]) -> float:
        """See ``Engine``. Windows are read side by side."""
        assert self.prepared.valid is not None
        self.model.eval()
        try:
            with arithmetic(self.config.precision, self.where):
                if not isinstance(self.objective, NextToken):
                    return self._valid_rows(stop)
                assert isinstance(self.model, NeuralLanguageModel) and not isinstance(self.prepared, PreparedTask)
                tokens = self.prepared.valid.tokens[: self.config.evaluation.tokens]
                tokenizer, context = self.prepared.tokenizer, self.config.context
                found = log_probs(self.model, tokens, tokenizer.boundary, context, VALID_ROWS, stop, tokenizer.opening)
        finally:
            self.model.train()
        return float(-found.mean())

    @torch.no_grad()
    def _valid_rows(self, stop: Callable[[], bool]) -> float:
        """The objective's own loss, of models that fill in blanks, translate or answer."""
        sums, counts = dict.fromkeys(self.objective.names, 0.0), dict.fromkeys(self.objective.names, 0)
        for batch in validation_rows(self.config, self.prepared):
            if stop():
                raise Stopped
            terms, _ = self.objective(self.model, batch.to(self.where))
            for name, (value, count) in terms.items():
                sums[name] += float(value)
                counts[name] += count
        return mean_of_terms(sums, counts)[0]

    def agreed(self, stop: bool) -> bool:
        """There is nobody to agree with."""
        return stop

    def save(self, checkpoints: Path, manifest: Manifest, before: Callable[[], None] = lambda: None) -> None:
        """See ``Engine``."""
        before()
        save_checkpoint(checkpoints, manifest, state_tensors(self.model, self.optimizer, self.carry))

    def load(self, checkpoint: Checkpoint) -> Counters:
        """See ``Engine``."""
        counters, self.carry = restore(checkpoint, self.model, self.optimizer, self.config.global_batch)
        return counters

    @torch.no_grad()
    def start_from(self, start: Start) -> None:
        """See ``Engine``."""
        for name, parameter in self.model.named_parameters():
            shape = tuple(parameter.shape)
            if is_adapter(name):
                continue
            if (read := start.read(name, (0,) * len(shape), shape)) is not None:
                parameter.copy_(read)
            elif not parameter.requires_grad:  # and so not drawn yet
                parameter.copy_(draw(init_of(self.model, name, shape), name, shape, self.config.seed))

    def newest(self, checkpoints: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
        """See ``Engine``."""
        return newest_valid(checkpoints)

    def remarks(self) -> list[str]:
        """See ``Engine``; nothing here that the metrics do not tell."""
        return []
