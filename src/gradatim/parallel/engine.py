"""One rank's steps of training under a layout: pipeline, sums of gradients, update; the parallel ``train.Engine``.

A step: this replica's rows of the global batch → microbatches through the pipeline → gradients summed over replicas
(begun during the last backward passes) → one norm of the whole gradient → the update. Losses are divided by the count
of targets of the whole step before anything is differentiated, so neither microbatches of unequal size nor padding nor
the number of replicas shift the weights of tokens.
"""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gradatim.config.derived import microbatch_count
from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError
from gradatim.evaluate.likelihood import windows
from gradatim.objectives.next_token import target_count
from gradatim.parallel import state
from gradatim.parallel.agree import tell
from gradatim.parallel.build import build_chunk
from gradatim.parallel.check import Replicas
from gradatim.parallel.gradients import Gradients
from gradatim.parallel.mesh import Mesh
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.parallel.pipeline import Microbatch, Pipeline, Ran
from gradatim.parallel.timeline import Timeline, timeline
from gradatim.parallel.watch import report_action, report_step
from gradatim.schedules import Action, Schedule, build_schedule, lower
from gradatim.shapes import parameter_count
from gradatim.shapes.split import layers_of_chunks
from gradatim.text.batches import IGNORE, Batch, Windows
from gradatim.text.order import derive
from gradatim.text.pair_batches import PairBatches
from gradatim.text.prepare import Prepared
from gradatim.train.checkpoint import Checkpoint
from gradatim.train.engine import Outcome, left_out, pair_batches, source_vocabulary, valid_pairs
from gradatim.train.learning_rate import learning_rate
from gradatim.train.manifest import Manifest
from gradatim.train.precision import arithmetic, device, weight_dtype
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

    def __init__(self, config: RunConfig, prepared: Prepared, mesh: Mesh, logs: Path | None = None) -> None:
        self.config, self.prepared, self.mesh, self.logs = config, prepared, mesh, logs
        self.leads, self.world, self.where = mesh.rank == 0, mesh.world, device()
        layout, vocabulary = config.layout, prepared.tokenizer.vocab_size
        source_words = source_vocabulary(prepared)
        self.parameters = parameter_count(config.model, vocabulary, config.context, source_words)
        self.schedule = lower(
            build_schedule(
                layout.schedule if layout.pp > 1 else "1f1b", layout.pp, microbatch_count(config), layout.chunks
            )
        )
        splits, last = layers_of_chunks(config, vocabulary), self.schedule.last_chunk
        self.chunks = {
            number: build_chunk(
                config.model, vocabulary, config.context, layers=layers, embed=number == 0, head=number == last,
                mesh=mesh, sequence_parallel=layout.sequence_parallel, recompute=layout.recompute,
                deferred=layout.schedule == "zero-bubble" and layout.pp > 1, seed=config.seed,
                dtype=weight_dtype(config.precision), device=self.where, source_vocab_size=source_words,
            )
            for number, layers in enumerate(splits)
            if self.schedule.placement[number] == mesh.pp.index
        }  # fmt: skip
        held = list(self.chunks.values())
        self.gradients = Gradients(held, mesh, zero=layout.zero)
        self.optimizer = ShardedAdamW(self.gradients, config.optimizer)
        self.pipeline = self._pipeline(self.schedule)
        self.batches: Windows | PairBatches
        self.notes: tuple[str, ...] = ()
        if prepared.source_tokenizer is not None:
            self.batches = pair_batches(config, prepared)
            self.notes = left_out(self.batches, config)
        else:
            packing = config.data.packing
            self.batches = Windows(prepared.train, config.context, config.global_batch, config.seed, packing)
        rows = config.global_batch // layout.dp
        self.rows = slice(mesh.dp.index * rows, (mesh.dp.index + 1) * rows)
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
            schedule, self.chunks, self.mesh.pp, width=width, shards=layout.tp if layout.sequence_parallel else 1,
            dtype=weight_dtype(self.config.precision),
            arithmetic=partial(arithmetic, self.config.precision, self.where),
            last_backward=self.gradients.last_backward, report=report_action,
        )  # fmt: skip

    # ------------------------------------------------------------------ a step

    def step(self, step: int) -> Outcome:
        """See ``Engine``."""
        report_step(step + 1)
        config, mesh = self.config, self.mesh
        if isinstance(self.batches, PairBatches):
            batch = self.batches.batch(step, (mesh.dp.index, mesh.dp.size))
        else:
            batch = self.batches.batch(step, self.rows)
        once = mesh.tp.index == 0  # of ranks that hold the same numbers, one speaks
        count = int(self._sum(target_count(batch) if once and mesh.pp.index == 0 else 0))  # also a common start
        rate = learning_rate(config.optimizer, config.steps, step)
        if self.replicas is not None:
            report_action("check")
            self.replicas.parameters()
            self.replicas.tokens(batch.ids.to(self.where), batch.targets.to(self.where))
        self.gradients.begin()
        ran = self.pipeline.run(self._microbatches(batch, step), count)
        report_action("reduce")
        self.gradients.finish()
        if self.replicas is not None:
            report_action("check")
            self.replicas.loss(ran.loss)
            self.replicas.gradients()
        outcome = Outcome(
            self._sum(float(ran.loss) if once else 0.0) / count, self.optimizer.norm(), count, rate, self._measure(ran)
        )
        report_action("update")
        if outcome.finite:
            self.optimizer.step(rate, outcome.norm, config.optimizer.clip)
        return outcome

    def _microbatches(self, batch: Batch, step: int) -> list[Microbatch]:
        """Cut a replica's rows into equal parts. Seeds are those that one process gives its microbatches."""
        number, mesh = self.schedule.microbatches, self.mesh
        found = []
        for i in range(number):
            part = batch.part(_share(len(batch.ids), i, number), self.where)
            place = mesh.dp.index * number + i
            # Shards of the sequence drop units of their own; what is replicated over tp drops the same.
            shard = (mesh.tp.index,) if self.config.layout.sequence_parallel and mesh.tp.index else ()
            seeds = {
                c: derive(self.config.seed, step, place, *((c,) if c or shard else ()), *shard) for c in self.chunks
            }
            found.append(Microbatch(part.ids, part.targets, seeds, part.source))
        return found

    def _sum(self, value: float) -> float:
        """The sum over all ranks; every rank adds the same numbers in the same order."""
        if self.world == 1:
            return value
        mine = torch.tensor([value], dtype=torch.float64, device=self.where)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(found, mine, group=self.mesh.everyone)
        return float(torch.cat(found).sum())

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
        if isinstance(self.batches, PairBatches):
            return self.batches.steps_per_epoch
        return self.batches.samples / self.config.global_batch

    # ------------------------------------------------------------------ evaluation

    def valid_loss(self, stop: Callable[[], bool]) -> float:
        """See ``Engine``; windows are shared between replicas. Ranks cannot stop in the middle, and do not."""
        report_action("evaluate")
        assert self.prepared.valid is not None
        if isinstance(self.batches, PairBatches):
            return self._valid_loss_of_pairs()
        tokens = self.prepared.valid.tokens[: self.config.evaluation.tokens]
        boundary, context = self.prepared.tokenizer.boundary, self.config.context
        total, models = 0.0, [chunk.model for chunk in self.chunks.values()]
        for model in models:
            model.eval()
        for ids, targets in windows(context, tokens, boundary, stride=context):
            mine = [part.tensor_split(self.mesh.dp.size)[self.mesh.dp.index] for part in (ids, targets)]
            if len(mine[0]):
                total += self._forward(
                    *(self._padded(part, fill).to(self.where) for part, fill in zip(mine, (0, IGNORE)))
                )
        for model in models:
            model.train()
        return self._sum(total if self.mesh.tp.index == 0 else 0.0) / len(tokens)

    def _valid_loss_of_pairs(self) -> float:
        """Batches of pairs are shared out between replicas."""
        (chunk,), total, count = self.chunks.values(), 0.0, 0
        chunk.model.eval()
        for number, batch in enumerate(valid_pairs(self.config, self.prepared)):
            count += target_count(batch)
            if number % self.mesh.dp.size == self.mesh.dp.index:
                part = batch.part(slice(None), self.where)
                microbatch = Microbatch(part.ids, part.targets, source=part.source)
                total += float(self._forward_only[0].run([microbatch], backward=False).loss)
        chunk.model.train()
        return self._sum(total if self.mesh.tp.index == 0 else 0.0) / count

    def _padded(self, part: Tensor, fill: int) -> Tensor:
        """Rows lengthened so that their positions can be shared evenly; nothing before sees what stands behind."""
        return torch.nn.functional.pad(part, (0, -part.shape[1] % self.mesh.tp.size), value=fill)

    def _forward(self, ids: Tensor, targets: Tensor) -> float:
        """Sum of losses of some rows, passed through the pipeline in as many parts as it has stages."""
        pipeline = self._forward_only[min(self.mesh.pp.size, len(ids)) - 1]
        parts = pipeline.schedule.microbatches
        microbatches = [Microbatch(*pair) for pair in zip(ids.tensor_split(parts), targets.tensor_split(parts))]
        return float(pipeline.run(microbatches, backward=False).loss)

    @cached_property
    def _forward_only(self) -> list[Pipeline]:
        return [self._pipeline(forward_only(self.schedule, parts)) for parts in range(1, self.mesh.pp.size + 1)]

    # ------------------------------------------------------------------ stopping and saving

    def agreed(self, stop: bool) -> bool:
        """See ``Engine``."""
        return bool(tell(stop, self.mesh))

    def save(self, checkpoints: Path, manifest: Manifest) -> None:
        """See ``Engine``."""
        if self.replicas is not None:  # what has drifted apart since the last update is not saved
            report_action("check")
            self.replicas.parameters()
        report_action("save")
        state.save(checkpoints, manifest, list(self.chunks.values()), self.optimizer, self.mesh)
        if self.leads and self.logs is not None and self.last is not None:
            (self.logs / SAVED_TIMELINE).write_text(json.dumps(self.last.as_json()) + "\n", encoding="utf-8")

    def load(self, checkpoint: Checkpoint) -> Counters:
        """See ``Engine``."""
        report_action("load")
        counters = Counters(**checkpoint.manifest.counters)
        state.load(checkpoint, list(self.chunks.values()), self.optimizer, counters.updates)
        return counters

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


def _share(rows: int, index: int, parts: int) -> slice:
    """The rows that ``tensor_split`` gives part ``index``: the first ones get one more where it does not come out."""
    size, more = divmod(rows, parts)
    first = index * size + min(index, more)
    return slice(first, first + size + (index < more))


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
