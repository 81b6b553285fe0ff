"""Encoder-decoder Transformer (Vaswani et al., 2017).

    x = √d · tokens + positions                                                  source and target alike
    encoder   x = x + attention(norm(x));  x = x + feed_forward(norm(x))         every word sees every word
    decoder   y = y + attention(norm(y));  y = y + cross(norm(y), x);  y = y + feed_forward(norm(y))
    logits = norm(y) · Wᵀ                                                        W is the embedding where shared

That is pre-norm (Xiong et al., 2020); post-norm, the paper's, is x = norm(x + sublayer(x)) with no norm at the end.
Padding behind short sources is masked in the encoder's self-attention and in the cross-attention; behind short targets
it needs no mask, since causal attention never looks there and no loss is taken. Positions are waves, a learned vector
each (scaled tokens are then left as they are), or rotations inside self-attention.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.config.derived import feed_forward_width
from gradatim.config.settings_translators import TransformerConfig
from gradatim.models.layers.attention import SelfAttention
from gradatim.models.layers.cross_attention import CrossAttention
from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.embedding import Embedding
from gradatim.models.layers.feed_forward import FeedForward
from gradatim.models.layers.init import Init
from gradatim.models.layers.memory import Memory
from gradatim.models.layers.norm import norm_layer
from gradatim.models.layers.output import Head, Output
from gradatim.models.layers.rotary import rotary_table
from gradatim.models.layers.sinusoids import sinusoids
from gradatim.models.transformer_state import TransformerState
from gradatim.models.translator import Translator, needs_source, real_positions
from gradatim.shapes.gpt import padded_vocabulary
from gradatim.text.batches import Source


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward around the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, heads, dropout = config.d_model, config.n_heads, config.dropout
        self.post = config.norm_position == "post"
        self.norm1 = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.attention = SelfAttention(
            d, heads, heads, bias=config.bias, dropout=dropout, core_dropout=config.attention_dropout
        )
        self.norm2 = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.mlp = FeedForward(d, feed_forward_width(config), config.activation, bias=config.bias, dropout=dropout)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        rotation: Float[Tensor, "two from_s half"] | None,
        mask: Bool[Tensor, "b one one s"] | None,
    ) -> Float[Tensor, "b s d"]:
        """One layer; ``mask`` says which positions are tokens."""
        if self.post:
            x = self.norm1(x + self.attention(x, rotation, mask=mask))
            y: Tensor = self.norm2(x + self.mlp(x))
            return y
        x = x + self.attention(self.norm1(x), rotation, mask=mask)
        y = x + self.mlp(self.norm2(x))
        return y


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the source, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, heads, dropout = config.d_model, config.n_heads, config.dropout
        self.post = config.norm_position == "post"
        self.norm1 = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.attention = SelfAttention(
            d, heads, heads, bias=config.bias, dropout=dropout, core_dropout=config.attention_dropout
        )
        self.norm2 = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.cross = CrossAttention(d, heads, bias=config.bias, dropout=dropout, core_dropout=config.attention_dropout)
        self.norm3 = norm_layer(config.norm, d, config.norm_eps, config.bias)
        self.mlp = FeedForward(d, feed_forward_width(config), config.activation, bias=config.bias, dropout=dropout)

    def forward(
        self,
        y: Float[Tensor, "b t d"],
        memory: tuple[Float[Tensor, "n h s k"], Float[Tensor, "n h s k"]],
        real: Bool[Tensor, "n s"] | None,
        rotation: Float[Tensor, "two from_t half"] | None,
        state: TransformerState | None = None,
        layer: int = 0,
        mask: Bool[Tensor, "t all"] | None = None,
        show: list[Float[Tensor, "b h t s"]] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """One layer; ``state`` keeps the keys and values of the targets read so far."""
        if self.post:
            y = self.norm1(y + self.attention(y, rotation, state, layer, mask))
            y = self.norm2(y + self.cross(y, *memory, real, show))
            z: Tensor = self.norm3(y + self.mlp(y))
            return z
        y = y + self.attention(self.norm1(y), rotation, state, layer, mask)
        y = y + self.cross(self.norm2(y), *memory, real, show)
        z = y + self.mlp(self.norm3(y))
        return z


class Transformer(Translator):
    """Encoder, decoder, output matrix."""

    rotation: Float[Tensor, "two context half"] | None
    waves: Float[Tensor, "context d"] | None
    context: int

    def __init__(
        self, config: TransformerConfig, vocab_size: int, context: int, source_vocab_size: int | None = None
    ) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context = config, vocab_size, context
        self.source_vocab_size = source_vocab_size or vocab_size
        self.label_smoothing = config.label_smoothing
        d, rows = config.d_model, padded_vocabulary(vocab_size, config.vocab_multiple)
        source_rows = padded_vocabulary(self.source_vocab_size, config.vocab_multiple)
        positions = context if config.positions == "learned" else None
        self.source_embed = None
        if config.embeddings != "shared":
            self.source_embed = Embedding(source_rows, d, positions)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.n_encoder_layers or config.n_layers))
        pre = config.norm_position == "pre"
        self.encoder_norm = norm_layer(config.norm, d, config.norm_eps, config.bias) if pre else None
        self.embed = Embedding(rows, d, positions)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        separate = config.embeddings == "separate"
        weight = nn.Parameter(torch.empty(rows, d)) if separate else self.embed.tokens.weight
        norm = norm_layer(config.norm, d, config.norm_eps, config.bias) if pre else None
        self.head = Head(Output(weight, vocab_size), norm=norm)
        self.scale = 1.0 if config.positions == "learned" else d**0.5
        rotary = config.positions == "rotary"
        table = rotary_table(context, d // config.n_heads, config.rope_theta) if rotary else None
        self.register_buffer("rotation", table, persistent=False)
        waves = sinusoids(context, d) if config.positions == "sinusoidal" else None
        self.register_buffer("waves", waves, persistent=False)
        heads = range(1, config.n_heads + 1)
        self.attention_names = tuple(
            f"layer {layer} head {head}" for layer in range(1, config.n_layers + 1) for head in heads
        )

    def initial(self, name: str) -> Init:
        """Embeddings N(0, 1/d); matrices U(±√(6/(in + out))) (Glorot and Bengio, 2010); biases 0, norm weights 1."""
        d = self.config.d_model
        if name.endswith("bias"):
            return Init("constant", 0.0)
        if "norm" in name:
            return Init("constant", 1.0)
        if name.endswith(("tokens.weight", "positions.weight", "output.weight")):
            return Init("normal", d**-0.5 if self.scale != 1.0 else 0.02)
        out = {"mlp.up.weight", "mlp.gate.weight", "mlp.down.weight"}
        other = feed_forward_width(self.config) if any(name.endswith(end) for end in out) else d
        return Init("uniform", (6.0 / (d + other)) ** 0.5)

    # ------------------------------------------------------------------ reading

    def encode(self, source: Source) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"] | None]:
        """The encoder's output, and which positions are tokens (None where all are)."""
        embed = self.embed if self.source_embed is None else self.source_embed
        real: Tensor | None = real_positions(source)
        if bool((source.lengths == source.ids.shape[1]).all()):
            real = None
        x = self._enter(embed, source.ids, 0)
        mask = None if real is None else real[:, None, None, :]
        if mask is None:  # "every position" has to be said: without a mask self-attention is causal
            mask = torch.ones(1, 1, 1, x.shape[1], dtype=torch.bool, device=x.device)
        for block in self.encoder:
            x = block(x, self.rotation, mask)
        return (x if self.encoder_norm is None else self.encoder_norm(x)), real

    def _enter(self, embed: Embedding, ids: Int[Tensor, "b t"], first: int) -> Float[Tensor, "b t d"]:
        if first + ids.shape[1] > self.context:
            raise ValueError(f"{first} + {ids.shape[1]} tokens do not fit the context of {self.context}")
        x: Tensor = embed(ids, first)
        if self.scale != 1.0:
            x = x * self.scale
        if self.waves is not None:
            x = x + self.waves[first : first + ids.shape[1]].to(x.dtype)
        return dropout(x, self.config.dropout, self.training)

    def enter(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Target vectors of texts that start here."""
        return self._enter(self.embed, ids, 0)

    def read(self, source: Source, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """See ``Translator``."""
        encoded, real = self.encode(source)
        y = self.enter(ids)
        for block in self.blocks:
            y = block(y, _memory(block, encoded), real, self.rotation)
        return y

    # ------------------------------------------------------------------ decoding

    def start(self, batch: int, source: Source | None = None, attention: bool = False) -> TransformerState:
        """Encode, and compute the cross-attention's keys and values once."""
        encoded, _ = self.encode(needs_source(source))
        tensors = tuple(part for block in self.blocks for part in _memory(block, encoded))
        assert source is not None
        return TransformerState(Memory(tensors, real_positions(source)), shows=attention)

    def hidden(
        self, ids: Int[Tensor, "b t"], state: TransformerState | None = None
    ) -> tuple[Float[Tensor, "b t d"], TransformerState]:
        """Vectors after the last block; the state grows by the t tokens read."""
        if state is None:
            raise ValueError("a translator starts from source sentences: start(batch, source)")
        t, first = ids.shape[1], state.length
        y = self._enter(self.embed, ids, first)
        rotation = None if self.rotation is None else self.rotation[:, first:]
        mask = None
        if first and t > 1:  # the fused kernels' own causal mask starts at the first key, ours at key ``first``
            mask = torch.ones(t, first + t, dtype=torch.bool, device=y.device).tril(first)
        show: list[Tensor] | None = [] if state.shows else None
        state = state.reserve(t)
        real = state.real
        for layer, block in enumerate(self.blocks):
            y = block(y, state.memory_of(layer), real, rotation, state, layer, mask, show)
        return y, state.settled(None if show is None else torch.cat(show, 1))


def _memory(block: nn.Module, encoded: Float[Tensor, "n s d"]) -> tuple[Tensor, Tensor]:
    """A decoder block's keys and values of the source."""
    assert isinstance(block, DecoderBlock)
    return block.cross.memory(encoded)
