"""What each rank is doing, who failed first, and whose fault it is. No torch: this must work when nothing else does.

Ranks share a folder. Each keeps a record there, a few bytes mapped into memory: writing costs a microsecond, and what
was written survives a kill. A rank that fails writes its testimony and links it as ``first.json``, which only one can:
the failures of its peers (lost connections, mostly) follow from it. A thread in every rank looks for that file and
ends its process, so that nobody is left waiting in a collective that a dead rank will never join.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from gradatim.errors import GradatimError, Interrupted, NonFiniteError

HEAD = struct.Struct("<dII")
"""Of a record: when, process, length of the text."""
RECORD = 512
FIRST = "first.json"
LOOK = 0.25
"""Seconds between two looks at the folder (eight times that in large worlds)."""
GATHER = 1.5
"""Seconds that the first to fail waits for the others' testimonies, where it takes those to tell whose fault it is."""
LINGER = 2.5
"""Seconds that the others give it to speak before they end; more than ``GATHER``."""

Kind = Literal["error", "hang", "lost", "peer"]


@dataclass(frozen=True, slots=True)
class Record:
    """What a rank was doing when it last told."""

    rank: int
    when: float
    pid: int
    host: str
    action: str

    @property
    def alive(self) -> bool:
        """Whether its process runs; taken for granted on other machines."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        with contextlib.suppress(OSError):  # the dead that nobody has buried yet
            return "\nState:\tZ" not in Path(f"/proc/{self.pid}/status").read_text()
        return True


@dataclass(frozen=True, slots=True)
class Testimony:
    """What a rank says when it fails, or when another did (``peer``)."""

    rank: int
    kind: Kind
    action: str = ""
    exit_code: int = 1
    problems: list[dict[str, str]] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)
    """Class and arguments of an error that is not ours."""
    trace: str = ""
    waiting: bool = True
    """Whether it was waiting for others."""
    at: str = ""
    """Line that it was in."""


class Watch:
    """A rank's part: its record, its testimony, its eye on the others."""

    def __init__(
        self, folder: Path, rank: int, world: int, end: Callable[[int], object] = os._exit, parent: int | None = None
    ) -> None:
        """``parent``: the process without which this one is to end; by default whose child it is now."""
        self.folder, self.rank, self.world, self.end = folder, rank, world, end
        self.step = ""
        self.action = ""
        path = folder / f"{rank}.record"
        path.write_bytes(bytes(RECORD))
        with path.open("r+b") as file:
            self._record = mmap.mmap(file.fileno(), RECORD)
        host = socket.gethostname().encode()[:100]
        self._record[RECORD - 101 : RECORD] = host.ljust(101, b"\0")
        self._stop = threading.Event()
        self._main = threading.main_thread().ident
        self._parent = os.getppid() if parent is None else parent
        self.report("")
        self._thread = threading.Thread(target=self._look, daemon=True, name="gradatim-watch")
        self._thread.start()

    def report(self, action: str) -> None:
        """Note what comes next."""
        self.action = f"{self.step}, {action}" if self.step and action else self.step or action
        text = self.action.encode()[: RECORD - HEAD.size - 101]
        self._record[: HEAD.size + len(text)] = HEAD.pack(time.time(), os.getpid(), len(text)) + text

    def close(self) -> None:
        """End of the watch: all went well, or somebody else shows what did not."""
        self._stop.set()
        self._thread.join()
        self._record.close()

    # ------------------------------------------------------------------ failing

    def fail(self, error: BaseException) -> bool:
        """Testify; whether this rank is the one to be heard.

        Connections that were lost follow from something: only where nobody tells what, this rank does.
        """
        testimony = testify(self.rank, error, self.action)
        if testimony.kind == "lost":
            until = time.monotonic() + GATHER
            while time.monotonic() < until and not (self.folder / FIRST).exists():
                time.sleep(LOOK / 5)
        first = self._claim(testimony)
        if first and testimony.kind == "hang":
            until = time.monotonic() + GATHER
            while time.monotonic() < until and len(witnesses(self.folder)) < self.world:
                time.sleep(LOOK / 5)
        return first

    def _claim(self, testimony: Testimony) -> bool:
        path = self.folder / f"{self.rank}.json"
        self._write(path, testimony)
        try:
            os.link(path, self.folder / FIRST)
        except FileExistsError:
            return False
        return True

    def _write(self, path: Path, testimony: Testimony) -> None:
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(testimony)), encoding="utf-8")
        draft.replace(path)

    # ------------------------------------------------------------------ the thread

    def _look(self) -> None:
        pause = LOOK if self.world <= 64 else 8 * LOOK
        while not self._stop.wait(pause):
            if os.getppid() != self._parent:  # whoever started us is gone, and nobody would end us
                self.end(5)
            if (self.folder / FIRST).exists():
                self._follow()
                return

    def _follow(self) -> None:
        """Another rank failed: say where this one stands, and end in a while if it does not by itself."""
        found = first_testimony(self.folder)
        own = self.folder / f"{self.rank}.json"
        if not own.exists():
            frame = sys._current_frames().get(self._main or 0)
            at, waiting = where(frame)
            trace = "".join(traceback.format_stack(frame)) if frame else ""
            self._write(own, Testimony(self.rank, "peer", self.action, trace=trace, waiting=waiting, at=at))
        if not self._stop.wait(LINGER):
            self.end(found.exit_code if found else 5)


