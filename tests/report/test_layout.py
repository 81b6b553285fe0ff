"""A run of several ranks: the map of them, and their pipeline measured beside simulated, if it is this layout's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradatim.config.settings import GptConfig, LayoutConfig, RunConfig
from gradatim.report.layout import draw, layout_sections, layout_text, read_timeline
from gradatim.schedules import build_schedule, simulate

PIPELINE = RunConfig(
    model=GptConfig(n_layers=4),
    layout=LayoutConfig(pp=2, chunks=2, schedule="interleaved", microbatch=2),
    global_batch=8,
)
ROWS: list[dict[str, Any]] = [{"step": n, "bubble_measured": 0.5, "bubble_simulated": 0.25} for n in (1, 2)]


def recorded(transfer: float = 0.004) -> dict[str, Any]:
    """As the engine leaves it: seconds, the measured one with transfers that take time."""
    schedule = build_schedule("interleaved", 2, 4, 2)

    def spans(wait: float) -> list[Any]:
        return [list(rank) for rank in simulate(schedule, lambda action: 0.01, wait).spans]

    return {"actions": schedule.text(), "measured": spans(transfer), "simulated": spans(0.0)}


def left(folder: Path, found: object) -> Path:
    (folder / "logs").mkdir()
    path = folder / "logs" / "timeline.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def test_both_timelines_are_drawn_on_one_scale(tmp_path: Path) -> None:
    found = read_timeline(left(tmp_path, recorded()), PIPELINE)
    assert found is not None
    assert found.bubble_measured > found.bubble_simulated > 0
    drawing = draw(found)
    assert "measured: bubble overhead" in drawing and "simulated: bubble overhead" in drawing
    assert "time, ms" in drawing and "2 chunks per rank" in drawing
    idle = [float(width) for width in re.findall(r'fill-opacity=".22" d="M[\d.]+ [\d.]+h([\d.]+)', drawing)][:2]
    lengths = [max(end for row in rows for _, _, end in row) for rows in (found.measured, found.simulated)]
    assert idle[0] / idle[1] == pytest.approx(lengths[0] / lengths[1], rel=0.01)


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {**recorded(), "measured": [[[0, 1]], []]},
        {**recorded(), "simulated": None},
        {**recorded(), "measured": "ab"},
        {**recorded(), "measured": [[[0, 0]] * 16] * 2},
        {**recorded(), "actions": [["0F0"], ["1F0"]]},
    ],
)
def test_what_is_damaged_or_of_another_layout_is_not_drawn(tmp_path: Path, found: object) -> None:
    path = left(tmp_path, found)
    assert read_timeline(path, PIPELINE) is None
    assert "No timeline" in "".join(layout_sections(tmp_path, PIPELINE, 64, []))


def test_torn_and_missing_files_are_not_drawn(tmp_path: Path) -> None:
    assert read_timeline(tmp_path / "none.json", PIPELINE) is None
    path = left(tmp_path, recorded())
    path.write_bytes(path.read_bytes()[:-30])
    assert read_timeline(path, PIPELINE) is None


def test_sections_follow_the_layout(tmp_path: Path) -> None:
    left(tmp_path, recorded())
    text = "".join(layout_sections(tmp_path, PIPELINE, 64, ROWS))
    assert text.count("<figure>") == text.count('role="img"') == 2
    assert "rank 1, stage 1: layers 1, 3" in text
    alone = replace(PIPELINE, layout=LayoutConfig())
    assert layout_sections(tmp_path, alone, 64, ROWS) == []
    replicas = "".join(layout_sections(tmp_path, replace(PIPELINE, layout=LayoutConfig(dp=2)), 64, []))
    assert "rank 1, replica 1" in replicas and "<figure>" not in replicas


def test_a_layout_in_a_line() -> None:
    assert layout_text(LayoutConfig(tp=2, sequence_parallel=True)) == "tp 2 × pp 1 × dp 1, sequence parallel"
    assert layout_text(PIPELINE.layout) == "tp 1 × pp 2 × dp 1, interleaved, 2 chunks per rank, microbatch 2"
    assert layout_text(LayoutConfig(dp=2, zero=1, recompute="full")) == "tp 1 × pp 1 × dp 2, zero 1, recompute full"
