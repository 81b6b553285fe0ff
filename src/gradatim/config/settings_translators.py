"""The settings of models that translate, as ``settings.py`` has those of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslateLmConfig:
    """Translation as completion: one language model reads the source and writes the target after it."""

    kind: Literal["translate-lm"] = "translate-lm"
    """One language model over source, boundary, target."""
    body: Literal["lstm", "gru", "gpt"] = "lstm"
    """What reads: a recurrent network, or a Transformer with rotary positions."""
    mask: Literal["causal", "prefix"] = "causal"
    """gpt: whether source words see those before them only, or the whole source."""
    loss_on: Literal["target", "all"] = "target"
    """What is learned: the translation alone, or the source sentence as well."""
    d_model: int = 256
    """Width of the hidden state or residual stream."""
    n_layers: int = 2
    """Recurrent layers or Transformer blocks."""
    n_heads: int = 4
    """gpt: attention heads."""
    d_ff: int | None = None
    """gpt: width inside the feed-forward layer; null means 4 d_model."""
    dropout: float = 0.0
    """Share of activations dropped."""
    label_smoothing: float = 0.0
    """Share of each target's probability that training spreads evenly over the vocabulary."""
    tied: bool = True
    """Use the input embedding as the output matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seq2SeqConfig:
    """Recurrent encoder and decoder, with or without attention."""

    kind: Literal["seq2seq"] = "seq2seq"
    """An encoder reads the source, a decoder writes the target from the encoder's last state (and attention)."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Long short-term memory, or gated recurrent unit."""
    d_model: int = 256
    """Width of the decoder's hidden state; the encoder's, both directions together, is the same."""
    d_embedding: int | None = None
    """Width of a token's embedding; null means d_model."""
    n_layers: int = 1
    """Recurrent layers of encoder and decoder each."""
    bidirectional: bool = True
    """Whether the encoder reads in both directions, each half as wide."""
    reversed_source: bool = False
    """Read the source from its end (Sutskever et al., 2014)."""
    attention: Literal["none", "additive", "dot", "general"] = "none"
    """How the decoder looks at the source: not at all, Bahdanau's v·tanh(W s + U h), Luong's s·h or s·W h."""
    input_feeding: bool = False
    """Hand the attentional vector of a step to the next one as input (Luong et al., 2015)."""
    summary_feeding: bool = False
    """Without attention: hand the source's summary to every step of the decoder and its output (Cho et al., 2014)."""
    coverage: bool = False
    """Let the score of a source position know how much attention it has had (Tu et al., 2016)."""
    dropout: float = 0.0
    """Share of units dropped at embeddings, between layers and before the output."""
    label_smoothing: float = 0.0
    """Share of each target's probability that training spreads evenly over the vocabulary."""
    tied: bool = True
    """Use the target embedding as the output matrix (through a projection where the widths differ)."""
    shared: bool = False
    """Use one embedding for source and target (which needs data.joint)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Encoder-decoder Transformer (Vaswani et al., 2017)."""

    kind: Literal["transformer"] = "transformer"
    """Encoder blocks of self-attention; decoder blocks that also attend to the encoder."""
    d_model: int = 256
    """Width of the residual stream."""
    n_layers: int = 4
    """Blocks of the decoder."""
    n_encoder_layers: int | None = None
    """Blocks of the encoder; null means n_layers."""
    n_heads: int = 4
    """Attention heads; each is d_model / n_heads wide."""
    d_ff: int | None = None
    """Width inside the feed-forward layer; null means 4 d_model."""
    dropout: float = 0.1
    """Share of activations dropped after embedding, attention and feed-forward."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped."""
    label_smoothing: float = 0.1
    """Share of each target's probability that training spreads evenly over the vocabulary."""
    embeddings: Literal["shared", "tied", "separate"] = "shared"
    """One matrix for source, target and output (needs data.joint); for target and output; or three."""
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    """How order enters: fixed waves, a learned vector per position, or rotations in self-attention."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    norm_position: Literal["pre", "post"] = "pre"
    """Norm before each sublayer (and once at the end), or after each residual sum as in the paper."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    norm_eps: float = 1e-5
    """Added to the variance inside the norm."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """Non-linearity of the feed-forward layer."""
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    vocab_multiple: int = 64
    """The output matrix is padded up to a multiple of this; padding is masked and never predicted."""


TranslatorConfig = TranslateLmConfig | Seq2SeqConfig | TransformerConfig
"""What learns from pairs."""
