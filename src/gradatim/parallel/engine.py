"""One rank's steps of training under a layout: pipeline, sums of gradients, update; the parallel ``train.Engine``.

A step: this replica's rows of the global batch → microbatches through the pipeline → gradients summed over replicas
(begun during the last backward passes) → one norm of the whole gradient → the update. Losses are divided by the count
of targets of the whole step before anything is differentiated, so neither microbatches of unequal size nor padding nor
the number of replicas shift the weights of tokens.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gradatim.config.derived import microbatch_count
from gradatim.config.settings import RunConfig
from gradatim.config.tuned import is_frozen, model_of, share_of_rate
from gradatim.errors import CheckpointError
from gradatim.evaluate.likelihood import windows
from gradatim.objectives import objective_of
from gradatim.objectives.next_token import NextToken
from gradatim.parallel import state
from gradatim.parallel.build import build_chunk, initial
from gradatim.parallel.check import Replicas
from gradatim.parallel.gradients import Gradients
from gradatim.parallel.mesh import Mesh
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.parallel.pipeline import Microbatch, Pipeline, Ran
from gradatim.parallel.timeline import Timeline, timeline
from gradatim.parallel.watch import report_action, report_step
from gradatim.schedules import Action, Schedule, build_schedule, lower
from gradatim.shapes.lora import is_adapter, trained_parameters
from gradatim.shapes.split import layers_of_chunks
from gradatim.text.batches import IGNORE, Batch
from gradatim.text.feed import notes_of, rows_of, share_of, source_vocabulary, steps_per_epoch, validation_rows
from gradatim.text.order import derive
from gradatim.text.prepare_task import AnyPrepared, PreparedTask
from gradatim.train.allocator import keep_freed_memory
from gradatim.train.checkpoint import Checkpoint
from gradatim.train.engine import Outcome, label_count, mean_of_terms
from gradatim.train.learning_rate import learning_rate
from gradatim.train.manifest import Manifest
from gradatim.train.precision import arithmetic, device, fixed_dtype, step_arithmetic, weight_dtype
from gradatim.train.start import Start
from gradatim.train.state import Counters

RECENT = 1000
"""Steps whose bubbles are remembered."""
SAVED_TIMELINE = "timeline.json"
"""In a run's ``logs/``: the last step's measured spans, for ``gradatim report``."""


class LayoutEngine:
    """A rank of a layout; see ``train.engine.Engine`` for what each method promises.

    Args:
        config: of the run, the same on all ranks.
        prepared: its text.
        mesh: this rank's place.
        logs: where the first rank leaves the timeline; None for nowhere.
    """

    def __init__(self, config: RunConfig, prepared: AnyPrepared, mesh: Mesh, logs: Path | None = None) -> None:
        keep_freed_memory()
        self.config, self.prepared, self.mesh, self.logs = config, prepared, mesh, logs
        self.leads, self.world, self.where = mesh.rank == 0, mesh.world, device()
        layout, vocabulary = config.layout, prepared.tokenizer.vocab_size
        source_words = source_vocabulary(prepared)
        model = model_of(config, label_count(prepared))
        trained = trained_parameters(model, config.lora, vocabulary, config.context, source_words)
        self.parameters = sum(shape.size for shape in trained)
        self.schedule = lower(
            build_schedule(
                layout.schedule if layout.pp > 1 else "1f1b", layout.pp, microbatch_count(config), layout.chunks
            )
        )
        splits, last = layers_of_chunks(config, vocabulary), self.schedule.last_chunk
        self.chunks = {
            number: build_chunk(
                model, vocabulary, config.context, layers=layers, embed=number == 0, head=number == last,
                mesh=mesh, sequence_parallel=layout.sequence_parallel, recompute=layout.recompute,
                deferred=layout.schedule == "zero-bubble" and layout.pp > 1, seed=config.seed,
                dtype=weight_dtype(config.precision), device=self.where, source_vocab_size=source_words,
                lora=config.lora, fixed_dtype=fixed_dtype(config.precision),
            )
            for number, layers in enumerate(splits)
            if self.schedule.placement[number] == mesh.pp.index
        }  # fmt: skip
        held = list(self.chunks.values())
        for chunk in held:
            for name, parameter in chunk.model.named_parameters():
                if is_frozen(chunk.specs[name].global_name, config.task):
                    parameter.requires_grad_(False)
        share = partial(share_of_rate, task=config.task, layers=getattr(config.model, "n_layers", 0))
        self.gradients = Gradients(held, mesh, zero=layout.zero, share=share)
        self.optimizer = ShardedAdamW(self.gradients, config.optimizer)
        self.objective = objective_of(config)
        self.pipeline = self._pipeline(self.schedule)
        self.batches = rows_of(config, prepared)
        self.notes = notes_of(self.batches, config)
        self.last: Timeline | None = None
        self.bubbles: deque[tuple[float, float]] = deque(maxlen=RECENT)
        """Of the latest steps, measured and simulated."""
        self.replicas = Replicas(self.chunks, self.optimizer, mesh) if layout.check else None
        if config.compile:
            for chunk in held:
                for block in chunk.model.blocks:
                    block.compile()

    def _pipeline(self, schedule: Schedule) -> Pipeline:
        layout = self.config.layout
        width = getattr(self.config.model, "d_model", 0)
        return Pipeline(
            schedule, self.chunks, self.mesh.pp, self.objective, width=width,
            shards=layout.tp if layout.sequence_parallel else 1, dtype=weight_dtype(self.config.precision),
            arithmetic=partial(arithmetic, self.config.precision, self.where),
            last_backward=self.gradients.last_backward, report=report_action,
        )  # fmt: skip

    # ------------------------------------------------------------------ a step

    def step(self, step: int) -> Outcome:
        """See ``Engine``."""
        report_step(step + 1)
        config, mesh = self.config, self.mesh
        batch = share_of(self.batches, step, mesh.dp.index, mesh.dp.size)
        once = mesh.tp.index == 0  # of ranks that hold the same numbers, one speaks
        mine = {**self.objective.counts(batch), "tokens": self.objective.tokens(batch)}
        *counted, tokens = map(int, self._sums(mine, once and mesh.pp.index == 0).values())  # also a common start
        counts = dict(zip(self.objective.names, counted))
        rate = learning_rate(config.optimizer, config.steps, step)
        if self.replicas is not None:
            report_action("check")
            self.replicas.parameters()
            self.replicas.tokens(self._here(batch).tensors())
        self.gradients.begin()
        with step_arithmetic(config.precision):
            ran = self.pipeline.run(self._microbatches(batch, step), counts)
        report_action("reduce")
        self.gradients.finish()
        if self.replicas is not None:
            report_action("check")
            self.replicas.loss(torch.stack(list(ran.sums.values())))
            self.replicas.gradients()
        sums = self._sums({name: float(total) for name, total in ran.sums.items()}, once)
        loss, parts = mean_of_terms(sums, counts)
        outcome = Outcome(loss, self.optimizer.norm(), tokens, rate, parts | self._measure(ran))
        report_action("update")
        if outcome.finite:
            self.optimizer.step(rate, outcome.norm, config.optimizer.clip)
        return outcome

    def _microbatches(self, batch: Batch, step: int) -> list[Microbatch]:
        """Cut a replica's rows into equal parts. Seeds are those that one process gives its microbatches."""
        number, mesh = self.schedule.microbatches, self.mesh
        found = []
        for i, part in enumerate(self._here(batch).split(number)):
            seed = partial(derive, self.config.seed, step, mesh.dp.index * number + i)
            # Shards of the sequence drop units of their own; what is replicated over tp drops the same.
            sharded = self.config.layout.sequence_parallel and mesh.tp.size > 1
            shard = (mesh.tp.index,) if sharded and mesh.tp.index else ()
            seeds = {c: seed(*((c,) if c or shard else ()), *shard) for c in self.chunks}
            head_seed = seed(self.schedule.last_chunk, mesh.tp.size) if sharded else None  # no shard has that number
            found.append(Microbatch(part, seeds, head_seed))
        return found

    def _here(self, batch: Batch) -> Batch:
        return batch.to(self.where)

    def _sums(self, values: Mapping[str, float], speaks: bool) -> dict[str, float]:
        """Sums over the ranks that speak; every rank adds the same numbers in the same order."""
        own = [float(value) if speaks else 0.0 for value in values.values()]
        if self.world == 1:
            return dict(zip(values, own))
        mine = torch.tensor(own, dtype=torch.float64, device=self.where)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(found, mine, group=self.mesh.everyone)
        return {name: float(column.contiguous().sum()) for name, column in zip(values, torch.stack(found, 1))}

    def _measure(self, ran: Ran) -> dict[str, float]:
        """The bubble as it was beside the one simulated from the same durations; for the pipeline of the first rank."""
        if self.mesh.pp.size == 1:
            return {}
        self.last = timeline(self.schedule, ran, self.mesh, self.where)
        self.bubbles.append((self.last.measured, self.last.simulated))
        return {"bubble_measured": self.last.measured, "bubble_simulated": self.last.simulated}

    def samples(self, step: int) -> list[int]:
        """See ``Engine``."""
        return list(self.batches.draw(step)[0].tolist())

    def steps_per_epoch(self) -> float:
        """See ``Engine``."""
        return steps_per_epoch(self.batches)

    # ------------------------------------------------------------------ evaluation

    def valid_loss(self, stop: Callable[[], bool]) -> float:
        """See ``Engine``; windows are shared between replicas. Ranks cannot stop in the middle, and do not."""
        report_action("evaluate")
        assert self.prepared.valid is not None
        models = [chunk.model for chunk in self.chunks.values()]
        sums, counts = dict.fromkeys(self.objective.names, 0.0), dict.fromkeys(self.objective.names, 0)
        for model in models:
            model.eval()
        batches: Iterable[Batch]
        if isinstance(self.objective, NextToken):
            assert not isinstance(self.prepared, PreparedTask)
            tokens = self.prepared.valid.tokens[: self.config.evaluation.tokens]
            tokenizer, context = self.prepared.tokenizer, self.config.context
            parts = windows(context, tokens, tokenizer.boundary, stride=context, opening=tokenizer.opening)
            batches = (Batch(self._padded(ids, 0), self._padded(targets, IGNORE)) for ids, targets in parts)
        else:
            batches = validation_rows(self.config, self.prepared)
        for batch in batches:
            counts = {name: counts[name] + count for name, count in self.objective.counts(batch).items()}
            mine = batch.split(self.mesh.dp.size)[self.mesh.dp.index]
            if len(mine.ids):
                found = self._forward(self._here(mine))
                sums = {name: sums[name] + value for name, value in found.items()}
        for model in models:
            model.train()
        return mean_of_terms(self._sums(sums, self.mesh.tp.index == 0), counts)[0]

    def _padded(self, part: Tensor, fill: int) -> Tensor:
        """Rows lengthened so that their positions can be shared evenly; nothing before sees what stands behind."""
        return torch.nn.functional.pad(part, (0, -part.shape[1] % self.mesh.tp.size), value=fill)

    def _forward(self, batch: Batch) -> dict[str, float]:
        """Sums of losses of some rows, passed through the pipeline in as many parts as it has stages."""
        pipeline = self._forward_only[min(self.mesh.pp.size, len(batch.ids)) - 1]
        microbatches = [Microbatch(part) for part in batch.split(pipeline.schedule.microbatches)]
        return {name: float(total) for name, total in pipeline.run(microbatches, backward=False).sums.items()}

    @cached_property
    def _forward_only(self) -> list[Pipeline]:
        return [self._pipeline(forward_only(self.schedule, parts)) for parts in range(1, self.mesh.pp.size + 1)]

    # ------------------------------------------------------------------ stopping and saving

    def agreed(self, stop: bool) -> bool:
        """See ``Engine``."""
        return self._sums({"stop": float(stop)}, True)["stop"] > 0

    def save(self, checkpoints: Path, manifest: Manifest, before: Callable[[], None] = lambda: None) -> None:
        """See ``Engine``."""
        if self.replicas is not None:  # what has drifted apart since the last update is not saved
            report_action("check")
            self.replicas.parameters()
        report_action("save")
        state.save(checkpoints, manifest, list(self.chunks.values()), self.optimizer, self.mesh, before)
        if self.leads and self.logs is not None and self.last is not None:
            with contextlib.suppress(OSError):  # a picture for people: no checkpoint fails for it
                self.logs.mkdir(parents=True, exist_ok=True)
                (self.logs / SAVED_TIMELINE).write_text(json.dumps(self.last.as_json()) + "\n", encoding="utf-8")

    def load(self, checkpoint: Checkpoint) -> Counters:
        """See ``Engine``."""
        report_action("load")
        counters = Counters(**checkpoint.manifest.counters)
        state.load(checkpoint, list(self.chunks.values()), self.optimizer, counters.updates)
        return counters

    @torch.no_grad()
    def start_from(self, start: Start) -> None:
        """See ``Engine``."""
        report_action("load")
        for chunk in self.chunks.values():
            for name, parameter in chunk.model.named_parameters():
                spec = chunk.specs[name]
                if is_adapter(name):
                    continue
                if (read := start.read(spec.global_name, spec.offset, spec.local)) is not None:
                    parameter.copy_(read)
                elif not parameter.requires_grad:
                    parameter.copy_(initial(chunk.model, spec, self.config.seed))

    def newest(self, checkpoints: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
        """See ``Engine``."""
        report_action("verify")
        return state.newest(checkpoints, self.mesh)

    def remarks(self) -> list[str]:
        """See ``Engine``: the bubble measured against simulated, and what ``layout.check`` compared."""
        found = []
        if self.bubbles:
            measured, simulated = (statistics.median(column) for column in zip(*self.bubbles))
            steps = f"median of {len(self.bubbles):,} steps" if len(self.bubbles) > 1 else "one step"
            found.append(f"pipeline bubble, {steps}: {measured:.3f} measured, {simulated:.3f} simulated")
        if self.replicas is not None and self.replicas.steps:
            found.append(self.replicas.summary())
        return found


def forward_only(schedule: Schedule, microbatches: int) -> Schedule:
    """The forward passes of a pipeline, lowered: a rank does all of its first chunk, then of its second."""
    ranks = tuple(
        tuple(
            Action(chunk, "F", microbatch)
            for chunk, home in enumerate(schedule.placement)
            if home == rank
            for microbatch in range(microbatches)
        )
        for rank in range(schedule.stages)
    )
    return lower(
        Schedule(
            name="forward", stages=schedule.stages, chunks=schedule.chunks, microbatches=microbatches,
            placement=schedule.placement, ranks=ranks,
        )
    )  # fmt: skip


def everybody(mesh: Mesh) -> None:
    """Wait until every rank is here."""
    if mesh.world > 1:
        dist.barrier(group=mesh.everyone)
