"""Checkpoints damaged, incomplete or hostile: refused by name, passed over by ``--resume``, never half believed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError, GradatimError, Interrupted
from gradatim.train import Run, train
from gradatim.train.checkpoint import newest_valid, open_checkpoint, save_checkpoint
from gradatim.train.loop import Trainer
from gradatim.train.manifest import MANIFEST_NAME, Manifest
from gradatim.train.publish import list_checkpoints

MakeConfig = Callable[..., RunConfig]
SHARD = "rank0.safetensors"


def make(folder: Path, step: int = 2) -> Path:
    tensors = {"model/w": torch.arange(12.0).reshape(3, 4) + step, "model/b": torch.ones(4)}
    manifest = Manifest(
        step=step, tokens=1, samples=1, config_hash="c", data_fingerprint="d", tokenizer_fingerprint="t"
    )
    return save_checkpoint(folder, manifest, tensors)


def flip(path: Path, byte: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    change(raw)
    (folder / MANIFEST_NAME).write_text(json.dumps(raw))


class Bomb:
    """A pickle that makes a marker file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (lambda f: flip(f / SHARD), "wrong checksum"),
    "one bit of the header": (lambda f: flip(f / SHARD, 12), "wrong checksum"),
    "truncated": (lambda f: os.truncate(f / SHARD, 100), "wrong size"),
    "longer": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes() + b"x"), "wrong size"),
    "zeroed": (lambda f: (f / SHARD).write_bytes(bytes((f / SHARD).stat().st_size)), "wrong checksum"),
    "deleted": (lambda f: (f / SHARD).unlink(), "cannot read the file"),
    "no manifest": (lambda f: (f / MANIFEST_NAME).unlink(), "cannot read the manifest"),
    "empty manifest": (lambda f: (f / MANIFEST_NAME).write_text(""), "not JSON"),
    "torn manifest": (lambda f: os.truncate(f / MANIFEST_NAME, 200), "not JSON"),
    "binary manifest": (lambda f: (f / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "deep manifest": (lambda f: (f / MANIFEST_NAME).write_text("[" * 200_000), "not JSON"),
    "list manifest": (lambda f: (f / MANIFEST_NAME).write_text("[]"), "not a manifest"),
    "another version": (lambda f: edit(f, lambda m: m.update(version=99)), "not a manifest this version reads"),
    "no step": (lambda f: edit(f, lambda m: m.pop("step")), "lacks a field"),
    "negative step": (lambda f: edit(f, lambda m: m.update(step=-1)), "lacks a field or has one of the wrong type"),
    "step is text": (lambda f: edit(f, lambda m: m.update(step="2")), "lacks a field or has one of the wrong type"),
    "dtype": (lambda f: edit(f, lambda m: m["tensors"]["model/w"].update(dtype="F64")), "not what the manifest says"),
    "unknown dtype": (lambda f: edit(f, lambda m: m["tensors"]["model/w"].update(dtype="F4")), "unknown dtype"),
    "no pieces": (lambda f: edit(f, lambda m: m["tensors"]["model/w"].update(pieces=[])), "do not cover"),
    "a piece twice": (
        lambda f: edit(f, lambda m: m["tensors"]["model/w"]["pieces"].append(m["tensors"]["model/w"]["pieces"][0])),
        "do not cover",
    ),
    "enormous": (lambda f: edit(f, lambda m: m["tensors"]["model/w"].update(shape=[1 << 60, 1 << 60])), "do not cover"),
    "other key": (
        lambda f: edit(f, lambda m: m["tensors"]["model/w"]["pieces"][0].update(key="model/x")), "has no 'model/x'",
    ),
    "path": (lambda f: edit(f, lambda m: m["files"][0].update(name="../../secret")), "not named plainly"),
    "absolute path": (lambda f: edit(f, lambda m: m["files"][0].update(name="/etc/passwd")), "not named plainly"),
    "stray file": (
        lambda f: edit(f, lambda m: m["tensors"]["model/w"]["pieces"][0].update(file="x.safetensors")), "is not listed",
    ),
    "huge header": (
        lambda f: (
            (f / SHARD).write_bytes((1 << 62).to_bytes(8, "little") + bytes(64)),
            edit(f, lambda m: m["files"][0].update(bytes=72, crc32=__import__("zlib").crc32((f / SHARD).read_bytes()))),
        ),
        "not a readable safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_refused_by_name_and_passed_over(damage: str, tmp_path: Path) -> None:
    make(tmp_path, 1)
    newer = make(tmp_path, 2)
    apply, message = DAMAGE[damage]
    apply(newer)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(newer)
    assert str(newer) in str(caught.value)
    found, rejected = newest_valid(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [str(error) for error in rejected] == [str(caught.value)]
    assert time.monotonic() - started < 5


def test_links_and_pipes_are_not_opened(tmp_path: Path) -> None:
    for number, (name, replace) in enumerate(
        [(n, how) for n in (SHARD, MANIFEST_NAME) for how in ("link", "fifo", "folder")], start=1
    ):
        folder = make(tmp_path, number)
        copy = tmp_path / f"copy{number}"
        shutil.copy(folder / name, copy)
        (folder / name).unlink()
        if replace == "link":
            (folder / name).symlink_to(copy)
        elif replace == "fifo":
            os.mkfifo(folder / name)
        else:
            (folder / name).mkdir()
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


def test_nothing_is_ever_unpickled(make_config: MakeConfig, tmp_path: Path) -> None:
    """A pickle in the place of each file of a run: refused, and its marker never appears."""
    config, marker = make_config("gpt", 2), tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    pickle.loads(bomb)
    marker.rmdir()
    train(config, tmp_path / "run")
    (folder, *_) = list_checkpoints(tmp_path / "run" / "checkpoints")
    for victim in (folder / SHARD, folder / MANIFEST_NAME, tmp_path / "run" / "tokenizer.json"):
        before = victim.read_bytes()
        victim.write_bytes(bomb)
        with pytest.raises(GradatimError):
            Run.open(tmp_path / "run").model("last")
        victim.write_bytes(before)
    assert not marker.exists()


def test_resume_falls_back_says_why_and_ends_equal(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("gpt", 8)
    train(config, tmp_path / "straight")
    train(config, tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    expected = open_checkpoint(newest).tensors()
    flip(newest / SHARD)
    said: list[str] = []
    assert train(config, tmp_path / "run", resume=True, say=said.append).step == 8
    assert any("wrong checksum" in line and newest.name in line for line in said)
    again = open_checkpoint(newest).tensors()
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_a_damaged_checkpoint_outlives_no_whole_one(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``keep: 1`` the newest alone is kept: a damaged one that is newer is not it."""
    train(make_config("gpt", 4, evaluation__every=100), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    flip(checkpoints / "step-00000004" / SHARD)
    real = Trainer._step

    def signalled(self: Trainer) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    config = make_config("gpt", 8, evaluation__every=100, checkpoint__every=100, checkpoint__keep=1)
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", signalled)
        with pytest.raises(Interrupted, match="after step 3"):
            train(config, tmp_path / "run", resume=True, say=said.append)
    assert any("step-00000004 is called step-00000004.damaged from now on" in line for line in said)
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["step-00000003", "step-00000004.damaged"]
    assert train(config, tmp_path / "run", resume=True).step == 8
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["step-00000004.damaged", "step-00000008"]


def test_an_explicit_step_never_falls_back(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config("gpt", 8), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    newest = list_checkpoints(run.checkpoints)[0]
    flip(newest / SHARD)
    with pytest.raises(CheckpointError, match="wrong checksum"):
        run.checkpoint("8")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run.checkpoint("3")
    with pytest.raises(CheckpointError, match="no checkpoint is called"):
        run.checkpoint("newest")
    assert run.checkpoint("last").step < 8


def test_all_damaged_is_an_error_with_every_reason(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("gpt", 4)
    train(config, tmp_path / "run")
    folders = list_checkpoints(tmp_path / "run" / "checkpoints")
    for folder in folders:
        flip(folder / SHARD)
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be used") as caught:
        train(config, tmp_path / "run", resume=True)
    assert len(caught.value.problems) == 1 + len(folders) > 1
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == folders  # else the next attempt would begin anew


def test_reading_a_run_says_which_checkpoint_it_passed_over(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config("gpt", 4, checkpoint__every=2), tmp_path / "run")
    newest = max((tmp_path / "run/checkpoints").iterdir())
    (newest / "rank0.safetensors").write_bytes(b"torn")
    said: list[str] = []
    found = Run.open(tmp_path / "run").checkpoint("last", said.append)
    assert found.step < 4
    assert "passed over a checkpoint" in said[0]
    assert newest.name in said[0]
    assert said[-1] == f"reading step {found.step} instead"
