"""What is saved comes back bit for bit, whole or in slices; what is kept and what is pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from gradatim.errors import CheckpointError
from gradatim.train.checkpoint import (
    Checkpoint,
    best_valid,
    newest_valid,
    open_checkpoint,
    save_checkpoint,
    write_safetensors,
)
from gradatim.train.manifest import Manifest, Piece, TensorEntry, check_cover
from gradatim.train.publish import list_checkpoints, prune, remove_leftovers

TENSORS: dict[str, Tensor] = {
    "model/w": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "model/half": torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "model/double": torch.tensor([1e-300, 2.0], dtype=torch.float64),
    "carry/flags": torch.tensor([True, False, True]),
    "counter": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "strided": torch.arange(6.0).reshape(2, 3).T,
}


def manifest(step: int, valid_loss: float | None = None) -> Manifest:
    return Manifest(
        step=step, tokens=10 * step, samples=step, config_hash="c", data_fingerprint="d", tokenizer_fingerprint="t",
        counters={"valid_loss": valid_loss, "exact": 0.1 + 0.2},
    )  # fmt: skip


def save(folder: Path, step: int, valid_loss: float | None = None) -> Path:
    return save_checkpoint(folder, manifest(step, valid_loss), TENSORS)


def test_round_trip_is_exact_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = save(tmp_path, 5, 1.5)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.manifest.counters["exact"] == 0.1 + 0.2
    assert (checkpoint.step, checkpoint.manifest.tokens, checkpoint.manifest.valid_loss) == (5, 50, 1.5)
    for name, tensor in TENSORS.items():
        found = checkpoint.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    assert set(checkpoint.tensors("model/")) == {"w", "half", "double"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_the_files_are_plain_safetensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_slice_is_read_across_pieces_of_any_cut(tmp_path: Path) -> None:
    whole = torch.arange(6 * 5, dtype=torch.float32).reshape(6, 5)
    cuts = {"a": (0, 0, 4, 2), "b": (0, 2, 4, 3), "c": (4, 0, 2, 5)}
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    files, pieces = [], []
    for name, (i, j, m, n) in cuts.items():
        files.append(write_safetensors(folder / f"{name}.safetensors", {"w": whole[i : i + m, j : j + n]}))
        pieces.append(Piece(file=f"{name}.safetensors", key="w", offset=(i, j), shape=(m, n)))
    entry = TensorEntry(dtype="F32", shape=(6, 5), pieces=tuple(pieces))
    complete = Manifest(
        step=1, tokens=0, samples=0, config_hash="", data_fingerprint="", tokenizer_fingerprint="",
        files=tuple(files), tensors={"w": entry},
    )  # fmt: skip
    (folder / "manifest.json").write_text(complete.to_json())
    checkpoint = open_checkpoint(folder)
    assert torch.equal(checkpoint.read("w"), whole)
    for i, j, m, n in [(0, 0, 6, 5), (3, 1, 2, 3), (5, 4, 1, 1), (2, 0, 3, 0), (0, 3, 6, 2)]:
        assert torch.equal(checkpoint.read("w", (i, j), (m, n)), whole[i : i + m, j : j + n])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_cover_accepts_exactly_the_partitions(rows: int, columns: int, data: st.DataObject) -> None:
    """Cut a rectangle by rows, then each strip by columns; then move one piece by one."""
    pieces, top = [], 0
    while top < rows:
        height = data.draw(st.integers(1, rows - top))
        left = 0
        while left < columns:
            width = data.draw(st.integers(1, columns - left))
            pieces.append(Piece(file="f", key="k", offset=(top, left), shape=(height, width)))
            left += width
        top += height
    check_cover("w", TensorEntry(dtype="F32", shape=(rows, columns), pieces=tuple(pieces)))
    which = data.draw(st.integers(0, len(pieces) - 1))
    moved = pieces[which]
    shift = data.draw(st.sampled_from([(1, 0), (0, 1)]))
    offset = (moved.offset[0] + shift[0], moved.offset[1] + shift[1])
    pieces[which] = Piece(file="f", key="k", offset=offset, shape=moved.shape)
    with pytest.raises(CheckpointError, match=r"overlap|overruns"):
        check_cover("w", TensorEntry(dtype="F32", shape=(rows, columns), pieces=tuple(pieces)))


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, loss in [(1, 3.0), (2, 2.0), (3, None), (4, 2.5), (5, 2.0)]:
        save(tmp_path, step, loss)
        prune(tmp_path, keep=2, published=step)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [5, 4, 2]
    assert_step(best_valid(tmp_path)[0], 2)  # the earlier of equals
    assert_step(newest_valid(tmp_path)[0], 5)


def assert_step(checkpoint: Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.step == step


def test_without_evaluations_the_best_is_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert_step(best_valid(tmp_path)[0], 2)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, None)
    save(tmp_path, 1, 0.5)
    assert open_checkpoint(tmp_path / "step-00000001").manifest.valid_loss == 0.5
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_are_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in ("step-00000002.tmp-123", "step-00000001.old-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank0.safetensors").write_bytes(b"half")
    assert_step(newest_valid(tmp_path)[0], 1)
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor 'model/x'"):
        open_checkpoint(save(tmp_path, 1)).read("model/x")


def test_the_manifest_holds_no_random_state(tmp_path: Path) -> None:
    raw = json.loads((save(tmp_path, 1) / "manifest.json").read_text())
    assert not [key for key in str(raw).lower().split() if "rng" in key or "random" in key]
