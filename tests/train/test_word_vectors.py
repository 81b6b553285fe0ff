"""``word_vectors: counted``: the embedding begins as vectors of the text, once, and the rest as ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError, ConfigError
from gradatim.text.prepare import prepare
from gradatim.text.word_vectors import counted_vectors
from gradatim.train import Run, train
from gradatim.train.metrics import read_metrics
from gradatim.train.word_vectors import EMBEDDING

MakeConfig = Callable[..., RunConfig]
STILL: dict[str, object] = {
    "optimizer__lr": 1e-12, "optimizer__min_lr": 0, "optimizer__weight_decay": 0, "optimizer__warmup": 0,
    "model__d_model": 12,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt", "bert", "lstm", "window"])
def test_only_the_embedding_is_another(kind: str, make_config: MakeConfig, tmp_path: Path) -> None:
    drawn = make_config(kind, 1, **STILL)
    counted = make_config(kind, 1, word_vectors="counted", **STILL)
    said: list[str] = []
    train(drawn, tmp_path / "drawn")
    train(counted, tmp_path / "counted", say=said.append)
    assert any("counted the neighbours of" in line for line in said)
    before, found = (Run.open(tmp_path / name).checkpoint("last").tensors("model/") for name in ("drawn", "counted"))
    words = Run.open(tmp_path / "counted").tokenizer.vocab_size
    expected = counted_vectors(prepare(counted.data).train, words, 12)
    torch.testing.assert_close(found[EMBEDDING][:words], expected, rtol=0, atol=1e-6)
    for name in before:
        if name != EMBEDDING:
            torch.testing.assert_close(found[name], before[name], rtol=0, atol=1e-6)


def test_vectors_are_counted_once(make_config: MakeConfig, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fields = {"word_vectors": "counted", "optimizer__schedule": "constant"}
    train(make_config("gpt", 6, **fields), whole)
    train(make_config("gpt", 2, **fields), parts)
    (parts / "word_vectors.safetensors").unlink()  # nobody needs them any more
    said: list[str] = []
    train(make_config("gpt", 6, **fields), parts, resume=True, say=said.append)
    assert not any("counted the neighbours" in line for line in said)
    losses = [[row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (whole, parts)]
    assert losses[0] == losses[1]


def test_a_damaged_file_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("gpt", 2, word_vectors="counted")
    train(config, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (tmp_path / "run" / "word_vectors.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"word_vectors\.safetensors.*cannot be read"):
        train(config, tmp_path / "run", resume=True)


def test_more_directions_than_words_are_refused_and_leave_no_run(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("gpt", 2, word_vectors="counted", model__d_model=64)
    with pytest.raises(ConfigError, match="at most as many numbers") as caught:
        train(config, tmp_path / "run")
    assert "--word_vectors drawn" in str(caught.value)
    assert not Run(tmp_path / "run").exists and not Run(tmp_path / "run").foreign
