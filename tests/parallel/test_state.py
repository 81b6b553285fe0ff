"""A checkpoint knows no layout; ranks save all or nothing, and agree on what is damaged."""

from __future__ import annotations

import errno
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import Pool
from test_optimizer import assemble
from work_gradients import ADAMW
from work_state import CONTEXT, GPT, VOCAB, load_fakes, save_fakes

from gradatim.models import build_model
from gradatim.parallel.state import rectangles
from gradatim.train.checkpoint import open_checkpoint
from gradatim.train.optimizer import build_optimizer
from gradatim.train.state import restore, state_tensors

OfWorld = Callable[[int], Pool]
LAYOUTS = [
    ((1, 1, 1), 0, 1), ((1, 2, 1), 0, 1), ((1, 2, 1), 1, 1), ((1, 1, 2), 0, 1), ((2, 1, 1), 0, 1), ((2, 1, 1), 0, 2),
    ((1, 4, 1), 1, 1), ((1, 2, 2), 1, 1), ((1, 2, 2), 0, 1), ((2, 2, 1), 1, 2), ((2, 1, 2), 1, 1),
]  # fmt: skip
"""(pp, dp, tp), zero, chunks."""


def title(layout: tuple[tuple[int, int, int], int, int]) -> str:
    (pp, dp, tp), zero, chunks = layout
    return f"pp{pp}-dp{dp}-tp{tp}-zero{zero}-chunks{chunks}"


def on_ranks(pool: OfWorld, what: str, folder: Path, layout: tuple[tuple[int, int, int], int, int]) -> list[Any]:
    world = math.prod(layout[0])
    if world == 1:
        return [{"save": save_fakes, "load": load_fakes}[what](0, 1, str(folder), *layout)]
    return pool(world).run(f"work_state:{what}_fakes", str(folder), *layout)


@pytest.mark.parametrize("saved", LAYOUTS, ids=title)
def test_saved_under_any_layout_loads_under_any_other(
    saved: tuple[tuple[int, int, int], int, int], tmp_path: Path, pool: OfWorld
) -> None:
    wanted = assemble(on_ranks(pool, "save", tmp_path, saved))
    whole = open_checkpoint(tmp_path / "step-00000003").tensors()
    assert whole.keys() == wanted.keys()
    assert all(torch.equal(whole[name], wanted[name]) for name in wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    for other in LAYOUTS:
        ranks = on_ranks(pool, "load", tmp_path, other)
        loaded = assemble(ranks)
        assert all(rank["steps"] == {3.0} for rank in ranks)
        assert loaded.keys() == wanted.keys()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted), title(other)


@pytest.mark.parametrize(("sizes", "zero"), [((1, 2, 1), 1), ((1, 2, 1), 0), ((2, 1, 1), 0), ((2, 2, 1), 1)])
def test_a_real_model_continues_in_one_process(
    sizes: tuple[int, int, int], zero: int, tmp_path: Path, pool: OfWorld
) -> None:
    wanted = assemble(pool(math.prod(sizes)).run("work_state:save_gpt", str(tmp_path), sizes, zero))
    checkpoint = open_checkpoint(tmp_path / "step-00000002")
    model = build_model(GPT, VOCAB, CONTEXT, 1)
    optimizer = build_optimizer(model, ADAMW)
    restore(checkpoint, model, optimizer, 1)
    ours = state_tensors(model, optimizer, None)
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_a_damaged_file_is_refused_by_all_and_named(tmp_path: Path, pool: OfWorld) -> None:
    layout = ((1, 2, 1), 1, 1)
    for step in ("step-00000001", "step-00000002"):
        on_ranks(pool, "save", tmp_path, layout)
        (tmp_path / "step-00000003").rename(tmp_path / step)
    on_ranks(pool, "save", tmp_path, layout)
    (tmp_path / "step-00000003" / "rank1.safetensors").unlink()
    path = tmp_path / "step-00000002" / "rank0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.truncate(path.with_name("rank1.safetensors"), 100)
    for world in (2, 4):
        for rejected, step in pool(world).run("work_state:refuse", str(tmp_path)):
            assert step == 3  # its manifest says so; the folder is step-00000001
            assert len(rejected) == 2
            assert "step-00000003/rank1.safetensors: cannot read the file" in rejected[0]
            assert "step-00000002/rank0.safetensors: wrong checksum" in rejected[1]
            assert "step-00000002/rank1.safetensors: wrong size" in rejected[1]
    (tmp_path / "step-00000001" / "manifest.json").write_text("{")
    for rejected, step in pool(2).run("work_state:refuse", str(tmp_path)):
        assert step is None
        assert rejected[2].count("not JSON") == 1, "what all ranks see is said once"


def test_another_model_is_refused_by_all(tmp_path: Path, pool: OfWorld) -> None:
    on_ranks(pool, "save", tmp_path, ((1, 1, 1), 0, 1))
    told = pool(2).run("work_state:other_model", str(tmp_path))
    assert told[0] == told[1]
    assert "the checkpoint has no parameter head.output.weight" in told[0]
    assert "the checkpoint has no moment head.output.weight/exp_avg_sq" in told[0]


@pytest.mark.parametrize(
    ("where", "who"), [("folder", 0), ("file", 0), ("file", 1), ("file", 3), ("manifest", 0), ("rename", 0)]
)
def test_a_full_disk_fails_everywhere_and_publishes_nothing(
    where: str, who: int, tmp_path: Path, pool: OfWorld
) -> None:
    on_ranks(pool, "save", tmp_path, ((1, 1, 1), 0, 1))
    told = pool(4).run("work_state:disk_full", str(tmp_path), where, who)
    assert told == [(errno.ENOSPC, f"rank {who}: No space left on device")] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    open_checkpoint(tmp_path / "step-00000003")


def test_replicas_share_the_writing(pool: OfWorld) -> None:
    mine = [{name for name, _ in rank} for rank in pool(4).run("work_state:many_pieces")]
    assert all(mine)
    assert not any(a & b for a, b in itertools.combinations(mine, 2))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 5), max_size=4), st.data())
def test_a_run_is_few_rectangles(shape: list[int], data: st.DataObject) -> None:
    size = math.prod(shape)
    begin = data.draw(st.integers(0, size))
    end = data.draw(st.integers(begin, size))
    numbers = torch.arange(size).view(shape)
    parts = list(rectangles(tuple(shape), begin, end))
    assert len(parts) <= max(1, 2 * len(shape) - 1)
    read = [numbers[tuple(slice(a, a + n) for a, n in zip(offset, box))].flatten() for offset, box in parts]
    assert (torch.cat(read) if read else torch.empty(0)).tolist() == list(range(begin, end))
