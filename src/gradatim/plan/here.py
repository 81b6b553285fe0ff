"""The machine that this process runs on: cores, memory, whether there are GPUs. No torch."""

from __future__ import annotations

import os
from pathlib import Path

MOST = 8
"""Processes that a machine's cores are given to where nobody says how many."""


def processes() -> int:
    """One for each core that this process may use, within reason."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, cores)


def memory() -> float:
    """Bytes of the machine's memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def has_gpus() -> bool:
    """Whether the system has devices of NVIDIA's."""
    return Path("/dev/nvidia0").exists()
