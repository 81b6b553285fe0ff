"""What the workers do for test_tuning.py: steps of fine-tuning under a layout, and what came of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from work_layouts import Parts, mesh_of, pieces

from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, OptimizerConfig, RunConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.parallel.engine import LayoutEngine
from gradatim.text.prepare_task import Encoded, PreparedTask
from gradatim.text.tokenizer import Marks
from gradatim.train.engine import Engine, SerialEngine
from gradatim.train.manifest import Manifest
from gradatim.train.state import Counters

SHAPE = {"d_model": 16, "n_layers": 2, "n_heads": 4, "vocab_multiple": 4, "dropout": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": SHAPE,
    "llama": {**SHAPE, "n_kv_heads": 2, "d_ff": 24, "positions": "rotary", "norm": "rms", "activation": "swiglu",
              "bias": False, "tied": False},
    "bert": {**SHAPE, "kind": "bert"},
}  # fmt: skip
"""Models to be tuned, by name."""

VOCABULARY, CONTEXT, LABELS = 27, 16, ("a", "b", "c")


def make_config(model: dict[str, Any], task: dict[str, Any], layout: dict[str, Any], **fields: Any) -> RunConfig:
    """A tiny run in float64."""
    optimizer = OptimizerConfig(lr=1e-2, clip=0.7, warmup=2, weight_decay=0.1)
    base: dict[str, Any] = {"steps": 3, "global_batch": 8, "context": CONTEXT, "precision": "fp64", "seed": 5}
    kinds: dict[str, type[GptConfig | BertConfig]] = {"gpt": GptConfig, "bert": BertConfig}
    return RunConfig(
        model=kinds[model.get("kind", "gpt")](**model), task=TaskConfig(**task), layout=LayoutConfig(**layout),
        optimizer=optimizer, **{**base, **fields},
    )  # fmt: skip


def example(kind: str, generator: np.random.Generator) -> Encoded:
    """One with texts of 1 to 11 tokens; of some the context cuts a part."""

    def text() -> Any:
        return generator.integers(5, VOCABULARY, generator.integers(1, 12))

    one, two = text(), text()
    if kind == "tag":
        return Encoded((one,), generator.integers(0, 3, len(one)), np.arange(len(one)))
    if kind == "span":
        begin = int(generator.integers(0, len(two)))
        return Encoded((one, two), np.array([begin, generator.integers(begin, len(two))]))
    if kind == "choice":
        choices = [text() for _ in range(generator.integers(2, 4))]
        return Encoded((one, *choices), int(generator.integers(0, len(choices))))
    return Encoded((one, two), float(generator.normal()) if kind == "regress" else int(generator.integers(0, 3)))


def make_rows(config: RunConfig) -> PreparedTask:
    """What engines read of a task."""
    marks = Marks(pad=1, begin=2, end=0, blank=3, unknown=4)
    tokenizer: Any = SimpleNamespace(vocab_size=VOCABULARY, boundary=0, opening=0, marks=marks)
    generator, kind = np.random.default_rng(3), config.task.kind
    parts = {split: [example(kind, generator) for _ in range(many)] for split, many in (("train", 40), ("valid", 37))}
    return PreparedTask(tokenizer, LABELS, parts, {}, "")


def serial(config: RunConfig) -> tuple[list[tuple[float, float, int]], dict[str, Tensor], dict[str, Tensor], float]:
    """(loss, norm, count) of each step, the last step's gradients as they are applied, weights, validation loss."""
    config = dataclasses.replace(config, layout=LayoutConfig(microbatch=2))
    engine = SerialEngine(config, make_rows(config))
    found: dict[str, Tensor] = {}
    update = engine.optimizer.step

    def captured() -> None:
        found.update((name, p.grad.clone()) for name, p in engine.model.named_parameters() if p.grad is not None)
        update()

    with mock.patch.object(engine.optimizer, "step", captured):
        outcomes = [engine.step(step) for step in range(config.steps)]
    weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    return [(o.loss, o.norm, o.count) for o in outcomes], found, weights, engine.valid_loss(lambda: False)


def layout(rank: int, world: int, config: RunConfig) -> tuple[list[tuple[float, float, int]], Parts, float]:
    """The same under the config's layout: outcomes, pieces of the weights as this rank holds them, validation loss."""
    engine = LayoutEngine(config, make_rows(config), mesh_of(config.layout))
    outcomes = [engine.step(step) for step in range(config.steps)]
    result = [(o.loss, o.norm, o.count) for o in outcomes]
    return result, pieces(engine, gradient=False), engine.valid_loss(lambda: False)


def dropping(rank: int, world: int, config: RunConfig) -> tuple[list[tuple[float, float, int]], dict[str, Tensor], str]:
    """Steps with dropout: outcomes, what this rank holds of the parameters that are not split, what was compared."""
    engine = LayoutEngine(config, make_rows(config), mesh_of(config.layout))
    outcomes = [engine.step(step) for step in range(config.steps)]
    held = {
        chunk.specs[name].global_name: parameter.detach().clone()
        for chunk in engine.chunks.values()
        for name, parameter in chunk.model.named_parameters()
        if chunk.specs[name].split is None
    }
    said = engine.replicas.summary() if engine.replicas is not None else ""
    return [(o.loss, o.norm, o.count) for o in outcomes], held, said


def save_and_load(make: Callable[[], Engine], folder: Path, load: Callable[[], Engine]) -> list[tuple[float, float]]:
    """(loss, norm) of the second step of an engine, and of another that goes on from what it saved after the first."""
    first, second = make(), load()
    first.step(0)
    counters = dataclasses.asdict(Counters(step=1, updates=1))
    first.save(
        folder,
        Manifest(
            step=1, tokens=0, samples=0, config_hash="", data_fingerprint="", tokenizer_fingerprint="",
            counters=counters,
        ),
    )  # fmt: skip
    found, rejected = second.newest(folder)
    assert found is not None
    assert not rejected
    second.load(found)
    return [(outcome.loss, outcome.norm) for outcome in (first.step(1), second.step(1))]


def resumed(rank: int, world: int, config: RunConfig, folder: str) -> list[tuple[float, float]]:
    """``save_and_load`` under a layout."""

    def make() -> LayoutEngine:
        return LayoutEngine(config, make_rows(config), mesh_of(config.layout))

    return save_and_load(make, Path(folder), make)
