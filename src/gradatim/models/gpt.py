"""Decoder-only Transformer language model, GPT-2 and Llama shapes in one file.

    x = tokens (+ positions)                        Radford et al. 2019; Vaswani et al. 2017
    x = x + attention(norm(x))                      causal; heads of queries share keys and values in groups (Ainslie et al. 2023)
    x = x + feed_forward(norm(x))                   GELU, or SwiGLU (Shazeer 2020)
    logits = norm(x) · W                            W is the token embedding where tied

GPT-2: learned positions, LayerNorm, GELU, biases, tied. Llama: rotary positions, RMSNorm, SwiGLU, no biases.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradatim.config.settings import GptConfig
from gradatim.models.layers.cache import KeyValueCache
from gradatim.models.layers.init import Init
from gradatim.models.layers.norm import norm_layer
from gradatim.models.layers.output import Output
from gradatim.models.layers.rotary import rotary_table, rotate
from gradatim.models.neural import NeuralLanguageModel
from gradatim.shapes.gpt import feed_forward_width, padded_vocabulary


class Embedding(nn.Module):
    """Token vectors, plus a learned vector per position where the config says so."""

    def __init__(self, config: GptConfig, rows: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(rows, config.d_model)
        self.positions = nn.Embedding(context, config.d_model) if config.positions == "learned" else None
        self.dropout = config.dropout

    def forward(self, ids: Int[Tensor, "b t"], first: int) -> Float[Tensor, "b t d"]:
        """Vectors of tokens whose leftmost stands at position ``first``."""
        x: Tensor = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions.weight[first : first + ids.shape[1]]
        return F.dropout(x, self.dropout, self.training)


class Attention(nn.Module):
    """Causal self-attention; softmax(q kᵀ / √head_dim) v per head.

    Rows of ``qkv`` are grouped by key-value head: its query heads, its key, its value. A contiguous share of the rows is
    therefore a smaller attention of its own, and the number of heads is read off the weight at hand.
    """

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        kv_heads = config.n_kv_heads or config.n_heads
        self.head_dim = config.d_model // config.n_heads
        self.group = config.n_heads // kv_heads
        self.qkv = nn.Linear(config.d_model, kv_heads * (self.group + 2) * self.head_dim, bias=config.bias)
        self.out = nn.Linear(config.n_heads * self.head_dim, config.d_model, bias=config.bias)
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotation: Float[Tensor, "two t half"] | None,
        past: tuple[Float[Tensor, "b kv all k"], Float[Tensor, "b kv all k"]] | None,
        mask: Tensor | None,
    ) -> Float[Tensor, "b t d"]:
        """Attend to everything before and at each position; ``past`` is the cache, into whose end new keys are written."""
        b, t, _ = x.shape
        groups = self.qkv(x).view(b, t, -1, self.group + 2, self.head_dim)  # b t kv group+2 k
        q = groups[:, :, :, : self.group].reshape(b, t, -1, self.head_dim)  # b t h k
        k, v = groups[:, :, :, self.group], groups[:, :, :, self.group + 1]  # b t kv k
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # b h t k
        if past is not None:
            keys, values = past
            keys[:, :, -t:], values[:, :, -t:] = k, v
            k, v = keys, values
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and t > 1,
            dropout_p=self.dropout if self.training else 0.0, enable_gqa=self.group > 1,
        )  # fmt: skip
        y = self.out(y.transpose(1, 2).reshape(b, t, -1))  # b t h·k -> b t d
        return F.dropout(y, self.dropout, self.training)


class FeedForward(nn.Module):
    """Two matrices around a non-linearity, the first gated with SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        width = feed_forward_width(config)
        self.gate = (
            nn.Linear(config.d_model, width, bias=config.bias) if config.activation == "swiglu" else None
        )
        self.up = nn.Linear(config.d_model, width, bias=config.bias)
        self.down = nn.Linear(width, config.d_model, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each position by itself."""
        if self.gate is None:
            inner = F.gelu(self.up(x), approximate="tanh")
        else:
            inner = F.silu(self.gate(x)) * self.up(x)
        return F.dropout(self.down(inner), self.dropout, self.training)


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.norm1 = norm_layer(config.norm, config.d_model, config.norm_eps, config.bias)
        self.attention = Attention(config)
        self.norm2 = norm_layer(config.norm, config.d_model, config.norm_eps, config.bias)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, rotation: Tensor | None, past: Any, mask: Tensor | None
    ) -> Float[Tensor, "b t d"]:
        """One layer."""
        x = x + self.attention(self.norm1(x), rotation, past, mask)
        return x + self.mlp(self.norm2(x))


class GPT(NeuralLanguageModel):
    """Embedding, blocks, norm and output matrix."""

    rotation: Tensor | None

    def __init__(self, config: GptConfig, vocab_size: int, context: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context = config, vocab_size, context
        rows = padded_vocabulary(vocab_size, config.vocab_multiple)
        self.embed = Embedding(config, rows, context)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = norm_layer(config.norm, config.d_model, config.norm_eps, config.bias)
        weight = self.embed.tokens.weight if config.tied else nn.Parameter(torch.empty(rows, config.d_model))
        self.output = Output(weight, vocab_size)
        rotary = config.positions == "rotary"
        table = rotary_table(context, config.d_model // config.n_heads, config.rope_theta) if rotary else None
        self.register_buffer("rotation", table, persistent=False)

    def initial(self, name: str) -> Init:
        """GPT-2's: N(0, 0.02²), residual projections scaled by 1/√(2 layers), biases 0, norm weights 1."""
        if name.endswith("bias"):
            return Init("constant", 0.0)
        if "norm" in name:
            return Init("constant", 1.0)
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            return Init("normal", 0.02 / (2 * self.config.n_layers) ** 0.5)
        return Init("normal", 0.02)

    def start(self, batch: int, source: Any = None) -> KeyValueCache:
        """An empty cache."""
        return KeyValueCache(batch)

    def hidden(
        self, ids: Int[Tensor, "b t"], state: KeyValueCache | None = None
    ) -> tuple[Float[Tensor, "b t d"], KeyValueCache | None]:
        """Vectors after the last norm; with a state, the cache grows by the t tokens read."""
        t = ids.shape[1]
        first = 0 if state is None else state.length
        assert self.context is not None
        if first + t > self.context:
            raise ValueError(f"{first} + {t} tokens do not fit the context of {self.context}")
        x = self.embed(ids, first)
        rotation = None if self.rotation is None else self.rotation[:, first : first + t]
        mask = None
        if state is not None:
            kv_heads = self.config.n_kv_heads or self.config.n_heads
            head = x[..., : self.config.d_model // self.config.n_heads]
            state = state.reserve(t, len(self.blocks), kv_heads, head, self.context)
            if first and t > 1:
                mask = torch.ones(t, first + t, dtype=torch.bool, device=x.device).tril(first)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, state.layer(index) if state is not None else None, mask)
        return self.norm(x), state
