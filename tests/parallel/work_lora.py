"""What the workers do for test_lora.py: steps of training adapters under a layout, and what came of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from work_layouts import Parts, make_text, mesh_of, pieces
from work_tuning import make_rows

from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, OptimizerConfig, RunConfig
from gradatim.config.settings_lora import LoraConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.config.tuned import model_of
from gradatim.models import build_model
from gradatim.parallel.engine import LayoutEngine
from gradatim.shapes.lora import is_adapter
from gradatim.train.engine import SerialEngine
from gradatim.train.start import Start, Weights

LABELS = ("a", "b", "c")


def make_config(
    model: dict[str, Any], lora: dict[str, Any], layout: dict[str, Any], task: dict[str, Any], **fields: Any
) -> RunConfig:
    """A tiny run in float64."""
    kinds: dict[str, type[GptConfig | BertConfig]] = {"gpt": GptConfig, "bert": BertConfig}
    base: dict[str, Any] = {"steps": 3, "global_batch": 8, "context": 16, "precision": "fp64", "seed": 5}
    config = RunConfig(
        model=kinds[model.get("kind", "gpt")](**model), lora=LoraConfig(**lora), layout=LayoutConfig(**layout),
        task=TaskConfig(**task), optimizer=OptimizerConfig(lr=1e-2, clip=0.7, warmup=2, weight_decay=0.1),
        init_from="memory", **{**base, **fields},
    )  # fmt: skip
    return dataclasses.replace(config, data=dataclasses.replace(config.data, packing="within"))


def source_of(config: RunConfig) -> Start:
    """Weights to begin with: those of another seed. A task's head is drawn."""
    prepared = text_of(config)
    words = prepared.tokenizer.vocab_size
    held = dict(build_model(config.model, words, config.context, seed=77).double().named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in held.items()}
    weights = Weights("memory", config.model, None, None, Path(), shapes, (), lambda name: held[name].detach())
    tokenizer: Any = prepared.tokenizer
    return Start(weights, config, tokenizer, model=model_of(config, len(LABELS)), labels=LABELS)


def text_of(config: RunConfig) -> Any:
    """What engines read."""
    return make_text() if config.task.kind == "none" else make_rows(config)


@torch.no_grad()
def stir(named: dict[str, Tensor]) -> None:
    """Move every B away from zero by a function of its name and places, so that A learns from the first step on."""
    for name, (parameter, rows) in named.items():
        if is_adapter(name) and name.endswith(".b"):
            number = torch.arange(rows[0], rows[0] + len(parameter), dtype=torch.float64)[:, None]
            columns = torch.arange(parameter.shape[1], dtype=torch.float64)
            parameter.copy_(0.1 * torch.sin(number + 3 * columns + len(name)))


def serial(config: RunConfig) -> tuple[list[tuple[float, float, int]], dict[str, Tensor], float, int]:
    """(loss, norm, count) of each step, all weights, validation loss, how many numbers the optimizer keeps."""
    config = dataclasses.replace(config, layout=LayoutConfig(microbatch=2))
    engine = SerialEngine(config, text_of(config))
    engine.start_from(source_of(config))
    stir({name: (p, (0,)) for name, p in engine.model.named_parameters()})
    outcomes = [engine.step(step) for step in range(config.steps)]
    weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    moments = sum(state["exp_avg"].numel() for state in engine.optimizer.state.values())
    return [(o.loss, o.norm, o.count) for o in outcomes], weights, engine.valid_loss(lambda: False), moments


def layout(rank: int, world: int, config: RunConfig) -> tuple[list[tuple[float, float, int]], Parts, float, int]:
    """The same under the config's layout: outcomes, pieces of the weights as this rank holds them, validation loss."""
    engine = LayoutEngine(config, text_of(config), mesh_of(config.layout))
    engine.start_from(source_of(config))
    for chunk in engine.chunks.values():
        stir({name: (p, chunk.specs[name].offset) for name, p in chunk.model.named_parameters()})
    outcomes = [engine.step(step) for step in range(config.steps)]
    moments = sum(state["exp_avg"].numel() for state in engine.optimizer.inner.state.values())
    result = [(o.loss, o.norm, o.count) for o in outcomes]
    return result, pieces(engine, gradient=False), engine.valid_loss(lambda: False), moments
