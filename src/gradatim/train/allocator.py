"""Memory that a CPU's training step frees is kept for the next step, instead of given back to the system.

glibc returns freed memory at the top of its heap, and every block that it mapped on its own; the next step asks for as
much again, and the kernel hands over each page of 4 KiB by a fault, and zeroed: thousands a step. The two thresholds
are glibc's documented ``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` (mallopt(3)); as glibc adapts them by itself, the
top is kept up to twice 32 MiB, which the activations of a step exceed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt (malloc.h)."""
KEPT = (1 << 31) - 1
"""Bytes free at the top of the heap before any go back: the most that mallopt's int says."""
MAPPED = 1 << 25
"""Blocks from this size on are mapped on their own and do go back: the most that glibc allows."""


def keep_freed_memory() -> bool:
    """Raise both thresholds for this process. False where there is no glibc, or the user's environment sets it up."""
    if not sys.platform.startswith("linux") or any(
        name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ
    ):
        return False
    with contextlib.suppress(AttributeError, OSError):
        set_to = ctypes.CDLL(None).mallopt
        return bool(set_to(MMAP_THRESHOLD, MAPPED)) and bool(set_to(TRIM_THRESHOLD, KEPT))
    return False
