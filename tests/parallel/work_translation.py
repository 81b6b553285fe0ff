"""What the workers do for test_translation.py: steps of training on pairs under a layout, and what came of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from work_layouts import Parts, mesh_of, pieces

from gradatim.config.settings import LayoutConfig, OptimizerConfig, RunConfig
from gradatim.config.settings_translators import TransformerConfig
from gradatim.parallel.engine import LayoutEngine
from gradatim.train.engine import SerialEngine

VOCABULARY, SOURCE_VOCABULARY, CONTEXT = 27, 22, 9


def make_config(model: dict[str, Any], layout: dict[str, Any], **fields: Any) -> RunConfig:
    """A tiny run on pairs in float64."""
    optimizer = OptimizerConfig(lr=1e-2, clip=0.7, warmup=2, weight_decay=0.1)
    base: dict[str, Any] = {"steps": 3, "context": CONTEXT, "precision": "fp64", "seed": 5}
    return RunConfig(
        model=TransformerConfig(**model), layout=LayoutConfig(**layout), optimizer=optimizer, **{**base, **fields}
    )


def sentences(vocabulary: int, seed: int) -> Any:
    """What batches read of a token file: 40 sentences of 1 to 8 tokens."""
    generator = np.random.default_rng(seed)
    found = [np.append(generator.integers(1, vocabulary, generator.integers(0, 8)), 0) for _ in range(40)]
    return SimpleNamespace(lengths=np.array([len(each) for each in found]), document=lambda number: found[number])


def make_text(shared: bool) -> Any:
    """What engines read of prepared pairs."""
    source_words = VOCABULARY if shared else SOURCE_VOCABULARY
    tokenizer = SimpleNamespace(vocab_size=VOCABULARY, boundary=0, opening=0)
    return SimpleNamespace(
        tokenizer=tokenizer, source_tokenizer=SimpleNamespace(vocab_size=source_words, boundary=0),
        sources={"train": sentences(source_words, 1), "valid": sentences(source_words, 2)},
        train=sentences(VOCABULARY, 3), valid=sentences(VOCABULARY, 4),
    )  # fmt: skip


def text_of(config: RunConfig) -> Any:
    assert isinstance(config.model, TransformerConfig)
    return make_text(config.model.embeddings == "shared")


def serial(config: RunConfig) -> tuple[list[tuple[float, float, int]], dict[str, Tensor], dict[str, Tensor], float]:
    """(loss, norm, count) of each step, the last step's gradients as they are applied, weights, validation loss."""
    engine = SerialEngine(dataclasses.replace(config, layout=LayoutConfig()), text_of(config))
    found: dict[str, Tensor] = {}
    update = engine.optimizer.step

    def captured() -> None:
        found.update((name, p.grad.clone()) for name, p in engine.model.named_parameters() if p.grad is not None)
        update()

    with mock.patch.object(engine.optimizer, "step", captured):
        outcomes = [engine.step(step) for step in range(config.steps)]
    weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    return [(o.loss, o.norm, o.count) for o in outcomes], found, weights, engine.valid_loss(lambda: False)


def layout(rank: int, world: int, config: RunConfig) -> tuple[list[tuple[float, float, int]], Parts, Parts, float]:
    """The same under the config's layout, pieces as this rank holds them; gradients only where each rank has all."""
    engine = LayoutEngine(config, text_of(config), mesh_of(config.layout))
    gradients: Parts = {}
    inner = engine.optimizer.inner
    update = inner.step

    def captured() -> None:
        gradients.clear()
        if not engine.gradients.sharded:
            gradients.update(pieces(engine, gradient=True))
        update()

    with mock.patch.object(inner, "step", captured):
        outcomes = [engine.step(step) for step in range(config.steps)]
    result = [(o.loss, o.norm, o.count) for o in outcomes]
    return result, gradients, pieces(engine, gradient=False), engine.valid_loss(lambda: False)
