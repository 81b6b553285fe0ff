"""Adapters as a run: what is kept, exact resume, a plain model for whoever asks, and a base that is lost or changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradatim.config import load_config
from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError
from gradatim.interop.huggingface.write import export_directory
from gradatim.models.neural import NeuralLanguageModel
from gradatim.text.prepare_task import prepare_run
from gradatim.train import Run, train
from gradatim.train.adapted import base_of
from gradatim.train.continuing import refuse_changes
from gradatim.train.engine import SerialEngine
from gradatim.train.metrics import read_metrics
from gradatim.train.start import Start, open_weights

MakeConfig = Callable[..., RunConfig]
LLAMA = {"model.positions": "rotary", "model.norm": "rms", "model.activation": "swiglu", "model.bias": "false",
         "model.n_heads": "4", "model.n_kv_heads": "2", "model.dropout": "0"}  # fmt: skip
LORA = {"lora.rank": "2", "lora.alpha": "6", "lora.targets": "q,v,down", "optimizer.lr": "0.05", "lora.dropout": "0.1"}


@pytest.fixture
def base(make_config: MakeConfig, tmp_path: Path) -> Path:
    train(make_config("gpt", 4, **LLAMA), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def config(make_config: MakeConfig, base: Path) -> RunConfig:
    tokenizer = {"data.tokenizer.path": base / "tokenizer.json"}
    return make_config("gpt", 6, **LLAMA, **LORA, **tokenizer, init_from=base, **{"checkpoint.every": "3"})


def weights(directory: Path, prefix: str = "model/") -> dict[str, Tensor]:
    return Run.open(directory).checkpoint("last").tensors(prefix)


def test_checkpoints_hold_adapters_alone_and_a_run_that_goes_on_is_the_one_that_did_not_stop(
    config: RunConfig, tmp_path: Path
) -> None:
    whole = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule="constant"))
    result = train(whole, tmp_path / "whole")
    train(dataclasses.replace(whole, steps=3), tmp_path / "parts")
    train(whole, tmp_path / "parts", resume=True)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
    assert first.keys() == {
        f"blocks.0.{layer}.lora.{target}.{end}"
        for layer, target in (("attention.qkv", "q"), ("attention.qkv", "v"), ("mlp.down", "down"))
        for end in "ab"
    }
    assert result.parameters == sum(tensor.numel() for tensor in first.values())
    moments = weights(tmp_path / "whole", "optimizer/")
    assert sum(tensor.numel() for tensor in moments.values()) == 2 * result.parameters


def test_whoever_asks_gets_a_plain_model(config: RunConfig, base: Path, tmp_path: Path) -> None:
    """Its numbers are those of the model that was trained; its layers those of the base and what was added."""
    train(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    model = run.model("last")
    assert isinstance(model, NeuralLanguageModel) and not any(".lora." in name for name, _ in model.named_parameters())
    engine = SerialEngine(config, prepare_run(config))
    engine.start_from(Start(base_of(run), config, run.tokenizer))
    engine.load(run.checkpoint("last"))
    ids = torch.arange(1, 13).view(2, 6)
    engine.model.eval()
    assert isinstance(engine.model, NeuralLanguageModel)
    theirs, _ = engine.model(ids, engine.model.start(2))
    ours, _ = model(ids, model.start(2))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    before, after = weights(base), dict(model.named_parameters())
    words = run.tokenizer.vocab_size
    rows = {"embed.tokens.weight": slice(words)}  # the rest is padding
    whole = slice(None)
    changed = {
        name
        for name, old in before.items()
        if not torch.equal(old[rows.get(name, whole)], after[name][rows.get(name, whole)])
    }
    assert changed == {"blocks.0.attention.qkv.weight", "blocks.0.mlp.down.weight"}
    keys = after["blocks.0.attention.qkv.weight"].view(2, 4, 4, 16)[:, 2]
    assert torch.equal(keys, before["blocks.0.attention.qkv.weight"].view(2, 4, 4, 16)[:, 2]), "k has no adapter"
    again = open_weights(tmp_path / "run", "last")
    assert all(torch.equal(again.read(name), after[name]) for name in again.shapes), "and runs can begin from it"


def test_it_begins_as_the_base_and_from_a_hugging_face_directory_too(
    config: RunConfig, base: Path, tmp_path: Path
) -> None:
    origin = Run.open(base)
    export_directory(origin, origin.checkpoint("best"), tmp_path / "hf")
    train(config, tmp_path / "one")
    other = dataclasses.replace(config, init_from=str(tmp_path / "hf"))
    train(other, tmp_path / "two")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    facts = json.loads((tmp_path / "two" / "base.json").read_text())
    assert facts["path"] == str(tmp_path / "hf") and facts["step"] is None


def test_a_base_that_is_gone_or_another_is_told(config: RunConfig, base: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.move(base, moved)
    with pytest.raises(CheckpointError, match="are gone") as raised:
        run.network("last")
    assert "base.json" in raised.value.problems[0].attempt
    shutil.move(moved, base)
    facts = json.loads((tmp_path / "run" / "base.json").read_text())
    (tmp_path / "run" / "base.json").write_text(json.dumps({**facts, "digest": "0" * 64}))
    with pytest.raises(CheckpointError, match="not the weights that this run's adapters learned beside"):
        run.network("last")
    with pytest.raises(CheckpointError, match="not the weights that this run's adapters learned beside"):
        train(dataclasses.replace(config, steps=7), tmp_path / "run", resume=True)
    (tmp_path / "run" / "base.json").write_text(json.dumps({**facts, "step": 9999}))
    with pytest.raises(CheckpointError, match="no such checkpoint") as raised:  # another training has taken its place
        run.network("last")
    assert "base.json" in raised.value.problems[0].attempt
    (tmp_path / "run" / "base.json").unlink()
    with pytest.raises(CheckpointError, match="nobody knows"):
        run.network("last")


def test_a_resumed_run_keeps_its_adapters(config: RunConfig) -> None:
    other = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=3))
    with pytest.raises(CheckpointError, match=r"lora\.rank"):
        refuse_changes(config, other, Path("config.yaml"))


SMALL = {"steps": "4", "global_batch": "4", "context": "24", "model.d_model": "16", "model.n_layers": "2",
         "model.n_heads": "2", "model.d_ff": "32", "optimizer.warmup": "0", "evaluation.every": "2",
         "evaluation.tokens": "200", "optimizer.lr": "0.01"}  # fmt: skip


def test_a_tasks_head_is_trained_beside(make_config: MakeConfig, tmp_path: Path) -> None:
    tokenizer = {"data.tokenizer.kind": "wordpiece", "data.tokenizer.vocab_size": "150"}
    shape = {key: value for key, value in SMALL.items() if key.startswith("model.")}
    train(make_config("bert", 2, **{**tokenizer, **shape, "context": "24"}), tmp_path / "base")
    tuned: dict[str, Any] = {**SMALL, "init_from": str(tmp_path / "base"), "lora.rank": "2", "lora.targets": "qkv,up"}
    train(load_config("bert-classify", {**tuned, "model.dropout": "0"}), tmp_path / "run")
    held = weights(tmp_path / "run")
    heads = {"head.classifier.weight", "head.classifier.bias", "head.pooler.weight", "head.pooler.bias"}
    assert {name for name in held if ".lora." not in name} == heads
    network = dict(Run.open(tmp_path / "run").network("last").named_parameters())
    before = weights(tmp_path / "base")
    assert torch.equal(network["head.classifier.weight"], held["head.classifier.weight"])
    assert torch.equal(network["blocks.1.mlp.down.weight"], before["blocks.1.mlp.down.weight"])
    assert not torch.equal(network["blocks.1.mlp.up.weight"], before["blocks.1.mlp.up.weight"])
