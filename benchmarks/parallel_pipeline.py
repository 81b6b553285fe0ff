"""A pipeline step against torch.distributed.pipelining, one process, and the makespan that our simulator promises.

Two processes of one thread, eight Transformer blocks of width 512 on 128 tokens, microbatches of 2, as many as given.
Both sides run the very same modules (our blocks, embedding and loss), so they differ only in how the schedule is
carried out. They take turns in the same processes; a ratio is that of one turn. The promise is the schedule simulated
with the median time that each chunk's forward and backward pass took while all ranks were busy, and free transfers.

    python benchmarks/parallel_pipeline.py
    python benchmarks/parallel_pipeline.py --keep kept.json --microbatches 2,4    # in pieces: further ones later
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common

LAYERS, WIDTH, HEADS, TOKENS, ROWS, VOCABULARY = 8, 512, 8, 128, 2, 512
PROCESSES = 2
CHUNKS = {"1f1b": 1, "interleaved": 2}
COUNTS = (2, 4, 8, 16)


def worker(rank: int, store: str, cases: list[tuple[str, int]], turns: int, answers: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, PROCESSES), rank=rank, world_size=PROCESSES)
    for name, microbatches in cases:
        answers.put((rank, (name, microbatches), measure(name, CHUNKS[name], microbatches, turns)))
    dist.barrier()


def measure(name: str, chunks: int, microbatches: int, turns: int) -> dict[str, Any]:
    """Seconds of each turn, ours and torch's, and what our simulator makes of our action times."""
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

    from gradatim.config.settings import GptConfig, LayoutConfig
    from gradatim.models.neural import NeuralLanguageModel
    from gradatim.objectives.next_token import NextToken
    from gradatim.parallel.build import build_chunk
    from gradatim.parallel.mesh import create_mesh
    from gradatim.parallel.pipeline import Microbatch, Pipeline
    from gradatim.schedules import build_schedule, lower
    from gradatim.text.batches import Batch

    mesh = create_mesh(LayoutConfig(pp=PROCESSES))
    config = GptConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, tied=False)
    schedule = lower(build_schedule(name, PROCESSES, microbatches, chunks))
    every, total = LAYERS // (PROCESSES * chunks), PROCESSES * chunks
    mine = {
        c: build_chunk(
            config, VOCABULARY, TOKENS, layers=range(c * every, (c + 1) * every), embed=c == 0, head=c == total - 1,
            mesh=mesh,
        )
        for c in range(total)
        if schedule.placement[c] == mesh.pp.index
    }  # fmt: skip
    ids = torch.randint(0, VOCABULARY, (ROWS * microbatches, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    parts = [Microbatch(Batch(*pair)) for pair in zip(inputs.split(ROWS), targets.split(ROWS))]
    ours = Pipeline(schedule, mine, mesh.pp, NextToken(), width=WIDTH)

    class Stage(torch.nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number, self.model = number, mine[number].model

        def forward(self, x: Any) -> Any:
            assert isinstance(self.model, NeuralLanguageModel)
            return self.model.run(self.model.enter(x) if self.number == 0 else x)

    def loss(hidden: Any, wanted: Any) -> Any:
        model = mine[total - 1].model
        assert isinstance(model, NeuralLanguageModel)
        return model.nll(hidden, wanted) / targets.numel()

    stages: list[Any] = [PipelineStage(Stage(c), c, total, torch.device("cpu"), group=mesh.pp.group) for c in mine]
    if chunks == 1:
        theirs: Any = Schedule1F1B(stages[0], microbatches, loss_fn=loss, scale_grads=False)
    else:
        theirs = ScheduleInterleaved1F1B(stages, microbatches, loss_fn=loss, scale_grads=False)
    first, last = mesh.pp.index == 0, mesh.pp.index == PROCESSES - 1

    def forget() -> dict[str, Any]:
        found = {f"{c}.{n}": p.grad for c, chunk in mine.items() for n, p in chunk.model.named_parameters()}
        for chunk in mine.values():
            for parameter in chunk.model.parameters():
                parameter.grad = None
        return found

    took: dict[Any, list[float]] = {}

    def step_ours(note: bool = True) -> None:
        ran = ours.run(parts, {"nll": targets.numel()})
        for action, (start, end) in zip(ran.actions, ran.spans) if note else ():
            took.setdefault((action.chunk, action.kind), []).append(end - start)

    def step_theirs() -> None:
        losses: list[Any] = []
        theirs.step(*([inputs] if first else []), **({"target": targets, "losses": losses} if last else {}))

    def timed(step: Any) -> float:
        dist.barrier()
        started = time.perf_counter()
        step()
        dist.barrier()
        return time.perf_counter() - started

    for _ in range(2):
        timed(lambda: step_ours(note=False))
        gradients = forget()
        timed(step_theirs)
        peers = forget()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, peers[key], rtol=1e-4, atol=1e-7)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(turns):
        order = [("ours", step_ours), ("theirs", step_theirs)]
        for side, step in order if turn % 2 == 0 else reversed(order):
            seconds[side].append(timed(step))
            forget()
    return {**seconds, "took": {key: statistics.median(values) for key, values in took.items()}}


def one_process(count: int, turns: int) -> list[float]:
    """The same model, one process of one thread."""
    import torch

    from gradatim.config.settings import GptConfig

    torch.set_num_threads(1)
    model = common.language_model(
        GptConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, tied=False), VOCABULARY, TOKENS
    )
    ids = torch.randint(0, VOCABULARY, (ROWS * count, TOKENS + 1))
    times = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        for part in ids.split(ROWS):
            loss = model.nll(model.hidden(part[:, :-1])[0], part[:, 1:].contiguous())
            (loss / ids[:, 1:].numel()).backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--microbatches", type=numbers, default=list(COUNTS))
    parser.add_argument("--schedules", type=lambda text: text.split(","), default=list(CHUNKS))
    parser.add_argument("--keep", type=Path, help="save each case here, and report those that are there already too")
    options = parser.parse_args()
    kept = common.Kept(options.keep)
    known = {(row["name"], row["m"]) for row in kept.rows}
    cases = [(n, m) for n in options.schedules for m in options.microbatches if (n, m) not in known]
    if cases:
        for (name, m), found in both(cases, options.turns).items():
            took = [[*key, seconds] for rank in range(PROCESSES) for key, seconds in found[rank]["took"].items()]
            times = {side: found[0][side] for side in ("ours", "theirs")}
            kept.add(name=name, m=m, took=took, alone=one_process(m, max(3, options.turns // 3)), **times)
    order = {case: place for place, case in enumerate((n, m) for n in CHUNKS for m in COUNTS)}
    rows = [shown(row) for row in sorted(kept.rows, key=lambda row: order.get((row["name"], row["m"]), len(order)))]
    columns = [
        "schedule", "m", "turns", "ours, ms", "torch, ms", "ours / torch", "ours / simulated", "torch / simulated",
        "against one process",
    ]  # fmt: skip
    body = (
        f"{PROCESSES} processes of 1 thread, {LAYERS} blocks of width {WIDTH}, {TOKENS} tokens, microbatches of {ROWS} "
        "sequences, fp32; paired turns, gradients compared first. Median (least-most); ours / torch is that of one "
        "turn; simulated: from the median times of actions, transfers free; interleaved has 2 chunks a rank. The one "
        "process runs alone, with the other core free.\n\n"
    )
    common.write_result("parallel_pipeline", "A pipeline step", body + common.table(columns, rows))


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def both(cases: list[tuple[str, int]], turns: int) -> dict[tuple[str, int], dict[int, Any]]:
    """What each rank measured of each case."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    found: dict[tuple[str, int], dict[int, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        workers = [
            context.Process(target=worker, args=(rank, store, cases, turns, answers)) for rank in range(PROCESSES)
        ]
        for process in workers:
            process.start()
        for _ in range(PROCESSES * len(cases)):
            rank, case, result = answers.get(timeout=900)
            found.setdefault(case, {})[rank] = result
        for process in workers:
            process.join()
    return found


def shown(row: dict[str, Any]) -> list[object]:
    """A case's line of the table."""
    from gradatim.schedules import build_schedule, simulate

    took = {(chunk, kind): seconds for chunk, kind, seconds in row["took"]}
    name, m, ours, theirs = (row[key] for key in ("name", "m", "ours", "theirs"))
    schedule = build_schedule(name, PROCESSES, m, CHUNKS[name])
    promised = float(simulate(schedule, lambda action: took[action.chunk, action.kind]).makespan)
    return [
        name, m, len(ours), common.spread([1000 * s for s in ours]), common.spread([1000 * s for s in theirs]),
        common.spread([a / b for a, b in zip(ours, theirs)]),
        f"{statistics.median(ours) / promised:.3f}", f"{statistics.median(theirs) / promised:.3f}",
        f"{statistics.median(row['alone']) / statistics.median(ours):.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
