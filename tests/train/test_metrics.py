"""Copies of the metrics for others: what is handed to them is complete when a run ends."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gradatim.config.settings import TrackConfig
from gradatim.train.metrics import MetricsLog


def test_trackers_get_their_rows_and_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")

    def offline() -> None:
        calls.append(("finish",))
        raise ConnectionError("offline")

    board.SummaryWriter = lambda folder: SimpleNamespace(  # type: ignore[attr-defined]
        add_scalar=lambda name, value, step: calls.append((name, value, step)), close=lambda: calls.append(("close",))
    )
    wandb.init = lambda **_: SimpleNamespace(  # type: ignore[attr-defined]
        log=lambda row, step: calls.append((row, step)), finish=offline
    )
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log = MetricsLog(tmp_path / "metrics.jsonl", TrackConfig(tensorboard=True, wandb="project"))
    log.write({"step": 1, "loss": 2.0})
    assert calls == [("step", 1, 1), ("loss", 2.0, 1), ({"step": 1, "loss": 2.0}, 1)]
    log.close()
    assert calls[3:] == [("finish",), ("close",)] or calls[3:] == [("close",), ("finish",)]
