"""Worker processes that live as long as the tests: starting one costs seconds, a case on it milliseconds.

Each world (2, 4, 8 processes of one thread) has one gloo group. A case is a function of a ``work_*.py`` file, called on
every rank as ``function(rank, world, *arguments)``. If it raises anywhere, that traceback is shown, and since its peers
may wait for it for ever the whole world is started afresh for the next case.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import multiprocessing.connection
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
CASES = 40
"""Cases after which a world is started afresh: gloo's threads of groups that cases made stay, and some spin."""
GRACE = 3.0
"""Seconds that the other ranks have to report, once one has failed."""


def _module(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _worker(rank: int, world: int, store: str, pipe: multiprocessing.connection.Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    sys.path.insert(0, str(HERE))
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, world), rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    while True:
        try:
            where, arguments = pipe.recv()
        except EOFError:
            return
        module, name = where.split(":")
        try:
            pipe.send((True, getattr(_module(module), name)(rank, world, *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Pool:
    """A world of workers."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._processes: list[Any] = []
        self._pipes: list[multiprocessing.connection.Connection] = []
        self._cases = 0

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = str(Path(tempfile.mkdtemp(prefix="gradatim-pool-")) / "store")
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(rank, self.world, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def run(self, where: str, *arguments: Any, timeout: float = 120.0) -> list[Any]:
        """Call ``module:function`` on every rank; the results by rank."""
        if self._cases == CASES:
            self.stop()
        if not self._processes:
            self._start()
        self._cases += 1
        for pipe in self._pipes:
            pipe.send((where, arguments))
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        until = time.monotonic() + timeout
        while len(results) + len(failures) < self.world:
            waiting = [rank for rank in range(self.world) if rank not in results and rank not in failures]
            left = until - time.monotonic()
            ready = multiprocessing.connection.wait([self._pipes[rank] for rank in waiting], max(left, 0.0))
            if not ready:
                break
            for rank in waiting:
                if self._pipes[rank] in ready:
                    try:
                        fine, value = self._pipes[rank].recv()
                    except (EOFError, ConnectionResetError):
                        fine, value = False, "the process died"
                    (results if fine else failures)[rank] = value
                    if not fine:
                        until = min(until, time.monotonic() + GRACE)
        if len(results) < self.world:
            silent = [rank for rank in range(self.world) if rank not in results and rank not in failures]
            self.stop()
            told = "\n".join(f"--- rank {rank}\n{text}" for rank, text in sorted(failures.items()))
            raise AssertionError(f"{where}{arguments}: ranks {silent} did not answer\n{told}")
        return [results[rank] for rank in range(self.world)]

    def stop(self) -> None:
        """End the workers; the next case starts new ones."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes, self._cases = [], [], 0
