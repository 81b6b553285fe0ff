"""Arithmetic of a run: fp32, fp64, or bf16 matmuls over fp32 weights, gradients and sums (torch's autocast).

In bf16 the fp32 weights are the masters. Their bf16 copies live for a step (``models/layers/working``).
"""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager

import torch

from gradatim.models.layers.working import keep_copies


def device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def own_gpu() -> list[int]:
    """The current GPU by its number, if there are any: whose random numbers this process draws. Torch would take all,
    and so claim memory on GPUs that are other processes'.
    """
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def weight_dtype(precision: str) -> torch.dtype:
    """What weights and their moments are kept in."""
    return torch.float64 if precision == "fp64" else torch.float32


def fixed_dtype(precision: str) -> torch.dtype:
    """What matrices are kept in that are not trained: what they are multiplied in, as no small change is added."""
    return torch.bfloat16 if precision == "bf16" else weight_dtype(precision)


def arithmetic(precision: str, where: torch.device) -> AbstractContextManager[object]:
    """The context of forward passes."""
    if precision == "bf16":
        return torch.autocast(where.type, torch.bfloat16)
    return contextlib.nullcontext()


def step_arithmetic(precision: str) -> AbstractContextManager[object]:
    """The context of all of a step's passes, forward and backward, between two updates of the weights."""
    if precision == "bf16":
        return keep_copies()
    return contextlib.nullcontext()


PROBED = 256
"""Rows and columns of the matrices by whose product a CPU shows how fast it is in bf16."""
SLOW = 2.0
"""A product's time in bf16 over that in fp32 that is worth a word."""


def speed_notes(precision: str, where: torch.device) -> tuple[str, ...]:
    """What to say where bf16 costs time, as on a CPU that has no instructions for it.

    Measured rather than read from a list of processors: a few products, a fifth of a second where they are slow.
    """
    if precision != "bf16" or where.type != "cpu":
        return ()
    ratio = product_seconds(torch.bfloat16) / product_seconds(torch.float32)
    if ratio < SLOW:
        return ()
    return (
        f"this CPU has no fast bf16: a product of matrices takes {ratio:.0f} times as long as in fp32\n"
        "    try: --precision fp32",
    )


def product_seconds(dtype: torch.dtype) -> float:
    """The least of three times of a square product on the CPU, in seconds."""
    matrix = torch.zeros(PROBED, PROBED, dtype=dtype)

    def once() -> float:
        started = time.perf_counter()
        matrix @ matrix
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(3))


PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s of data sheets, by a part of the device's name."""


def peak_flops(precision: str, where: torch.device) -> float | None:
    """The peak that model FLOPs utilisation is measured against, where it is known."""
    if where.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(where)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
