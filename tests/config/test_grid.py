"""The map of ranks: every rank has its place, and groups are those of the mesh."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from gradatim.cli.main import main
from gradatim.config.grid import axis_sizes, coordinates, layout_text, place_text, rank_at, rank_map
from gradatim.config.settings import LayoutConfig


def test_ranks_and_places_are_one_to_one() -> None:
    sizes = axis_sizes(LayoutConfig(tp=2, pp=3, dp=4))
    places = [coordinates(rank, sizes) for rank in range(24)]
    assert [rank_at(sizes, place) for place in places] == list(range(24))
    assert places[1] == {"pp": 0, "dp": 0, "tp": 1}  # tp is innermost
    assert places[8] == {"pp": 1, "dp": 0, "tp": 0}  # pp outermost


def test_a_layout_is_named_by_what_differs_from_the_default() -> None:
    layout = LayoutConfig(tp=2, sequence_parallel=True, split=(3, 1), timeout=5.0, check=True)
    for fields in (asdict(layout), json.loads(json.dumps(asdict(layout)))):
        assert layout_text(fields) == "tp 2, sequence_parallel true, split 3,1"
    assert layout_text(asdict(LayoutConfig())) == layout_text({"of": "another version"}) == "one process"


def test_the_map_of_a_small_world() -> None:
    assert rank_map(LayoutConfig(tp=2, pp=2), [range(3), range(3, 4)]) == [
        "4 ranks: tp 2 × pp 2 × dp 1",
        "  rank 0, stage 0, shard 0: layers 0-2",
        "  rank 1, stage 0, shard 1: layers 0-2",
        "  rank 2, stage 1, shard 0: layers 3",
        "  rank 3, stage 1, shard 1: layers 3",
        "  tp 0+1  2+3: sum activations, every layer",
        "  pp 0→2  1→3: pass activations on and gradients back, every microbatch",
    ]
    assert rank_map(LayoutConfig(dp=2))[1:] == [
        "  rank 0, replica 0",
        "  rank 1, replica 1",
        "  dp 0+1: sum gradients, every step",
    ]


def test_the_map_of_a_large_world_stays_short() -> None:
    layout = LayoutConfig(tp=8, pp=64, dp=6, chunks=2)
    lines = rank_map(layout, [range(i, i + 1) for i in range(128)])
    assert len(lines) < 25
    assert lines[1] == "  ranks 0-47, stage 0: layers 0, 64"
    assert "  …" in lines
    assert lines[-1].startswith("  pp 0→48→…→3024  1→49→…→3025")
    assert "… 44 more" in lines[-1]


def test_a_place_names_the_axes_there_are() -> None:
    assert place_text(5, LayoutConfig(pp=2, dp=2, tp=2)) == "rank 5, stage 1, replica 0, shard 1"
    assert place_text(1, LayoutConfig(pp=2)) == "rank 1, stage 1"
    assert place_text(0, LayoutConfig()) == "rank 0"


def test_check_shows_the_map_and_stays_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", "gpt", "--layout.tp", "2", "--model.n_heads", "4", "--model.d_model", "256"]) == 0
    out = capsys.readouterr().out
    assert "# 2 ranks: tp 2 × pp 1 × dp 1\n#   rank 0, shard 0: layers 0-" in out
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(out, encoding="utf-8")
    assert main(["check", str(recipe), "--layout.split", "by-cost", "--json"]) == 0
