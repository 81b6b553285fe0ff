"""Many processes for one command: own workers on this machine, or a place in a group that torchrun or Slurm started.

Own workers are children of torch.distributed's elastic agent (``torch.distributed.launcher.api``), which finds a port,
hands out ranks, and ends all workers when one fails. It runs in a thread here, so that signals stay ours: the first one
is handed to each worker once and the run ends after saving, a second one ends everything. What is run is named as
``module:function`` and called in every worker as ``function(group, **arguments)``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gradatim.config.derived import world_size
from gradatim.config.settings import LayoutConfig
from gradatim.errors import GradatimError, Interrupted, LaunchError, Problem
from gradatim.parallel.mesh import Mesh, create_mesh
from gradatim.parallel.place import Place
from gradatim.parallel.verdict import verdict
from gradatim.parallel.watch import FIRST, LINGER, Watch, records, set_watch
from gradatim.train.signals import SIGNALS

RESULT = "result.json"
PUT_DOWN = LINGER + 1.5
"""Seconds after the first failure when ranks that have not ended by themselves are killed."""


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that this one works with."""

    place: Place
    mesh: Mesh
    store: Any
    """Where ranks leave each other short notes."""

    @property
    def leads(self) -> bool:
        """Whether this is the first rank, which speaks for all."""
        return self.place.rank == 0

    def told(self, key: str, say: Callable[[], str]) -> str:
        """What the first rank says, which the others wait for, however long it takes."""
        if self.leads:
            self.store.set(f"gradatim/{key}", say())
        pause = 0.02
        while not self.store.check([f"gradatim/{key}"]):
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0)
        return str(self.store.get(f"gradatim/{key}").decode())


# --------------------------------------------------------------------------- joining


@contextlib.contextmanager
def joined(
    place: Place, layout: LayoutConfig, folder: Path | None = None, logs: Callable[[], Path] | None = None,
    launcher: int | None = None,
) -> Iterator[Group]:  # fmt: skip
    """The group of this process, while it lasts; how a rank fails is watched and told (``watch.py``).

    Args:
        folder: where ranks keep their records, if whoever started them made one.
        logs: else, the first rank's word for a folder that all machines see; not asked where there is one machine.
        launcher: the process that started this one; it may be gone by now.

    Raises:
        Failed: a rank failed, this one or another.
        LaunchError: the others cannot be found, or no device.
        Interrupted: the ranks agreed to stop.
    """
    watch = Watch(folder, place.rank, place.world, parent=launcher) if folder else None
    stopped = None
    try:
        group = _join(place, layout)
        watch = watch or Watch(_records_folder(group, logs), place.rank, place.world)
        set_watch(watch)
        try:
            yield group
        except Interrupted as interrupted:  # agreed upon, so all get here
            stopped = interrupted
        dist.barrier()  # no rank leaves while others may still wait for it; a hang is noticed even here
    except Exception as error:
        if watch is None:
            raise
        raise Failed(watch.fail(error), watch.folder) from error
    finally:
        set_watch(None)
    watch.close()
    dist.destroy_process_group()
    if folder is None and group.leads:
        shutil.rmtree(watch.folder, ignore_errors=True)
    if stopped is not None:
        raise stopped


def _join(place: Place, layout: LayoutConfig) -> Group:
    backend = _backend(place)
    timeout = timedelta(seconds=layout.timeout)
    host = f"[{place.address}]" if ":" in place.address else place.address
    url = f"tcp://{host}:{place.port}?rank={place.rank}&world_size={place.world}"
    try:
        store, _, _ = next(rendezvous(url, timeout=timeout))
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=timeout)
    except (RuntimeError, OSError) as error:
        raise LaunchError(
            Problem(
                where=f"{place.address}:{place.port}",
                what=f"rank {place.rank} of {place.world} cannot find the others",
                got=str(error).split("\n")[0][:300],
                attempt="is every rank started, and the first one's machine reachable under this name?",
            )
        ) from None
    return Group(place, create_mesh(layout), store)


class Failed(Exception):  # noqa: N818 - carries the word that one of many failed
    """A rank of this group failed; ``first`` says whether it is this process that tells."""

    def __init__(self, first: bool, folder: Path) -> None:
        super().__init__()
        self.first, self.folder = first, folder


def _backend(place: Place) -> str:
    """What moves tensors; the GPU of this rank, where there are some, becomes the current one."""
    if not torch.cuda.is_available():
        return "gloo"
    count = torch.cuda.device_count()
    if place.local_world > count:
        raise LaunchError(
            Problem(
                where=f"rank {place.rank}",
                what="this machine has fewer GPUs than ranks",
                got=f"{count} GPUs, {place.local_world} ranks",
                allowed="a GPU a rank",
                attempt="CUDA_VISIBLE_DEVICES= gradatim train … computes on the CPU",
            )
        )
    torch.cuda.set_device(place.local_rank)
    return "cpu:gloo,cuda:nccl"


def _records_folder(group: Group, logs: Callable[[], Path] | None) -> Path:
    """One folder for all ranks, made by the first; a machine that does not see it has one of its own."""

    def make() -> str:
        if logs is not None and group.place.local_world < group.place.world:
            with contextlib.suppress(OSError, GradatimError):  # which the run itself will meet, and tell
                folder = logs().absolute()
                folder.mkdir(parents=True, exist_ok=True)
                return tempfile.mkdtemp(prefix="ranks-", dir=folder)
        return tempfile.mkdtemp(prefix="gradatim-ranks-")

    folder = Path(group.told("ranks", make))
    return folder if folder.is_dir() else Path(tempfile.mkdtemp(prefix="gradatim-ranks-"))


