"""Which tensors of a Hugging Face directory make up each of our parameters, and how.

Their GPT-2 stores matrices ``[in, out]`` (its layers are one-dimensional convolutions), the others ``[out, in]`` as we
do. Queries, keys and values lie one after another there (GPT-2 in one tensor, the others in three); ours are grouped by
key-value head (``models/layers/attention.py``), so that a contiguous share of the rows is a smaller attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradatim.config.settings import BertConfig, GptConfig, ModelConfig
from gradatim.shapes import parameters

Architecture = Literal["gpt2", "llama", "bert"]
PREFIXES: dict[Architecture, str] = {"gpt2": "transformer.", "llama": "model.", "bert": "bert."}
"""What names begin with where there is a head besides the body; bodies saved alone go without."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of our parameters comes from."""

    ours: str
    theirs: tuple[str, ...]
    """One tensor, or those of queries, keys and values."""
    turned: bool = False
    """Whether theirs is ``[in, out]``."""
    attention: bool = False
    """Whether it is queries, keys and values, to be grouped by head."""
    words: bool = False
    """Whether it has a row per word, which ours pads."""
    optional: bool = False
    """Whether a directory may lack it."""


def sources(architecture: Architecture, config: ModelConfig, vocab_size: int, context: int) -> list[Source]:
    """The origin of each parameter, in the order of the model."""
    return [_source(architecture, shape.name) for shape in parameters(config, vocab_size, context)]


_GPT2 = {
    "embed.tokens": "transformer.wte", "embed.positions": "transformer.wpe", "head.norm": "transformer.ln_f",
    "head.output": "lm_head", "norm1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
    "norm2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip
_LLAMA = {
    "embed.tokens": "model.embed_tokens", "head.norm": "model.norm", "head.output": "lm_head",
    "norm1": "input_layernorm", "attention.qkv": "self_attn.{}_proj", "attention.out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}  # fmt: skip
_BERT = {
    "embed.tokens": "bert.embeddings.word_embeddings", "embed.positions": "bert.embeddings.position_embeddings",
    "embed.segments": "bert.embeddings.token_type_embeddings", "embed.norm": "bert.embeddings.LayerNorm",
    "attention.qkv": "attention.self.{}", "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm", "mlp.up": "intermediate.dense", "mlp.down": "output.dense",
    "norm2": "output.LayerNorm", "head.pooler": "bert.pooler.dense", "head.pair": "cls.seq_relationship",
    "head.transform": "cls.predictions.transform.dense", "head.norm": "cls.predictions.transform.LayerNorm",
}  # fmt: skip
_TABLES = {"gpt2": _GPT2, "llama": _LLAMA, "bert": _BERT}
_BLOCKS = {"gpt2": "transformer.h.", "llama": "model.layers.", "bert": "bert.encoder.layer."}
_PARTS = {"gpt2": ("",), "llama": ("q", "k", "v"), "bert": ("query", "key", "value")}
OPTIONAL = ("head.pooler.", "head.pair.", "head.transform.", "head.norm.", "head.output.bias")
"""Of BERT: bodies, and models for blanks alone, are saved without some of these."""


def _source(architecture: Architecture, ours: str) -> Source:
    optional = architecture == "bert" and ours.startswith(OPTIONAL)
    if ours == "head.output.bias":
        return Source(ours, ("cls.predictions.bias",), words=True, optional=optional)
    path, _, end = ours.rpartition(".")
    block = ""
    if path.startswith("blocks."):
        _, number, path = path.split(".", 2)
        block = f"{_BLOCKS[architecture]}{number}."
    theirs = f"{block}{_TABLES[architecture][path]}.{end}"
    attention = path == "attention.qkv"
    turned = architecture == "gpt2" and bool(block) and end == "weight" and "norm" not in path
    names = tuple(theirs.format(part) for part in _PARTS[architecture]) if attention else (theirs,)
    return Source(ours, names, turned, attention, path in ("embed.tokens", "head.output"), optional)


IGNORED = {
    "gpt2": (".attn.bias", ".attn.masked_bias"),
    "llama": (".rotary_emb.inv_freq",),
    "bert": ("position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
}
"""Ends of names of tables that follow from the rest, and of tied copies."""


def heads(config: ModelConfig) -> tuple[int, int]:
    """Heads of queries, and of keys and values."""
    assert isinstance(config, (GptConfig, BertConfig))
    kv = config.n_kv_heads if isinstance(config, GptConfig) else None
    return config.n_heads, kv or config.n_heads


def join(source: Source, theirs: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """Our parameter from theirs; words are not padded yet."""
    parts = [tensor.t() if source.turned else tensor for tensor in theirs]
    if not source.attention:
        return parts[0]
    queries, kv = heads(config)
    if len(parts) == 1:
        parts = list(parts[0].chunk(3))
    sizes = (queries // kv, 1, 1)
    grouped = [part.reshape(kv, size, -1, *part.shape[1:]) for part, size in zip(parts, sizes)]
    return torch.cat(grouped, 1).flatten(0, 2)


def part(source: Source, ours: Tensor, config: ModelConfig) -> list[Tensor]:
    """Their tensors from our parameter, whose padding is gone already."""
    if not source.attention:
        return [ours.t().contiguous() if source.turned else ours.contiguous()]
    queries, kv = heads(config)
    group = queries // kv
    head_dim = len(ours) // (kv * (group + 2))
    rows = ours.view(kv, group + 2, head_dim, *ours.shape[1:])
    parts = [piece.reshape(-1, *ours.shape[1:]) for piece in (rows[:, :group], rows[:, -2], rows[:, -1])]
    if len(source.theirs) == 1:
        whole = torch.cat(parts)
        return [whole.t().contiguous() if source.turned else whole]
    return parts


def modern(name: str) -> str:
    """A name as it is written today: BERT's first checkpoints called a norm's weights gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
