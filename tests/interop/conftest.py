"""Tiny runs and tokenizers to export and import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradatim.config.settings import BertConfig, DataConfig, GptConfig, RunConfig, TokenizerConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.config.tuned import AnyModelConfig, model_of
from gradatim.models import build_model
from gradatim.text.tokenizer import Tokenizer
from gradatim.text.vocabulary import train_tokenizer
from gradatim.train.checkpoint import save_checkpoint
from gradatim.train.continuing import training_hash
from gradatim.train.manifest import Manifest
from gradatim.train.run_directory import MODEL, Run

TEXT = ["the more i read, the more i learn, and i like it more than anything else."] * 3
LLAMA: dict[str, Any] = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False}
SHAPES: dict[str, GptConfig | BertConfig] = {
    "gpt2": GptConfig(d_model=24, n_layers=2, n_heads=3, vocab_multiple=64),
    "gpt2-untied": GptConfig(d_model=16, n_layers=1, n_heads=2, d_ff=20, tied=False, vocab_multiple=1, norm_eps=1e-4),
    "llama-grouped": GptConfig(
        d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=40, tied=False, rope_theta=500.0, norm_eps=1e-6, **LLAMA
    ),
    "llama-tied": GptConfig(d_model=16, n_layers=3, n_heads=2, d_ff=24, tied=True, **LLAMA),
    "llama-biased": GptConfig(d_model=16, n_layers=1, n_heads=4, n_kv_heads=1, d_ff=24, **{**LLAMA, "bias": True}),
    "bert": BertConfig(d_model=24, n_layers=2, n_heads=4, vocab_multiple=64, dropout=0.0),
    "bert-blanks": BertConfig(d_model=16, n_layers=1, n_heads=2, pairs="none", dropout=0.0),
    "bert-tanh": BertConfig(d_model=16, n_layers=1, n_heads=2, d_ff=20, activation="gelu", norm_eps=1e-6, dropout=0.0),
}
CONTEXT = 32


def tokenizer_for(kind: str) -> Tokenizer:
    config = TokenizerConfig(kind="wordpiece" if kind == "bert" else "bpe", vocab_size=300)
    return train_tokenizer(config, TEXT)


def randomised(config: AnyModelConfig, words: int, seed: int = 0) -> dict[str, Tensor]:
    """Weights of which none is at its initial value, so that no mistake hides behind zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config, words, CONTEXT, seed)
    return {name: p.detach() + torch.randn(p.shape, generator=generator) * 0.1 for name, p in model.named_parameters()}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """``make_run("gpt2")``: a run of a shape, perhaps tuned for a task, with one checkpoint of random weights."""

    def make(shape: str, name: str = "run", task: TaskConfig | None = None, labels: tuple[str, ...] = ()) -> Run:
        model = SHAPES[shape]
        tokenizer = tokenizer_for(model.kind)
        kind = TokenizerConfig(kind="wordpiece" if model.kind == "bert" else "bpe", vocab_size=300)
        data = DataConfig(tokenizer=kind) if task is None else DataConfig(tokenizer=kind, train=("table.tsv",))
        config = RunConfig(model=model, context=CONTEXT, data=data, task=task or TaskConfig())
        run = Run.create(tmp_path / name, config, tokenizer)
        if task is not None:
            run.remember_labels(labels)
        manifest = Manifest(
            step=7, tokens=70, samples=14, config_hash=training_hash(config), data_fingerprint="",
            tokenizer_fingerprint=tokenizer.fingerprint,
        )  # fmt: skip
        weights = randomised(model_of(config, len(labels)), tokenizer.vocab_size)
        save_checkpoint(run.checkpoints, manifest, {MODEL + name: value for name, value in weights.items()})
        return run

    return make
