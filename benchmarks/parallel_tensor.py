"""Tensor parallelism on one machine: two processes against one, and against DTensor's ``parallelize_module``.

    python benchmarks/parallel_tensor.py --turns 15

Two Transformer blocks, forward and backward, fp32, every process with one thread. All sides run the same blocks with
the same weights and input: our parallel layers, PyTorch's parallel styles applied to our serial blocks (cut as ours
are), and the serial blocks in one process while the other waits. The sides take turns in the same processes; a ratio is
that of one turn. Outputs and the gradients of the input are compared first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from common import spread, table, write_result
from gradatim.config.settings import GptConfig, LayoutConfig
from gradatim.models.neural import NeuralLanguageModel
from gradatim.parallel.build import build_chunk
from gradatim.parallel.mesh import Mesh, create_mesh, single

PROCESSES, LAYERS, HEAD = 2, 2, 64
CASES = ((512, 128, 2), (768, 256, 4))
"""Width, context, batch."""
SIDES = ("one process", "ours", "ours, sequence", "DTensor")


def blocks(config: GptConfig, context: int, mesh: Mesh, sequence_parallel: bool = False) -> NeuralLanguageModel:
    model = build_chunk(
        config, 64, context, layers=range(LAYERS), embed=False, head=False, mesh=mesh,
        sequence_parallel=sequence_parallel,
    ).model  # fmt: skip
    assert isinstance(model, NeuralLanguageModel)
    return model


def dtensor(config: GptConfig, context: int) -> NeuralLanguageModel:
    """Our serial blocks, sharded by PyTorch."""
    model = blocks(config, context, single())
    grid = dist.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    plan = {
        "attention.qkv": ColwiseParallel(), "attention.out": RowwiseParallel(),
        "mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel(),
    }  # fmt: skip
    for block in model.blocks:
        parallelize_module(block, grid, plan)
    return model


def step_of(model: NeuralLanguageModel, x: Tensor, grad: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    def step() -> tuple[Tensor, Tensor]:
        given = x.detach().requires_grad_()
        y = model.run(given)
        y.backward(grad)
        assert given.grad is not None
        for parameter in model.parameters():
            parameter.grad = None
        return y.detach(), given.grad

    return step


def measure(rank: int, mesh: Mesh, width: int, context: int, batch: int, turns: int) -> dict[str, list[float]]:
    """Seconds of each turn of each side."""
    config = GptConfig(d_model=width, n_layers=LAYERS, n_heads=width // HEAD)
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(batch, context, width, generator=generator) for _ in range(2))
    part = slice(rank * context // PROCESSES, (rank + 1) * context // PROCESSES)
    steps = {
        "one process": step_of(blocks(config, context, single()), x, grad),
        "ours": step_of(blocks(config, context, mesh), x, grad),
        "ours, sequence": step_of(blocks(config, context, mesh, True), x[:, part].contiguous(), grad[:, part]),
        "DTensor": step_of(dtensor(config, context), x, grad),
    }
    wanted = steps["one process"]()
    for side in SIDES[1:]:
        cut = part if side == "ours, sequence" else slice(None)
        for found, right in zip(steps[side](), wanted):
            torch.testing.assert_close(found, right[:, cut], rtol=1e-4, atol=1e-4)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(-2, turns):
        for side in SIDES[turn % len(SIDES) :] + SIDES[: turn % len(SIDES)]:
            dist.barrier()
            started = time.perf_counter()
            if side != "one process" or rank == 0:
                steps[side]()
            took = time.perf_counter() - started
            dist.barrier()
            if turn >= 0:
                seconds[side].append(took)
    return seconds


def worker(rank: int, store: str, options: argparse.Namespace, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, PROCESSES), rank=rank, world_size=PROCESSES)
    mesh = create_mesh(LayoutConfig(tp=PROCESSES))
    for case in CASES:
        found = measure(rank, mesh, *case, options.turns)
        if rank == 0:
            answers.put((case, found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    context = mp.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder) / "store"), options, answers)
        started = mp.start_processes(worker, arguments, PROCESSES, join=False, start_method="spawn")
        found = dict(answers.get(timeout=900) for _ in CASES)
        started.join()
    rows: list[list[object]] = []
    for (width, length, batch), seconds in found.items():
        alone = seconds["one process"]
        for side in SIDES:
            ratio = "" if side == SIDES[0] else spread([a / b for a, b in zip(alone, seconds[side])])
            rows.append([f"{width} x {length} x {batch}", side, spread([1000 * s for s in seconds[side]]), ratio])
    body = (
        f"{LAYERS} blocks (LayerNorm, GELU, biases, heads of {HEAD}), forward and backward of one batch, fp32; "
        f"{PROCESSES} processes of 1 thread on gloo; {options.turns} paired turns. Median (least-most).\n\n"
    )
    columns = ["width x context x batch", "side", "ms", "times as fast as one process"]
    write_result("parallel_tensor", "Tensor parallelism", body + table(columns, rows))


if __name__ == "__main__":
    main()
