"""Memory that is freed stays with the process, so that the next step need not ask the system for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest

from gradatim.config.settings import RunConfig
from gradatim.text.prepare import prepare
from gradatim.train import engine

HELD = """
import ctypes, sys
import torch
from gradatim.train.allocator import keep_freed_memory

class Mallinfo(ctypes.Structure):  # mallinfo(3)
    _fields_ = [
        (name, ctypes.c_int)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]

def mallinfo():
    ask = ctypes.CDLL(None).mallinfo
    ask.restype = Mallinfo
    return ask()

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
before = mallinfo().hblks
block = torch.ones(6 << 20)  # 24 MiB
mapped = mallinfo().hblks - before
del block
print(kept, mapped, mallinfo().fordblks >> 20)
"""


def held(how: str, **environment: str) -> tuple[str, int, int]:
    """What a process of its own says of a block of 24 MiB: whether the thresholds were raised, how many mappings were
    made for it, and MiB free in the heap after it.

    The C library is asked and not the kernel, for some sandboxes count no page faults.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", HELD, how]
    said = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout
    kept, mapped, free = said.split()
    return kept, int(mapped), int(free)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")
def test_what_a_step_frees_is_held_for_the_next() -> None:
    kept, mapped, free = held("kept")
    assert kept == "True" and mapped == 0 and free >= 23
    assert held("as it is")[1] == 1


def test_an_engine_keeps_memory(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(engine, "keep_freed_memory", lambda: asked.append(True))
    config = make_config("gpt", 2)
    engine.SerialEngine(config, prepare(config.data))
    assert asked == [True]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")
def test_what_the_environment_says_is_left_alone() -> None:
    assert held("kept", MALLOC_ARENA_MAX="4")[0] == "False"
