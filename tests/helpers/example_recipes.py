"""Recipes for tests to work on; the packaged ones may be tuned at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

GPT = """\
steps: 3000
global_batch: 16
model: {kind: gpt, d_model: 192, n_layers: 4, n_heads: 6, dropout: 0.1}
optimizer: {lr: 1e-3, warmup: 100, min_lr: 1e-4}
"""


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where gpt.yaml, and lstm.yaml, window.yaml and ngram.yaml with nothing but their kind, lie."""
    monkeypatch.chdir(tmp_path)
    Path("gpt.yaml").write_text(GPT)
    for kind in ("lstm", "window", "ngram"):
        Path(f"{kind}.yaml").write_text(f"model: {{kind: {kind}}}")
