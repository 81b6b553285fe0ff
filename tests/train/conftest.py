"""Small runs for the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from small_runs import make_config, text

__all__ = ["make_config", "text"]
