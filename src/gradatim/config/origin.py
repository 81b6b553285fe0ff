"""What ``init_from`` names, as far as the names of files tell: a run, a Hugging Face directory, or neither."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gradatim.config.decode import nearest
from gradatim.errors import Problem

TOKENIZER, SOURCE_TOKENIZER = "tokenizer.json", "source-tokenizer.json"
"""Of a run; the second is that of a translator's sources, where the languages do not share one."""


def is_run(path: Path) -> bool:
    """Whether training or ``gradatim import`` made this directory."""
    return (path / "config.yaml").is_file()


def is_hugging_face(path: Path) -> bool:
    """Whether it describes a model of theirs, or adapters of one."""
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


def nothing_to_start_from(path: Path) -> Problem | None:
    """What is wrong with a directory that has no weights; None where it seems to have some."""
    if is_run(path) or is_hugging_face(path):
        return None
    what = "there is neither a run nor a Hugging Face directory"
    beside: list[str] = []
    with contextlib.suppress(OSError):  # among its neighbours may be folders that nobody else may read
        beside += (other.name for other in path.parent.iterdir() if is_run(other))
    guess = nearest(path.name, beside)
    attempt = f"--init_from {path.parent / guess}" if guess else ""
    return Problem(where=str(path), what=what, allowed="a folder with config.yaml or config.json", attempt=attempt)
