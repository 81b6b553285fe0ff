"""Folders of checkpoints under kills at the worst moments, and files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from gradatim.train import publish as module
from gradatim.train.publish import (
    list_checkpoints,
    prune,
    publish,
    remove_leftovers,
    replace_durably,
    set_aside,
    step_folder,
    step_of,
)


def folder(checkpoints: Path, step: int, suffix: str = "", content: str = "whole") -> Path:
    made = step_folder(checkpoints, step)
    made = made.with_name(made.name + suffix)
    made.mkdir()
    (made / "content").write_text(content)
    return made


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


class Died(BaseException):
    """Stands for a kill."""


def fail_second(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the second rename fail."""
    real, calls = Path.rename, iter(range(100))

    def rename(self: Path, target: Any) -> Path:
        if next(calls) == 1:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_killed_between_the_renames_the_only_checkpoint_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, temporary = folder(tmp_path, 2), folder(tmp_path, 2, ".tmp-7", "newer")
    with monkeypatch.context() as patch:
        fail_second(patch, Died())
        with pytest.raises(Died):
            publish(temporary, target)
    assert list_checkpoints(tmp_path) == []
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-00000002"]
    assert (target / "content").read_text() == "whole"


def test_a_second_rename_that_fails_undoes_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, temporary = folder(tmp_path, 2), folder(tmp_path, 2, ".tmp-7", "newer")
    with monkeypatch.context() as patch:
        fail_second(patch, OSError(errno.EIO, os.strerror(errno.EIO)))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            publish(temporary, target)
    assert (target / "content").read_text() == "whole"
    assert names(tmp_path) == ["step-00000002", "step-00000002.tmp-7"]


def test_what_was_replaced_or_pruned_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 3, 4):
        folder(tmp_path, step)
    folder(tmp_path, 4, ".old-7", "older")
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # killed before it is removed
        prune(tmp_path, 2, 4)
    assert f"step-00000002.pruned-{os.getpid()}" in names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    assert (tmp_path / "step-00000004" / "content").read_text() == "whole"


def test_what_is_newer_than_the_checkpoint_just_published_is_not_counted(tmp_path: Path) -> None:
    for step in (2, 3, 8):
        folder(tmp_path, step)
    prune(tmp_path, 1, 3)
    assert names(tmp_path) == ["step-00000003", "step-00000008"]


def test_what_was_set_aside_is_neither_listed_nor_removed(tmp_path: Path) -> None:
    for expected in ("step-00000002.damaged", "step-00000002.damaged-2"):
        aside = set_aside(folder(tmp_path, 2))
        assert aside is not None
        assert aside.name == expected
    folder(tmp_path, 1)
    remove_leftovers(tmp_path)
    prune(tmp_path, 1, 1)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [1]
    assert len(names(tmp_path)) == 3


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    replace_durably(path, b"old")
    for error in (OSError(errno.ENOSPC, "full"), Died()):

        def full(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(module.os, "fsync", full)
            with pytest.raises(type(error)):
                replace_durably(path, b"new and longer")
        assert path.read_bytes() == b"old"
    replace_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["config.yaml"]
