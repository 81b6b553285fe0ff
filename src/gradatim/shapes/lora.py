"""Low-rank adapters without torch: their parameters, shapes and splits (Hu et al. 2021, arXiv:2106.09685).

    y = W x + b + (alpha / rank) B A x          A [rank, in], B [out, rank]

An adapter's output is cut as its layer's is. Beside columns B is cut and every rank has all of A; beside rows A is cut
and every rank has all of B. What is whole works on a share of the outputs or inputs: its gradient is a sum over ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gradatim.config.settings import BertConfig, GptConfig
from gradatim.config.settings_lora import AdapterTarget, LoraConfig
from gradatim.config.tuned import AnyModelConfig, TunedConfig
from gradatim.shapes import parameters
from gradatim.shapes.parameters import COLUMN, REPLICATED, ROW, ParameterShape

LAYERS: dict[AdapterTarget, str] = {
    "qkv": "attention.qkv", "q": "attention.qkv", "k": "attention.qkv", "v": "attention.qkv",
    "out": "attention.out", "gate": "mlp.gate", "up": "mlp.up", "down": "mlp.down",
}  # fmt: skip
"""Beside which layer of a block an adapter stands."""
MARK = ".lora."
"""In the name of every adapter's parameter, ``blocks.0.attention.qkv.lora.q.a``, and in no other's."""
HEADS = ("head.classifier.", "head.pooler.")
"""What else is trained where there is a task: its head, and BERT's vector of the row, which a source may lack."""


def is_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's."""
    return MARK in name


def learned_heads(config: AnyModelConfig) -> tuple[str, ...]:
    """What the names of parameters begin with that are trained beside the adapters."""
    return HEADS if isinstance(config, TunedConfig) else ()


def adapter_parameters(config: AnyModelConfig, lora: LoraConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """A and B of every adapter of a model, block by block; none where ``lora.rank`` is null."""
    if lora.rank is None:
        return []
    body = config.body if isinstance(config, TunedConfig) else config
    assert isinstance(body, (GptConfig, BertConfig))
    shapes = {shape.name: shape for shape in parameters(config, vocab_size, context)}
    return [
        shape
        for layer in range(body.n_layers)
        for target in lora.targets
        for shape in _adapter(shapes[f"blocks.{layer}.{LAYERS[target]}.weight"], target, body, lora.rank)
    ]


def _adapter(
    layer: ParameterShape, target: AdapterTarget, config: GptConfig | BertConfig, rank: int
) -> Iterator[ParameterShape]:
    outputs, inputs = layer.shape
    if target in ("q", "k", "v"):
        kv = (config.n_kv_heads if isinstance(config, GptConfig) else None) or config.n_heads
        outputs = outputs // (config.n_heads + 2 * kv) * (config.n_heads if target == "q" else kv)
    prefix = layer.name.removesuffix(".weight") + f"{MARK}{target}"
    a = ParameterShape(f"{prefix}.a", (rank, inputs), ROW if layer.split == ROW else REPLICATED)
    b = ParameterShape(f"{prefix}.b", (outputs, rank), COLUMN if layer.split == COLUMN else REPLICATED)
    for shape in (a, b):
        yield replace(shape, shares=shape.split == REPLICATED)


def trained_parameters(
    config: AnyModelConfig, lora: LoraConfig, vocab_size: int, context: int, source_vocab_size: int | None = None
) -> list[ParameterShape]:
    """What a run trains: all parameters, or the adapters and a task's head."""
    whole = parameters(config, vocab_size, context, source_vocab_size)
    if lora.rank is None:
        return whole
    heads = [shape for shape in whole if shape.name.startswith(HEADS)] if isinstance(config, TunedConfig) else []
    return [*adapter_parameters(config, lora, vocab_size, context), *heads]
