"""What carries out a step of training, behind one interface, and the engine of a single process.

The loop decides what happens when (rates, evaluations, checkpoints, stopping); an engine holds the weights and moves
them. There are two: this file's, one process that needs no torch.distributed, and ``parallel/engine.py``'s, one rank of
a layout. Both compute the same training, so the loop is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError
from gradatim.evaluate.likelihood import Stopped, log_probs
from gradatim.models import build_model
from gradatim.models.translator import Translator
from gradatim.objectives.next_token import next_token, target_count
from gradatim.objectives.translation import translation
from gradatim.text.batches import Batch, Streams, Windows
from gradatim.text.order import derive
from gradatim.text.pair_batches import PairBatches, held_out_batches
from gradatim.text.prepare import Prepared
from gradatim.train.checkpoint import Checkpoint, newest_valid, save_checkpoint
from gradatim.train.manifest import Manifest
from gradatim.train.optimizer import build_optimizer, clip_gradients, gradient_norm, set_learning_rate
from gradatim.train.precision import arithmetic, device, weight_dtype
from gradatim.train.state import Counters, restore, state_tensors

VALID_ROWS = 16
"""Rows that a recurrent model reads side by side in evaluations during training."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to; the same on every rank, to the bit."""

    loss: float
    """Mean over the step's targets, in nats."""
    norm: float
    """Euclidean norm of the whole gradient, before clipping."""
    count: int
    """Targets learned from."""
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
    """What is to be said of the text before training."""

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
        """Whether to stop: what the leading process says."""
        ...

    def save(self, checkpoints: Path, manifest: Manifest) -> None:
        """Publish a checkpoint, or raise OSError on every rank."""
        ...

    def load(self, checkpoint: Checkpoint) -> Counters:
        """Take everything from a checkpoint. Raises CheckpointError where it is of another model."""
        ...

    def newest(self, checkpoints: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
        """The newest checkpoint that verifies, and why newer ones did not."""
        ...

    def remarks(self) -> list[str]:
        """Lines for people about the steps made here, once they are over."""
        ...


class SerialEngine:
    """One process, any neural model."""

    leads, world = True, 1

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self.config, self.prepared = config, prepared
        self.where = device()
        self.model = build_model(
            config.model, prepared.tokenizer.vocab_size, config.context, config.seed, source_vocabulary(prepared)
        )
        self.model.to(self.where, weight_dtype(config.precision)).train()
        if config.layout.recompute != "none":
            self.model.set_recompute(config.layout.recompute)
        self.weights = list(self.model.parameters())
        self.parameters = self.model.parameter_count()
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.batches: Windows | Streams | PairBatches
        self.notes: tuple[str, ...] = ()
        if isinstance(self.model, Translator):
            self.batches = pair_batches(config, prepared)
            self.notes = left_out(self.batches, config)
        elif self.model.carries_state:
            self.batches = Streams(prepared.train, config.context, config.global_batch)
        else:
            packing = config.data.packing
            self.batches = Windows(prepared.train, config.context, config.global_batch, config.seed, packing)
        self.carry: Any = None
        if config.compile:
            for block in self.model.blocks:
                block.compile()

    def step(self, step: int) -> Outcome:
        """See ``Engine``. Microbatches are accumulated; a carried state is handed on from step to step."""
        config = self.config
        batch = self.batches.batch(step)
        if batch.fresh:
            self.carry = None
        rate = set_learning_rate(self.optimizer, config.optimizer, config.steps, step)
        count = self._count(batch)
        size = config.layout.microbatch or len(batch.ids)
        total = torch.zeros((), dtype=torch.float64, device=self.where)
        carried: list[Any] = []
        for number, first in enumerate(range(0, len(batch.ids), size)):
            rows = slice(first, first + size)
            part = batch.part(rows, self.where)
            torch.manual_seed(derive(config.seed, step, number))  # dropout
            with arithmetic(config.precision, self.where):
                if isinstance(self.model, Translator):
                    terms, state = translation(self.model, part), None
                else:
                    terms, state = next_token(self.model, part, self._carry_of(rows))
            loss, _ = terms["nll"]
            (loss / count).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            carried.append(state)
        if self.model.carries_state:
            self.carry = type(carried[0]).join([state.detach() for state in carried])
        outcome = Outcome(float(total / count), float(gradient_norm(self.weights)), count, rate)
        if outcome.finite:
            clip_gradients(self.weights, outcome.norm, config.optimizer.clip)
            self.optimizer.step()
        else:
            self.carry = None  # it may be poisoned
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _count(self, batch: Batch) -> int:
        if isinstance(self.model, Translator):
            assert batch.source is not None
            return self.model.counted(batch.source, batch.targets)
        return target_count(batch)

    def _carry_of(self, rows: slice) -> Any:
        if self.carry is None:
            return None
        return self.carry.select(torch.arange(self.config.global_batch, device=self.where)[rows])

    def samples(self, step: int) -> list[int]:
        """See ``Engine``."""
        return list(self.batches.draw(step)[0].tolist())

    def steps_per_epoch(self) -> float:
        """See ``Engine``."""
        if isinstance(self.batches, Streams):
            return float(self.batches.steps)
        if isinstance(self.batches, PairBatches):
            return self.batches.steps_per_epoch
        return self.batches.samples / self.config.global_batch

    def valid_loss(self, stop: Callable[[], bool]) -> float:
        """See ``Engine``. Windows are read side by side."""
        assert self.prepared.valid is not None
        if isinstance(self.model, Translator):
            return self._valid_loss_of_pairs(self.model, stop)
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

    def _valid_loss_of_pairs(self, model: Translator, stop: Callable[[], bool]) -> float:
        total, count = 0.0, 0
        model.eval()
        try:
            for batch in valid_pairs(self.config, self.prepared):
                if stop():
                    raise Stopped
                part = batch.part(slice(None), self.where)
                assert part.source is not None
                with arithmetic(self.config.precision, self.where), torch.no_grad():
                    total += float(model.nll(model.read(part.source, part.ids), part.targets))
                count += target_count(part)
        finally:
            model.train()
        return total / count

    def agreed(self, stop: bool) -> bool:
        """There is nobody to agree with."""
        return stop

    def save(self, checkpoints: Path, manifest: Manifest) -> None:
        """See ``Engine``."""
        save_checkpoint(checkpoints, manifest, state_tensors(self.model, self.optimizer, self.carry))

    def load(self, checkpoint: Checkpoint) -> Counters:
        """See ``Engine``."""
        counters, self.carry = restore(checkpoint, self.model, self.optimizer, self.config.global_batch)
        return counters

    def newest(self, checkpoints: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
        """See ``Engine``."""
        return newest_valid(checkpoints)

    def remarks(self) -> list[str]:
        """See ``Engine``; nothing here that the metrics do not tell."""
        return []


VALID_TOKENS = 4096
"""Tokens a side of the pairs that are judged at once, padding included."""


def source_vocabulary(prepared: Prepared) -> int | None:
    """The size of a translator's source vocabulary; None where there are no pairs."""
    return None if prepared.source_tokenizer is None else prepared.source_tokenizer.vocab_size


def pair_batches(config: RunConfig, prepared: Prepared) -> PairBatches:
    """The batches of a run on pairs."""
    return PairBatches(
        prepared.sources["train"], prepared.train, prepared.tokenizer.boundary, config.context,
        config.global_batch, config.batch_tokens, config.seed,
    )  # fmt: skip


def left_out(batches: PairBatches, config: RunConfig) -> tuple[str, ...]:
    """What is to be said of pairs that do not fit."""
    many = batches.left_out
    return (f"{many:,} pairs are longer than the context ({config.context}) and left out",) if many else ()


def valid_pairs(config: RunConfig, prepared: Prepared) -> Iterator[Batch]:
    """The validation pairs that fit the context."""
    assert prepared.valid is not None
    return held_out_batches(
        prepared.sources["valid"], prepared.valid, prepared.tokenizer.boundary, config.context, VALID_TOKENS,
        config.evaluation.tokens,
    )  # fmt: skip
