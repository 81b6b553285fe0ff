"""The demo from end to end, with a few steps a network; what it leaves is read by ``gradatim report``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradatim.cli.demo import RUNGS, unused
from gradatim.config import load_config


def gradatim(*args: str, cwd: Path) -> Any:
    ended = subprocess.run(
        [sys.executable, "-m", "gradatim", *args, "--json"], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


def test_fresh_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    assert unused(root) == root
    root.mkdir()
    (tmp_path / "demo-2").mkdir()
    assert unused(root) == tmp_path / "demo-3"


def test_points_of_one_figure_stand_on_the_same_bytes() -> None:
    for recipe in RUNGS.values():
        config = load_config(recipe, {})
        assert config.evaluation.tokens is None, f"{recipe} is judged on a part of the validation text"
        assert config.data.tokenizer == load_config("demo", {}).data.tokenizer


@pytest.mark.slow
def test_demo_compares_all_rungs_and_reuses_them(tmp_path: Path) -> None:
    first, _ = gradatim("demo", "--steps", "2", cwd=tmp_path)
    assert [r["name"] for r in first["rungs"]] == list(RUNGS)
    for rung in first["rungs"]:
        assert 1.0 < rung["bits_per_byte"] < 8.0
        assert set(rung["completions"]) == {"greedy", "sampled", "beam"}
    bits = {r["name"]: r["bits_per_byte"] for r in first["rungs"]}
    assert bits["Kneser-Ney 5-gram"] < bits["bigram"]
    assert (tmp_path / "runs/demo/report.html").is_file()

    again, told = gradatim("demo", "--steps", "2", cwd=tmp_path)
    assert told.count("steps that are done are not repeated") == len(RUNGS)
    assert [r["bits_per_byte"] for r in again["rungs"]] == list(bits.values())
    assert [r["seconds"] for r in again["rungs"]] == [r["seconds"] for r in first["rungs"]]

    page, _ = gradatim("report", "runs/demo", "--out", "again.html", cwd=tmp_path)
    assert page["bytes"] == (tmp_path / "again.html").stat().st_size
