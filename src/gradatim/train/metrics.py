"""Metrics: ``metrics.jsonl`` always, TensorBoard and Weights & Biases where asked for, and lines for people to watch.

Rows carry ``attempt``, how many times the run had been started: rows after the checkpoint that a resumed run continues
from are superseded by those of the next attempt, and ``read_metrics`` leaves them out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gradatim.config.settings import TrackConfig
from gradatim.errors import LaunchError, Problem

Tracker = Callable[[dict[str, float], int], object]

QUIET_SECONDS = 10.0
"""Time between lines where there is no terminal."""


class MetricsLog:
    """Writes one JSON object a row; ``sync`` waits until the disk has them all.

    A full disk never ends a run: rows that could not be written are kept and tried again with the next one.
    """

    def __init__(self, path: Path, track: TrackConfig) -> None:
        rows = _last_row(path)
        self.attempt = rows["attempt"] + 1 if rows else 1
        self._pending = bytearray()
        self._trackers = list(_trackers(path.parent, track))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if _is_torn(path):  # end the half row of a killed process, so that the next stands on a line of its own
            self._pending += b"\n"

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; numbers that are not finite become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._pending += (json.dumps({**clean, "attempt": self.attempt}) + "\n").encode()
        with contextlib.suppress(OSError):
            self._flush()
        for track, _ in self._trackers:
            track({k: v for k, v in clean.items() if isinstance(v, int | float)}, row["step"])

    def _flush(self) -> None:
        while self._pending:
            del self._pending[: os.write(self._descriptor, self._pending)]

    def sync(self) -> None:
        """Return when all rows are on disk. Raises OSError where it does not take them."""
        self._flush()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what can be written, and close."""
        with contextlib.suppress(OSError):
            self.sync()
        os.close(self._descriptor)
        for _, close in self._trackers:
            with contextlib.suppress(Exception):  # theirs are copies of what is on disk: a run does not fail for them
                close()


class NoLog:
    """The log of a process that has none to keep: another one of its run does."""

    def write(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    close = sync


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows in order of step. A row supersedes earlier ones of its step and of later steps, which an attempt before it
    wrote after the checkpoint that was continued from; a line torn by a crash is passed over.
    """
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                step = row["step"]
            except (ValueError, TypeError, KeyError):
                continue
            while rows and rows[-1]["step"] >= step:
                rows.pop()
            rows.append(row)
    return rows


def _last_row(path: Path) -> dict[str, Any] | None:
    rows = read_metrics(path)
    return rows[-1] if rows else None


def _is_torn(path: Path) -> bool:
    return path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


def _trackers(directory: Path, track: TrackConfig) -> Iterator[tuple[Tracker, Callable[[], object]]]:
    """What takes rows as well, each with what ends it: both hold rows back, and a worker ends without asking."""
    if track.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("track.tensorboard", "tensorboard") from None
        writer = SummaryWriter(str(directory / "tensorboard"))

        def tensorboard(row: dict[str, float], step: int) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, step)

        yield tensorboard, writer.close
    if track.wandb is not None:
        try:
            import wandb
        except ImportError:
            raise _missing("track.wandb", "wandb") from None
        run = wandb.init(project=track.wandb, dir=str(directory), name=directory.name)
        yield lambda row, step: run.log(row, step=step), run.finish


def _missing(where: str, package: str) -> LaunchError:
    return LaunchError(
        Problem(where=where, what=f"{package} is not installed", attempt="pip install 'gradatim[track]'")
    )


class Progress:
    """What people see of a training run: a moving line on a terminal, a plain line now and then elsewhere."""

    def __init__(self, steps: int, first: int, quiet: bool = False) -> None:
        self.steps, self.first, self.quiet = steps, first, quiet
        self.started = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def step(self, row: dict[str, Any]) -> None:
        """After every update."""
        now = time.monotonic()
        done = row["step"]
        wait = 0.1 if self.terminal else QUIET_SECONDS
        if self.quiet or (now - self.last < wait and done != self.steps):
            return
        self.last = now
        left = (now - self.started) / max(1, done - self.first) * (self.steps - done)
        text = (
            f"step {done}/{self.steps}  loss {row['loss'] if row['loss'] is not None else math.nan:.4f}  "
            f"{row['tokens_per_second']:,.0f} tokens/s  {_clock(left)} left"
        )
        if "bubble_measured" in row:
            text += f"  bubble {row['bubble_measured']:.3f} ({row['bubble_simulated']:.3f} simulated)"
        self._print(text, keep=not self.terminal)

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self._print(text, keep=True)

    def _print(self, text: str, keep: bool) -> None:
        start = "\r\x1b[K" if self.terminal else ""
        print(start + text, end="\n" if keep else "", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