def where(frame: FrameType | None) -> tuple[str, bool]:
    """The innermost line of a thread's Python code, and whether it waits for other ranks there."""
    if frame is None:
        return "", False
    file = frame.f_code.co_filename
    waiting = "torch/distributed" in file or "gradatim/parallel" in file or frame.f_code.co_name == "wait"
    shown = "/".join(Path(file).parts[-2:])
    return f"{shown}:{frame.f_lineno} in {frame.f_code.co_name}", waiting


def testify(rank: int, error: BaseException, action: str) -> Testimony:
    """An error, as far as it can be written down."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else ""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, GradatimError):
        whole = isinstance(error, (Interrupted, NonFiniteError))  # all ranks come to it at once
        problems = [asdict(problem) for problem in error.problems]
        return Testimony(rank, "error", "" if whole else action, error.exit_code, problems, {}, trace, False, at)
    told: dict[str, Any] = {"class": type(error).__name__, "text": str(error).strip()}
    for name in ("errno", "strerror", "filename", "name"):
        if isinstance(value := getattr(error, name, None), (str, int)):
            told[name] = value
    code = {"lost": 5, "hang": 12}.get(kind := kind_of(error), 1)
    return Testimony(rank, kind, action, code, [], told, trace, kind != "error", at)


def kind_of(error: BaseException) -> Kind:
    """Whether an error is the network's word for a rank that is gone, or for one that does not answer.

    torch.distributed raises RuntimeError for both (gloo) or a DistError (NCCL, stores), told apart by their text.
    """
    text = str(error).lower()
    names = {cls.__name__ for cls in type(error).__mro__}
    network = "DistError" in names or ("RuntimeError" in names and ("gloo" in text or "[c10d]" in text))
    if not network and not isinstance(error, ConnectionError):
        return "error"
    return "hang" if "timed out" in text or "timeout" in text else "lost"


# --------------------------------------------------------------------------- reading the folder


def records(folder: Path) -> dict[int, Record]:
    """Every rank's record."""
    found = {}
    for path in folder.glob("*.record"):
        content = path.read_bytes()
        if len(content) < RECORD:
            continue
        when, pid, length = HEAD.unpack_from(content)
        text = content[HEAD.size : HEAD.size + length].decode("utf-8", "replace")
        host = content[RECORD - 101 :].rstrip(b"\0").decode("utf-8", "replace")
        if pid:
            found[int(path.stem)] = Record(int(path.stem), when, pid, host, text)
    return found


def _read(path: Path) -> Testimony | None:
    try:
        return Testimony(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def witnesses(folder: Path) -> dict[int, Testimony]:
    """What ranks said, by rank."""
    found = [_read(path) for path in folder.glob("*.json") if path.stem.isdecimal()]
    return {testimony.rank: testimony for testimony in found if testimony is not None}


def first_testimony(folder: Path) -> Testimony | None:
    """Of the rank that failed first."""
    return _read(folder / FIRST)


# --------------------------------------------------------------------------- this process's

_current: list[Watch] = []


def set_watch(watch: Watch | None) -> None:
    """Make a watch this process's own, which ``report_action`` writes to."""
    _current[:] = [] if watch is None else [watch]


def report_action(text: str) -> None:
    """Note the action that comes next (``1F3``, ``save``), which is named if this rank fails there. A microsecond."""
    if _current:
        _current[0].report(f"action {text}")


def report_step(step: int) -> None:
    """Note the step, from 1, that this rank begins."""
    if _current:
        _current[0].step = f"step {step}"
        _current[0].report("")
