"""Whose fault it was: from what ranks said, what they were doing, and how their processes ended, one error to show.

A rank that dies takes its peers' connections with it, and a rank that hangs makes its peers time out, so most of what
is raised in a failing run is a consequence. The cause is, in this order: a process that died without a word; the first
error that is no lost connection; of a hang, the rank that does not answer, or that others wait for.
"""

from __future__ import annotations

import builtins
import signal
from collections.abc import Mapping
from pathlib import Path

from gradatim.config.grid import place_text
from gradatim.config.settings import LayoutConfig
from gradatim.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GradatimError,
    HangError,
    Interrupted,
    LaunchError,
    NonFiniteError,
    Problem,
    ReplicaError,
)
from gradatim.parallel.watch import Record, Testimony, first_testimony, records, witnesses

CLASSES: dict[int, type[GradatimError]] = {
    cls.exit_code: cls
    for cls in (
        ConfigError, DataError, CheckpointError, LaunchError, Interrupted, NonFiniteError, HangError, ReplicaError
    )
}  # fmt: skip
"""Exit code: the error that has it."""
REBUILT = ("MemoryError", "OSError", "FileNotFoundError", "PermissionError", "ModuleNotFoundError")
"""Python's own errors that the command line has words for."""


class RankError(RuntimeError):
    """A defect that showed in one rank; its traceback is attached as a note."""


def verdict(folder: Path, layout: LayoutConfig, exits: Mapping[int, int] | None = None) -> Exception:
    """The error to show for a run whose ranks wrote in ``folder``.

    Args:
        exits: exit codes of the processes that ended by themselves, by rank, negative for signals; None where the
            ranks are not our children, so that one can only look whether they live.
    """
    found, said, first = records(folder), witnesses(folder), first_testimony(folder)
    if exits is None:
        died = {rank: 0 for rank, record in found.items() if rank not in said and not record.alive}
    else:
        died = {rank: code for rank, code in exits.items() if rank not in said and (code < 0 or rank in found)}
    if first is not None and first.kind == "hang":
        silent = [rank for rank in found if rank not in said]
        return _hang(layout, found, said, silent)
    if died:
        rank = min(died, key=lambda r: found[r].when if r in found else 0.0)
        if -died[rank] == signal.SIGABRT and first is None:  # NCCL ends processes itself where its time is up
            return _hang(layout, found, said, [])
        return _death(layout, rank, died[rank], found.get(rank))
    if first is not None and first.kind == "error":
        return rebuilt(first, layout)
    if first is not None:
        return _lost(layout, first)
    return _silent(exits or {})


def _named(layout: LayoutConfig, rank: int, action: str) -> str:
    """``rank 1, stage 1, step 7, action 1F3``."""
    return f"{place_text(rank, layout)}, {action}" if action else place_text(rank, layout)


def rebuilt(testimony: Testimony, layout: LayoutConfig) -> Exception:
    """The error that a rank told of, with the rank and its action in it."""
    name = _named(layout, testimony.rank, testimony.action)
    if testimony.problems:
        cls = CLASSES.get(testimony.exit_code, GradatimError)
        suffix = f" ({name})" if testimony.action else ""
        return cls(*(Problem(**{**told, "what": told["what"] + suffix}) for told in testimony.problems))
    told = testimony.error
    error: Exception
    if told["class"] == "OutOfMemoryError" or told["class"] == "MemoryError":
        error = MemoryError(f"{name}: {told['text']}".split("\n")[0])
    elif told["class"] == "ModuleNotFoundError":
        error = ModuleNotFoundError(told["text"], name=told.get("name"))
    elif isinstance(told.get("errno"), int) and issubclass(getattr(builtins, told["class"], object), OSError):
        error = OSError(told["errno"], told.get("strerror", ""), told.get("filename"))
    else:
        first = told["text"].split("\n")[0]
        error = RankError(f"{name}: {told['class']}: {first}")
    error.add_note(f"In {name}:\n{testimony.trace}")
    return error


def _death(layout: LayoutConfig, rank: int, code: int, record: Record | None) -> LaunchError:
    how = f" (exit code {code})" if code > 0 else ""
    if code < 0:
        try:
            how = f" ({signal.Signals(-code).name})"
        except ValueError:
            how = f" (signal {-code})"
    memory = code in (0, -signal.SIGKILL)
    return LaunchError(
        Problem(
            where=_named(layout, rank, record.action if record else ""),
            what=f"the process died{how}",
            attempt="--resume goes on from the last checkpoint"
            + ("; a smaller --layout.microbatch if memory was short (dmesg tells)" if memory else ""),
        )
    )


def _hang(
    layout: LayoutConfig, found: Mapping[int, Record], said: Mapping[int, Testimony], silent: list[int]
) -> HangError:
    """Name the rank that the others wait for: silent, or busy with something else, or the longest without news."""
    busy = [rank for rank, testimony in said.items() if not testimony.waiting]
    suspects = silent or busy or list(found)
    rank = min(suspects, key=lambda r: found[r].when if r in found else 0.0)
    at = said[rank].at if rank in said else ""
    return HangError(
        Problem(
            where=_named(layout, rank, found[rank].action if rank in found else ""),
            what="the other ranks waited in vain for this one",
            got=f"at {at}" if at else "no answer at all",
            allowed=f"{layout.timeout:g} seconds (layout.timeout)",
            attempt="--resume goes on from the last checkpoint; a longer --layout.timeout if it was only slow",
        )
    )


def _lost(layout: LayoutConfig, first: Testimony) -> LaunchError:
    return LaunchError(
        Problem(
            where=_named(layout, first.rank, first.action),
            what="the connection to another rank was lost",
            got=str(first.error.get("text", "")).split("\n")[0][:300],
            attempt="look for the rank that ended first in the other machines' output, then --resume",
        )
    )


def _silent(exits: Mapping[int, int]) -> LaunchError:
    told = ", ".join(f"rank {rank}: {code}" for rank, code in sorted(exits.items()))
    return LaunchError(
        Problem(
            where="launch",
            what="the workers ended before they began",
            got=f"exit codes {told}" if told else "",
            attempt="gradatim train with a layout of one rank shows whether this machine can train at all",
        )
    )