# --------------------------------------------------------------------------- own workers


def launch(function: str, arguments: dict[str, Any], layout: LayoutConfig, logs: Path | None = None) -> Any:
    """Run ``function(group, **arguments)`` in as many processes as the layout has ranks; the first one's answer.

    Args:
        function: ``module:function``; arguments and answer are what JSON can hold.
        logs: where the ranks' tracebacks are left if the run fails, if that folder exists then.

    Raises:
        GradatimError: what ended the run: the first failing rank's error, a death (5), a hang (12).
    """
    with tempfile.TemporaryDirectory(prefix="gradatim-launch-") as name:
        folder = Path(name)
        job = {
            "function": function, "arguments": arguments, "layout": _layout_fields(layout), "launcher": os.getpid(),
            "command": sys.argv,
        }  # fmt: skip
        (folder / "job").write_text(json.dumps(job), encoding="utf-8")
        exits, received = _Agent(folder, world_size(layout)).run()
        answer = json.loads((folder / RESULT).read_text("utf-8")) if (folder / RESULT).exists() else None
        if not exits and answer is not None:
            if "problems" in answer:
                raise Interrupted(*(Problem(**told) for told in answer["problems"]))
            return answer["value"]
        if received is not None and any(code in (-received, 128 + received) for code in exits.values()):
            _end_by(received)  # it came before there was anything to save
        error = verdict(folder, layout, exits)
        keep_testimonies(folder, logs, error)
        raise error


def _layout_fields(layout: LayoutConfig) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in ("tp", "pp", "dp", "timeout")}


class _Agent:
    """The elastic agent in its thread, and this thread looking after it."""

    def __init__(self, folder: Path, world: int) -> None:
        self.folder, self.world = folder, world
        self.received: signal.Signals | None = None
        self.exits: dict[int, int] = {}
        self.put_down: set[int] = set()
        self.problem: BaseException | None = None

    def run(self) -> tuple[dict[int, int], signal.Signals | None]:
        """Exit codes of workers that failed by themselves, and the signal that came meanwhile."""
        thread = threading.Thread(target=self._work, name="gradatim-agent", daemon=True)
        with _environment_kept(), _quiet(), self._signals():
            thread.start()
            told: set[int] = set()
            failed_at = 0.0
            while thread.is_alive():
                thread.join(0.1)
                if self.received is not None:
                    told |= self._tell(told)
                if not failed_at and (self.folder / FIRST).exists():
                    failed_at = time.monotonic()
                if failed_at and time.monotonic() > failed_at + PUT_DOWN:
                    self._kill()
        if self.problem is not None:
            raise self.problem
        # Those that the agent or we ended on account of others say nothing about the cause.
        own = {rank: code for rank, code in self.exits.items() if rank not in self.put_down}
        if self.received != signal.SIGTERM:
            own = {rank: code for rank, code in own.items() if code != -signal.SIGTERM} or own
        return own, self.received

    def _work(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.world,
            run_id=self.folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "gradatim.parallel.worker", str(self.folder))
        except ChildFailedError as failure:
            self.exits = {rank: process.exitcode for rank, process in failure.failures.items()}
        except BaseException as error:
            self.problem = error

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals ask for an end; only the main thread may say so."""

        def handle(number: int, _: FrameType | None) -> None:
            if self.received is not None:
                self._kill()
                os._exit(128 + number)
            self.received = signal.Signals(number)

        here = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, handle) for number in SIGNALS} if here else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _tell(self, told: set[int]) -> set[int]:
        """Hand the signal to the workers that have not had it; those that are still to begin get it when they have."""
        assert self.received is not None
        found = {rank: record.pid for rank, record in records(self.folder).items() if rank not in told}
        for pid in found.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self.received)
        return set(found)

    def _kill(self) -> None:
        for rank, record in records(self.folder).items():
            if record.alive:
                self.put_down.add(rank)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGKILL)


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what torch sets in passing."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the agent's own report of failures: ours says who, where and what to try, once."""
    loggers = [logging.getLogger(f"torch.distributed.{name}") for name in ("elastic", "launcher")]
    before = [logger.propagate for logger in loggers]
    silent = logging.NullHandler()  # else logging's last resort would print it
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(silent)
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before):
            logger.propagate = propagate
            logger.removeHandler(silent)


def _end_by(number: signal.Signals) -> None:
    """End as the process would have that was waiting here when the signal came."""
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(1)


def keep_testimonies(folder: Path, logs: Path | None, error: BaseException) -> None:
    """Leave what ranks said of a death, a hang or a defect in the run's logs, tracebacks as text."""
    if logs is None or not logs.is_dir() or (isinstance(error, GradatimError) and error.exit_code not in (5, 12)):
        return
    with contextlib.suppress(OSError):
        for path in folder.glob("*.json"):
            if path.stem.isdecimal():
                told = json.loads(path.read_text("utf-8"))
                text = f"{told['kind']} in {told['action'] or 'no action'}\n{told['trace']}"
                (logs / f"failure-rank{told['rank']}.txt").write_text(text, encoding="utf-8")
