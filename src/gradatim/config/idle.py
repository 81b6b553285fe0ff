"""Settings that a config names and nothing will read: no mistake, but perhaps not what somebody thinks either."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from gradatim.config.derived import microbatch_count, world_size
from gradatim.config.describe import scalar_text
from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, NgramConfig, OptimizerConfig, RunConfig
from gradatim.config.tuned import OF_ROWS

Field = tuple[str, str]
"""A field that is without effect, and why."""


def idle(config: RunConfig) -> list[str]:
    """A line for each setting that differs from its default and has no effect beside the others."""
    found = []
    reasons = (*_layout(config), *_model(config), *_data(config), *_optimizer(config), *_task(config), *_lora(config))
    for path, why in reasons:
        *sections, name = path.split(".")
        section: Any = config
        for each in sections:
            section = getattr(section, each)
        value = getattr(section, name)
        if value != getattr(type(section)(), name):
            found.append(f"{path} {scalar_text(value)} has no effect: {why}")
    return found


def waiting(config: RunConfig) -> list[str]:
    """A line where a pipeline has fewer microbatches than stages, so that some wait at any time."""
    layout, stages = config.layout, config.layout.pp
    if stages == 1 or config.batch_tokens is not None:
        return []
    m = microbatch_count(config)
    if m >= stages:
        return []
    sequences = config.global_batch // layout.dp
    most = max((b for b in range(1, sequences + 1) if sequences % b == 0 and sequences // b >= stages), default=1)
    found = f"layout.pp {stages} with {m} microbatch{'' if m == 1 else 'es'} a step: of {stages} stages at most {m} "
    found += f"{'works' if m == 1 else 'work'} at a time"
    return [f"{found}; --layout.microbatch {most} makes {sequences // most}" if sequences // most > m else found]


def _layout(config: RunConfig) -> Iterator[Field]:
    layout: LayoutConfig = config.layout
    if layout.tp == 1:
        yield "layout.sequence_parallel", "it is over the ranks of tp, and tp is 1"
    if layout.dp == 1:
        yield "layout.zero", "it is over the replicas, and dp is 1"
    if layout.pp == 1:
        yield "layout.schedule", "it orders the stages' work, and pp is 1"
        yield "layout.split", "it is over the stages, and pp is 1"
    if world_size(layout) == 1:
        yield "layout.check", "it compares ranks, and there is one"
        yield "layout.timeout", "it is for ranks that wait for each other, and there is one"
    if isinstance(config.model, NgramConfig):
        yield "layout.microbatch", "n-grams are counted in one pass"


def _model(config: RunConfig) -> Iterator[Field]:
    model = config.model
    if isinstance(model, NgramConfig):
        if model.smoothing != "additive":
            yield "model.additive_count", f"smoothing is {model.smoothing}"
        if model.smoothing != "kneser-ney":
            yield "model.discount_fallback", f"smoothing is {model.smoothing}"
    if isinstance(model, GptConfig) and model.positions != "rotary":
        yield "model.rope_theta", f"positions are {model.positions}"
    if isinstance(model, BertConfig) and config.init_from is not None:
        yield "model.position_vectors", "the weights to start from have vectors of positions"
        yield "model.queries_and_keys", "the weights to start from have matrices for queries and keys"
    if isinstance(model, BertConfig) and model.first_length is None:
        yield "model.first_steps", "model.first_length is null"
    elif isinstance(model, BertConfig) and model.first_steps == 0:
        yield "model.first_length", "model.first_steps is 0"


def _task(config: RunConfig) -> Iterator[Field]:
    task = config.task
    if task.kind == "none":
        for name in ("text", "text_b", "label", "choices", "delimiter", "pooling"):
            yield f"task.{name}", "task.kind is none"
        return
    if task.kind not in OF_ROWS:
        yield "task.pooling", f"task.kind is {task.kind}, which speaks of tokens"
    if task.kind != "choice":
        yield "task.choices", f"task.kind is {task.kind}"
    if isinstance(config.model, BertConfig):
        yield "task.delimiter", "a BERT separates texts by [SEP]"
    elif task.text_b is None and task.kind != "choice":
        yield "task.delimiter", "there is one text"


def _data(config: RunConfig) -> Iterator[Field]:
    tokenizer = config.data.tokenizer
    if config.task.kind != "none" and config.init_from is not None and tokenizer.path is None:
        for field in dataclasses.fields(tokenizer):
            yield f"data.tokenizer.{field.name}", f"the tokenizer is that of {config.init_from}"


def _optimizer(config: RunConfig) -> Iterator[Field]:
    optimizer: OptimizerConfig = config.optimizer
    if optimizer.schedule in ("constant", "inverse-sqrt"):
        yield "optimizer.min_lr", f"the rate's schedule is {optimizer.schedule}"
    if optimizer.schedule != "warmup-stable-decay":
        yield "optimizer.decay_steps", f"the rate's schedule is {optimizer.schedule}"


def _lora(config: RunConfig) -> Iterator[Field]:
    if config.lora.rank is None:
        for name in ("alpha", "dropout", "targets"):
            yield f"lora.{name}", "lora.rank is null, so the weights themselves are trained"
