"""The folders of a run's checkpoints: published by one rename, kept or pruned, put right after a kill.

step-00000500                 published: whole, or damaged since
step-00000500.tmp-<pid>       being written
step-00000500.old-<pid>       about to be replaced: whole, and put back where its successor never came
step-00000500.pruned-<pid>    being removed
step-00000500.damaged         refused by a run that was resumed; no longer counted, and left to people
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from gradatim.errors import CheckpointError
from gradatim.train.manifest import read_manifest

_STEP_FOLDER = re.compile(r"step-(\d{8,})\Z")
_LEFTOVER = re.compile(r"(step-\d{8,})\.(tmp|old|pruned)-\d+\Z")

DRAFT = ".draft"
"""Ending of a file that is about to replace another."""


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies: ``checkpoints/step-00000500``."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a published checkpoint, by its name."""
    return int(folder.name.removeprefix("step-"))


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Published checkpoints, newest first; not verified."""
    found = []
    if checkpoints.is_dir():
        for folder in checkpoints.iterdir():
            if match := _STEP_FOLDER.match(folder.name):
                found.append((int(match[1]), folder))
    return [folder for _, folder in sorted(found, reverse=True)]


# --------------------------------------------------------------------------- publishing


def new_temporary(checkpoints: Path, step: int) -> Path:
    """Make the folder in which a checkpoint is written until it is published; the name is this process' own."""
    temporary = checkpoints / f"{step_folder(checkpoints, step).name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Write a file that may be there already; killed at any moment, either the old content is there or the new."""
    draft = path.with_name(path.name + DRAFT)
    try:
        write_durably(draft, data)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def publish(temporary: Path, target: Path) -> None:
    """Give a complete folder its final name, in one rename, and wait until the disk has the name."""
    fsync_folder(temporary)
    if not target.exists():
        temporary.rename(target)
        fsync_folder(target.parent)
        return
    # Saved before its evaluation was done, and now again. Killed between the renames, it is put back at the next start.
    aside = _named(target, "old")
    shutil.rmtree(aside, ignore_errors=True)
    target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise
    fsync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _named(folder: Path, purpose: str) -> Path:
    return folder.with_name(f"{folder.name}.{purpose}-{os.getpid()}")


def fsync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------- keeping


def prune(checkpoints: Path, keep: int, published: int) -> None:
    """Remove all but the newest ``keep`` checkpoints and the one of lowest validation loss.

    Called only after that of step ``published`` has been, so what remains always includes a whole one; newer ones,
    which the run has passed over, are neither counted nor removed. What cannot be removed is left for the next time:
    tidying never ends a run.
    """
    folders = [folder for folder in list_checkpoints(checkpoints) if step_of(folder) <= published]
    best: tuple[float, int, Path] | None = None
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except CheckpointError:
            continue
        if manifest.valid_loss is not None:
            candidate = (manifest.valid_loss, manifest.step, folder)
            best = candidate if best is None else min(best, candidate)
    for folder in folders[max(keep, 1) :]:
        if best is None or folder != best[2]:
            # Renamed first: a removal that is interrupted must not leave half a checkpoint under a good name.
            with contextlib.suppress(OSError):
                doomed = _named(folder, "pruned")
                folder.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(checkpoints: Path) -> None:
    """Tidy up after a killed process: put back what it was about to replace, unless it has; remove what is half
    written or half removed. Only for the holder of the run's lock.
    """
    if not checkpoints.is_dir():
        return
    for folder in list(checkpoints.iterdir()):
        if (match := _LEFTOVER.match(folder.name)) is None:
            continue
        target = folder.with_name(match[1])
        if match[2] == "old" and not target.exists():
            with contextlib.suppress(OSError):
                folder.rename(target)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder: Path) -> Path | None:
    """Rename a checkpoint that was found damaged, so that it is neither counted nor in the way; its new name, or None
    where it cannot be renamed.

    Only once a whole one has been found: a run without any must go on being refused.
    """
    for name in ("damaged", *(f"damaged-{number}" for number in range(2, 100))):
        if not (aside := folder.with_name(f"{folder.name}.{name}")).exists():
            with contextlib.suppress(OSError):
                return folder.rename(aside)
            return None
    return None
