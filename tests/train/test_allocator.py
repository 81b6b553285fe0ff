"""Memory that is freed stays with the process, so that the next step meets no page faults."""

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

FAULTS = """
import resource, sys
import torch
from gradatim.train.allocator import keep_freed_memory

def step():
    return sum(float(block[0]) for block in [torch.ones(1 << 21) for _ in range(16)])  # 16 blocks of 8 MiB

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    """What a process of its own says, and its page faults a step."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", FAULTS, how]
    said = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout
    kept, count = said.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")
def test_steps_after_the_first_meet_no_page_faults() -> None:
    kept, few = faults("kept")
    _, many = faults("as it is")
    assert kept == "True" and few < 100 and many > 10 * max(few, 1)


def test_an_engine_keeps_memory(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(engine, "keep_freed_memory", lambda: asked.append(True))
    config = make_config("gpt", 2)
    engine.SerialEngine(config, prepare(config.data))
    assert asked == [True]


def test_what_the_environment_says_is_left_alone() -> None:
    assert faults("kept", MALLOC_ARENA_MAX="4")[0] == "False"
