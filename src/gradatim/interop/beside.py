"""What other programs' formats have no place for, in a file of ours beside theirs: how text is cut into documents.

A model that learned lines judges a text line by line; read as one document it would be asked for line ends that it
never saw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from gradatim.config.describe import hints
from gradatim.config.settings import DataConfig

NAME = "gradatim.json"
DOCUMENTS: tuple[str, ...] = get_args(hints(DataConfig)["document"])
"""What a document can be."""


def remember(folder: Path, data: DataConfig) -> None:
    """Write the file into a directory that was exported."""
    (folder / NAME).write_text(json.dumps({"document": data.document}) + "\n", encoding="utf-8")


def remembered(folder: Path) -> str | None:
    """What a document was, where the directory says so in a way that can be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))["document"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in DOCUMENTS else None
