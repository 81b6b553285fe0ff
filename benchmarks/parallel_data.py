"""Data parallelism on one machine: two processes against one, and against PyTorch's DistributedDataParallel.

    python benchmarks/parallel_data.py --turns 7

A step of the GPT of ``gpt_step.py`` (30 million parameters, tied) in fp32: forward, backward, gradient norm and
clipping, fused AdamW. Every process has one thread; all sides learn from the same batch of 8 sequences, whole in one
process, four each in two. The sides take turns, so that whatever else the machine does falls on all; a ratio is that of
one turn. After the first step all sides must have the same loss and the same norm.

``bound`` is what two processes could reach if nothing had to be communicated: each computes its four sequences and
updates all weights by itself. It is below 2 because the two cores share caches, memory and heat, and because some work
(the update) does not shrink with the batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common import language_model, spread, table, write_result
from gpt_step import BATCH, CONTEXT, HEADS, LAYERS, VOCAB, WIDTH, decayed
from gradatim.config.settings import GptConfig, LayoutConfig, OptimizerConfig
from gradatim.models import build_model
from gradatim.models.neural import NeuralLanguageModel
from gradatim.parallel.build import build_chunk
from gradatim.parallel.gradients import BUCKET_BYTES, Gradients
from gradatim.parallel.mesh import Mesh, create_mesh
from gradatim.parallel.optimizer import ShardedAdamW
from gradatim.train.optimizer import build_optimizer, clip_gradients, gradient_norm

CONFIG = GptConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS)
ADAMW = OptimizerConfig(lr=1e-4, clip=1.0)
Step = Callable[[], tuple[float, float]]
"""Makes a step; loss of this process' part, and norm."""


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, VOCAB, (BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def one_process(rows: slice) -> Step:
    """What ``gradatim train`` does in one process, with these rows of the batch."""
    model = language_model(CONFIG, VOCAB, CONTEXT)
    optimizer = build_optimizer(model, ADAMW)
    ids, targets = batch()
    count, ids, targets = targets.numel(), ids[rows], targets[rows]
    weights = list(model.parameters())

    def step() -> tuple[float, float]:
        loss = model.nll(model.hidden(ids)[0], targets) / count
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(gradient_norm(weights))
        clip_gradients(weights, norm, ADAMW.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), norm

    return step


def ours(mesh: Mesh, zero: int, bucket_bytes: int) -> Step:
    """What ``gradatim train --layout.dp 2`` does in each of its processes."""
    chunk = build_chunk(CONFIG, VOCAB, CONTEXT, layers=range(LAYERS), embed=True, head=True, mesh=mesh)
    gradients = Gradients([chunk], mesh, zero=zero, bucket_bytes=bucket_bytes)
    optimizer = ShardedAdamW(gradients, ADAMW)
    ids, targets = batch()
    count, model = targets.numel(), chunk.model
    assert isinstance(model, NeuralLanguageModel)
    ids, targets = (part.tensor_split(mesh.dp.size)[mesh.dp.index] for part in (ids, targets))

    def step() -> tuple[float, float]:
        gradients.begin()
        loss = model.nll(model.run(model.enter(ids)), targets)
        gradients.last_backward(chunk)
        (loss / count).backward()  # type: ignore[no-untyped-call]
        gradients.finish()
        norm = optimizer.norm()
        optimizer.step(ADAMW.lr, norm, ADAMW.clip)
        return float(loss.detach() / count), norm

    return step


class Loss(nn.Module):
    """DDP sums gradients of what its module's forward answers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Sum of losses."""
        loss: Tensor = self.model.nll(self.model.hidden(ids)[0], targets)
        return loss


def ddp(mesh: Mesh) -> Step:
    """The same model under PyTorch's DistributedDataParallel, gradients as views of its buckets."""
    model = DistributedDataParallel(Loss(build_model(CONFIG, VOCAB, CONTEXT)), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(decayed(model), lr=ADAMW.lr, betas=ADAMW.betas, fused=True)
    weights = list(model.parameters())
    ids, targets = batch()
    count = targets.numel() // mesh.dp.size  # gradients are averaged
    ids, targets = (part.tensor_split(mesh.dp.size)[mesh.dp.index] for part in (ids, targets))

    def step() -> tuple[float, float]:
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, targets) / count
        loss.backward()
        norm = float(gradient_norm(weights))
        clip_gradients(weights, norm, ADAMW.clip)
        optimizer.step()
        return float(loss.detach()) / mesh.dp.size, norm

    return step


def worker(rank: int, options: argparse.Namespace, store: str, answer: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    mesh = create_mesh(LayoutConfig(dp=2))
    half = slice(BATCH // 2 * rank, BATCH // 2 * (rank + 1))
    sides: dict[str, Step | None] = {
        "one process": one_process(slice(None)) if rank == 0 else None,
        "ZeRO-0": ours(mesh, 0, options.bucket_bytes),
        "ZeRO-1": ours(mesh, 1, options.bucket_bytes),
        "DDP": ddp(mesh),
        "bound": one_process(half),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    first: dict[str, list[float]] = {}
    for turn in range(options.turns + 1):
        names = [*sides] if turn % 2 == 0 else [*reversed(sides)]
        for name in names:
            step = sides[name]
            dist.barrier()
            started = time.perf_counter()
            loss, norm = step() if step is not None else (0.0, 0.0)
            dist.barrier()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
            else:
                total = torch.tensor([loss], dtype=torch.float64)
                dist.all_reduce(total)
                first[name] = [float(total), norm]
    if rank == 0:
        torch.save({"seconds": seconds, "first": first}, answer)
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--bucket-bytes", type=int, default=BUCKET_BYTES)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (options, f"{folder}/store", f"{folder}/answer"), nprocs=2)
        found = torch.load(Path(folder) / "answer", weights_only=True)
    print("loss and norm of the first step:", found["first"])
    loss, _ = found["first"]["one process"]
    norm = found["first"]["ZeRO-0"][1]
    for name, (own_loss, own_norm) in found["first"].items():
        assert abs(own_loss - loss) <= 2e-6 * loss, (name, own_loss, loss)
        assert name == "bound" or abs(own_norm - norm) <= 1e-3 * norm, (name, own_norm, norm)
    seconds = found["seconds"]
    rows = []
    for name, times in seconds.items():
        ratios = [one / own for one, own in zip(seconds["one process"], times)]
        rows.append([name, 1 if name == "one process" else 2, spread(times), spread(ratios)])
    body = f"""{LAYERS} layers, {HEADS} heads, width {WIDTH}, context {CONTEXT}, vocabulary {VOCAB}, tied; fp32; {BATCH}
sequences a step in all; one thread a process; gloo; {options.turns} turns. Seconds a step, and how many times faster
than one process in the same turn, as median (least-most).

{table(["side", "processes", "seconds a step", "against one process"], rows)}"""
    write_result("parallel_data", "Data parallelism on two cores", body)
    print("median step:", {name: round(statistics.median(times), 3) for name, times in seconds.items()})


if __name__ == "__main__":
    main()
