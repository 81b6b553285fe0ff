"""Every model has the parameters its shape says; published shapes have their published sizes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gradatim.config import load_config
from gradatim.config.settings import BertConfig, GptConfig, NgramConfig, RecurrentConfig, WindowConfig
from gradatim.config.tuned import TunedConfig
from gradatim.models import new_model
from gradatim.shapes import COLUMN, REPLICATED, ROW, VOCAB, flops_per_token, matmuls, parameter_count, parameters

LLAMA = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False, "tied": False}
CONFIGS = [
    WindowConfig(window=3, d_model=8, d_ff=12),
    WindowConfig(window=3, d_model=8, d_ff=12, tied=False),
    *[
        RecurrentConfig(kind=kind, d_model=8, d_embedding=width, n_layers=layers, tied=tied)
        for kind in ("rnn", "gru", "lstm")
        for width, layers, tied in [(None, 1, True), (6, 2, True), (6, 3, False)]
    ],
    GptConfig(d_model=16, n_layers=2, n_heads=4),
    GptConfig(d_model=16, n_layers=2, n_heads=4, bias=False, tied=False, vocab_multiple=1),
    GptConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, **LLAMA),
    GptConfig(d_model=16, n_layers=1, n_heads=4, n_kv_heads=1, d_ff=20, positions="rotary"),
    BertConfig(d_model=16, n_layers=2, n_heads=4),
    BertConfig(d_model=16, n_layers=1, n_heads=2, d_ff=20, vocab_multiple=1),
    BertConfig(d_model=16, n_layers=1, n_heads=2, pairs="none"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_model_has_the_parameters_of_its_shape(config):
    with torch.device("meta"):
        model = new_model(config, 21, 12)
    expected = [(parameter.name, parameter.shape) for parameter in parameters(config, 21, 12)]
    assert [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()] == expected
    assert model.parameter_count() == parameter_count(config, 21, 12)


@pytest.mark.parametrize(
    ("recipe", "vocab_size", "multiple", "count"),
    [
        ("gpt2-124m", 50257, 1, 124_439_808),
        ("gpt2-124m", 50257, 128, 124_439_808 + 47 * 768),
        ("gpt2-medium", 50257, 1, 354_823_168),
        ("gpt2-large", 50257, 1, 774_030_080),
        ("gpt2-xl", 50257, 1, 1_557_611_200),
        ("llama3-8b", 128256, 1, 8_030_261_248),
        ("llama2-7b", 32000, 1, 6_738_415_616),
        ("bert-tiny", 30522, 1, 4_385_920 + 47_548),  # the encoder, and the head that pretraining has besides
        ("bert-base", 30522, 1, 109_482_240 + 624_188),
        ("bert-large", 30522, 1, 335_141_888 + 1_084_220),
    ],
)
def test_published_models_have_their_published_sizes(recipe, vocab_size, multiple, count):
    config = load_config(recipe, {"model.vocab_multiple": str(multiple)})
    assert parameter_count(config.model, vocab_size, config.context) == count


def test_flops_are_the_formula_of_narayanan_et_al():
    layers, h, s, v = 24, 2304, 2048, 51200
    config = GptConfig(d_model=h, n_layers=layers, n_heads=24)
    formula = 72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    assert flops_per_token(config, v, s) == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_a_task_head_does_not_depend_on_what_its_body_was_pretrained_for(task):
    bodies = [BertConfig(d_model=16, n_layers=1, n_heads=2, pairs=pairs) for pairs in ("none", "next-sentence")]
    blanks, pairs = (TunedConfig(body=body, task=task, outputs=3) for body in bodies)
    assert parameters(blanks, 64, 12) == parameters(pairs, 64, 12)
    assert matmuls(blanks, 64, 12) == matmuls(pairs, 64, 12)
    with torch.device("meta"):
        named = dict(new_model(blanks, 64, 12).named_parameters())
    assert {name: tuple(p.shape) for name, p in named.items()} == {p.name: p.shape for p in parameters(blanks, 64, 12)}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_matmuls_cover_every_matrix_once(config):
    """Per token, weights take part in one product each; the embedding only where it is the output matrix too."""
    weights = sum(p.size for p in parameters(config, 64, 12) if len(p.shape) == 2 and not p.name.startswith("embed"))
    if getattr(config, "tied", True):
        weights += 64 * (
            config.d_embedding or config.d_model if isinstance(config, RecurrentConfig) else config.d_model
        )
    products = [m for m in matmuls(config, 64, 12) if m.name not in ("attention.scores", "attention.values")]
    assert sum(m.out * m.into * m.times for m in products) == weights


def test_a_head_that_reads_some_positions_counts_those():
    config = BertConfig(d_model=16, n_layers=1, n_heads=2)
    flops = {m.name: m.flops for m in matmuls(config, 100, 32)}
    assert flops["head.output"] == round(2 * 100 * 16 * 0.15)
    assert flops["head.pooler"] == 2 * 16 * 16 // 32


def test_splits_follow_megatron():
    splits = {p.name: p.split for p in parameters(GptConfig(d_model=16, n_layers=1, n_heads=4, tied=False), 64, 12)}
    assert splits["embed.tokens.weight"] == splits["head.output.weight"] == VOCAB
    assert splits["blocks.0.attention.qkv.weight"] == splits["blocks.0.attention.qkv.bias"] == COLUMN
    assert splits["blocks.0.mlp.up.weight"] == splits["blocks.0.mlp.up.bias"] == COLUMN
    assert splits["blocks.0.attention.out.weight"] == splits["blocks.0.mlp.down.weight"] == ROW
    assert splits["blocks.0.mlp.down.bias"] == splits["blocks.0.norm1.weight"] == REPLICATED


def test_ngrams_have_no_shape():
    assert parameters(NgramConfig(), 100, 8) == []
    assert flops_per_token(NgramConfig(), 100, 8) == 0


def test_shapes_need_no_torch():
    code = "import sys, gradatim.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
