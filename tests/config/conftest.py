"""Recipes for the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from example_recipes import recipes

__all__ = ["recipes"]
