"""Decoder-only Transformer language model, GPT-2 and Llama shapes in one file.

    x = tokens (+ positions)                        Radford et al. 2019; Vaswani et al. 2017
    x = x + attention(norm(x))                      causal; groups of query heads may share keys and values
    x = x + feed_forward(norm(x))                   GELU, or SwiGLU (Shazeer 2020)
    logits = norm(x) · Wᵀ                           W is the token embedding where tied

GPT-2: learned positions, LayerNorm, GELU, biases, tied. Llama (Touvron et al. 2023): rotary positions, RMSNorm,
SwiGLU, no biases.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradatim.config.settings import GptConfig
from gradatim.models.layers.attention import SelfAttention
from gradatim.models.layers.cache import KeyValueCache
from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.feed_forward import FeedForward
from gradatim.models.layers.init import Init
from gradatim.models.layers.norm import norm_layer
from gradatim.models.layers.output import Head, Output
from gradatim.models.layers.rotary import rotary_table
from gradatim.models.neural import NeuralLanguageModel, Recompute
from gradatim.shapes.gpt import feed_forward_width, padded_vocabulary


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and added to the residual stream."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        d, kv_heads = config.d_model, config.n_kv_heads or config.n_heads
        self.norm1 = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.attention = SelfAttention(d, config.n_heads, kv_heads, bias=config.bias, dropout=config.dropout)
        self.norm2 = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.mlp = FeedForward(
            d, feed_forward_width(config), config.activation, bias=config.bias, dropout=config.dropout
        )

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        rotation: Float[Tensor, "two from_t half"] | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        mask: Bool[Tensor, "t all"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """One layer."""
        x = x + self.attention(self.norm1(x), rotation, cache, layer, mask)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class GPT(NeuralLanguageModel):
    """Embedding, blocks, norm and output matrix."""

    rotation: Float[Tensor, "two context half"] | None
    context: int

    def __init__(self, config: GptConfig, vocab_size: int, context: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context = config, vocab_size, context
        d, rows = config.d_model, padded_vocabulary(vocab_size, config.vocab_multiple)
        learned = config.positions == "learned"
        self.embed = Embedding(rows, d, context if learned else None, dropout=config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        weight = self.embed.tokens.weight if config.tied else nn.Parameter(torch.empty(rows, d))
        norm = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.head = Head(Output(weight, vocab_size), norm=norm)
        table = None if learned else rotary_table(context, d // config.n_heads, config.rope_theta)
        self.register_buffer("rotation", table, persistent=False)

    def initial(self, name: str) -> Init:
        """GPT-2's: N(0, 0.02²), residual projections scaled by 1/√(2 layers), biases 0, norm weights 1."""
        if name.endswith("bias"):
            return Init("constant", 0.0)
        if ".norm" in name:
            return Init("constant", 1.0)
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            return Init("normal", 0.02 / (2 * self.config.n_layers) ** 0.5)
        return Init("normal", 0.02)

    def start(self, batch: int, source: Any = None) -> KeyValueCache:
        """An empty cache."""
        return KeyValueCache(batch)

    def enter(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Token (and position) vectors."""
        return self._enter(ids, 0)

    def _enter(self, ids: Int[Tensor, "b t"], first: int) -> Float[Tensor, "b t d"]:
        if first + ids.shape[1] > self.context:
            raise ValueError(f"{first} + {ids.shape[1]} tokens do not fit the context of {self.context}")
        x: Tensor = self.embed(ids, first)
        return x

    def run(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The blocks held; ``full`` recomputation stores the input of each alone."""
        again = self.recompute == "full" and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, self.rotation, use_reentrant=False) if again else block(x, self.rotation)
        return x

    def set_recompute(self, what: Recompute) -> None:
        """Choose what the backward pass computes again."""
        self.recompute = what
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.recompute = what == "selective"

    def hidden(
        self, ids: Int[Tensor, "b t"], state: KeyValueCache | None = None
    ) -> tuple[Float[Tensor, "b t d"], KeyValueCache | None]:
        """Vectors after the last block; with a state, the cache grows by the t tokens read."""
        if state is None:
            return self.run(self.enter(ids)), None
        t, first = ids.shape[1], state.length
        x = self._enter(ids, first)
        rotation = None if self.rotation is None else self.rotation[:, first:]
        mask = None
        state = state.reserve(t, most=self.context)
        if first and t > 1:  # the fused kernels' own causal mask starts at the first key, ours at key ``first``
            mask = torch.ones(t, first + t, dtype=torch.bool, device=x.device).tril(first)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, state, layer, mask)
        return x, state
