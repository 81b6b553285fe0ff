"""What the workers do for test_layouts.py: some steps of training under a layout, and what came of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor

from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, ModelConfig, OptimizerConfig, RunConfig
from gradatim.parallel import engine as layout_engine
from gradatim.parallel.engine import LayoutEngine
from gradatim.parallel.mesh import Mesh, create_mesh
from gradatim.parallel.shards import all_gather_
from gradatim.text.tokenizer import Marks
from gradatim.train.engine import SerialEngine

VOCABULARY, CONTEXT, BATCH = 27, 8, 8
Parts = dict[str, list[tuple[tuple[int, ...], tuple[int, ...], Tensor]]]
"""Global name: pieces of it, each with the whole shape and where it begins."""


def make_config(model: dict[str, Any], layout: dict[str, Any], **fields: Any) -> RunConfig:
    """A tiny run in float64 whose text has many short documents, so that targets are padded."""
    optimizer = OptimizerConfig(lr=1e-2, clip=0.7, warmup=2, weight_decay=0.1)
    base: dict[str, Any] = {"steps": 3, "global_batch": BATCH, "context": CONTEXT, "precision": "fp64", "seed": 5}
    kinds: dict[str, type[GptConfig | BertConfig]] = {"gpt": GptConfig, "bert": BertConfig}
    kind: ModelConfig = kinds[model.get("kind", "gpt")](**model)
    config = RunConfig(model=kind, layout=LayoutConfig(**layout), optimizer=optimizer, **{**base, **fields})
    return dataclasses.replace(config, data=dataclasses.replace(config.data, packing="within"))


def make_text() -> Any:
    """What engines read of prepared text: 400 tokens in documents of 2 to 11."""
    generator = np.random.default_rng(3)
    starts = [0]
    while starts[-1] < 400:
        starts.append(starts[-1] + int(generator.integers(2, 12)))
    tokens = generator.integers(1, VOCABULARY, starts[-1])
    tokens[np.array(starts[1:]) - 1] = 0
    file = SimpleNamespace(tokens=tokens, document_starts=np.array(starts), meta=SimpleNamespace(boundary=0))
    valid = SimpleNamespace(tokens=tokens[:61], document_starts=np.array([0, 20, 24, 61]))
    tokenizer = SimpleNamespace(
        vocab_size=VOCABULARY, boundary=0, opening=0, marks=Marks(pad=1, begin=2, end=0, blank=3, unknown=4),
        token_text=lambda token: "." if token == 5 else f"##{token}" if token % 4 == 0 else str(token),
    )  # fmt: skip
    return SimpleNamespace(tokenizer=tokenizer, source_tokenizer=None, train=file, valid=valid)


MESHES: dict[tuple[int, int, int], Mesh] = {}


def mesh_of(layout: LayoutConfig) -> Mesh:
    """One mesh per grid, for groups are made for good."""
    key = (layout.pp, layout.dp, layout.tp)
    if key not in MESHES:
        MESHES[key] = create_mesh(layout)
    return MESHES[key]


def serial(config: RunConfig) -> tuple[list[tuple[float, float, int]], dict[str, Tensor], dict[str, Tensor], float]:
    """(loss, norm, count) of each step, the last step's gradients as they are applied, weights, validation loss."""
    config = dataclasses.replace(config, layout=LayoutConfig(microbatch=config.layout.microbatch))
    engine = SerialEngine(config, make_text())
    found: dict[str, Tensor] = {}
    update = engine.optimizer.step

    def captured() -> None:
        found.update((name, p.grad.clone()) for name, p in engine.model.named_parameters() if p.grad is not None)
        update()

    with mock.patch.object(engine.optimizer, "step", captured):
        outcomes = [engine.step(step) for step in range(config.steps)]
    weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    return [(o.loss, o.norm, o.count) for o in outcomes], found, weights, engine.valid_loss(lambda: False)


def layout(
    rank: int, world: int, config: RunConfig, microbatches: int | None = None
) -> tuple[list[tuple[float, float, int]], Parts, Parts, float]:
    """The same under the config's layout, pieces as this rank holds them; gradients that are sharded are gathered."""
    mesh = mesh_of(config.layout)
    count = microbatches or layout_engine.microbatch_count(config)
    with mock.patch.object(layout_engine, "microbatch_count", return_value=count):
        engine = LayoutEngine(config, make_text(), mesh)
    gradients: Parts = {}
    inner = engine.optimizer.inner
    update = inner.step

    def captured() -> None:
        gradients.clear()
        gradients.update(pieces(engine, gradient=True))
        update()

    with mock.patch.object(inner, "step", captured):
        outcomes = [engine.step(step) for step in range(config.steps)]
    result = [(o.loss, o.norm, o.count) for o in outcomes]
    return result, gradients, pieces(engine, gradient=False), engine.valid_loss(lambda: False)


def pieces(engine: LayoutEngine, *, gradient: bool) -> Parts:
    """What this rank holds of each parameter or its gradient, tied copies included.

    Under ZeRO-1 a replica has the gradient of some numbers only; a bucket is put together from all of them here.
    """
    found: Parts = {}
    gathered: dict[Tensor, Tensor] = {}
    if gradient and engine.gradients.sharded:
        for bucket in engine.gradients.buckets:
            flat = bucket.flat.clone()
            all_gather_(flat, engine.mesh.dp).wait()
            for slot in bucket.slots:
                gathered[slot.parameter] = flat[slot.begin : slot.end].view(slot.parameter.shape)
    for chunk in engine.chunks.values():
        for name, parameter in chunk.model.named_parameters():
            spec = chunk.specs[name]
            tensor = gathered.get(parameter, parameter.grad) if gradient else parameter
            assert tensor is not None
            found.setdefault(spec.global_name, []).append((spec.shape, spec.offset, tensor.detach().clone()))
    return found
