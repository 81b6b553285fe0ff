"""What tests of bad input share: a small text, the smallest networks, and copies of what is to be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

LINES = ["the more i read the more i learn", "and i like it more than anything"]
CONTEXT = 8
CHARS = ["--data.document", "line", "--data.tokenizer.kind", "char"]
NEURAL = [
    *CHARS, "--steps", "2", "--context", str(CONTEXT), "--global-batch", "4", "--model.d_model", "8",
    "--model.n_layers", "1",
]  # fmt: skip
GPT = [*NEURAL, "--model.n_heads", "2"]
Refused = Callable[..., list[dict[str, str]]]
Answer = Callable[..., tuple[Any, str]]
Run = Callable[..., tuple[int, Any, str]]


def copy(source: Path) -> Path:
    """Put a copy into the working folder."""
    return Path(shutil.copytree(source, Path.cwd() / source.name))
