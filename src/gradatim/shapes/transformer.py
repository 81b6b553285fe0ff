"""What an encoder-decoder Transformer consists of: parameters with shape and split, matmuls. No torch.

Splits over tensor-parallel ranks are those of GPT (Shoeybi et al. 2019, arXiv:1909.08053); cross-attention is cut by
heads like self-attention, its keys and values being computed from the whole encoder output on every rank.
"""

from __future__ import annotations

from gradatim.config.derived import feed_forward_width
from gradatim.config.settings_translators import TransformerConfig
from gradatim.shapes.gpt import padded_vocabulary
from gradatim.shapes.parameters import COLUMN, REPLICATED, ROW, VOCAB, Matmul, ParameterShape, linear


def _norm(name: str, config: TransformerConfig) -> list[ParameterShape]:
    names = ["weight", "bias"] if config.norm == "layer" and config.bias else ["weight"]
    return [ParameterShape(f"{name}.{end}", (config.d_model,), REPLICATED) for end in names]


def _embedding(name: str, rows: int, config: TransformerConfig, context: int) -> list[ParameterShape]:
    found = [ParameterShape(f"{name}.tokens.weight", (rows, config.d_model), VOCAB)]
    if config.positions == "learned":
        found.append(ParameterShape(f"{name}.positions.weight", (context, config.d_model), REPLICATED))
    return found


def _block(name: str, config: TransformerConfig, cross: bool) -> list[ParameterShape]:
    d, f, bias = config.d_model, feed_forward_width(config), config.bias
    found = _norm(f"{name}.norm1", config)
    found += linear(f"{name}.attention.qkv", 3 * d, d, COLUMN, bias)
    found += linear(f"{name}.attention.out", d, d, ROW, bias)
    found += _norm(f"{name}.norm2", config)
    if cross:
        found += linear(f"{name}.cross.query", d, d, COLUMN, bias)
        found += linear(f"{name}.cross.kv", 2 * d, d, COLUMN, bias)
        found += linear(f"{name}.cross.out", d, d, ROW, bias)
        found += _norm(f"{name}.norm3", config)
    if config.activation == "swiglu":
        found += linear(f"{name}.mlp.gate", f, d, COLUMN, bias)
    found += linear(f"{name}.mlp.up", f, d, COLUMN, bias)
    found += linear(f"{name}.mlp.down", d, f, ROW, bias)
    return found


def parameters(
    config: TransformerConfig, vocab_size: int, context: int, source_vocab_size: int | None = None
) -> list[ParameterShape]:
    """Every parameter in the order of the model; a shared matrix stands once, at the target's embedding."""
    rows = padded_vocabulary(vocab_size, config.vocab_multiple)
    found: list[ParameterShape] = []
    if config.embeddings != "shared":
        source_rows = padded_vocabulary(source_vocab_size or vocab_size, config.vocab_multiple)
        found += _embedding("source_embed", source_rows, config, context)
    for layer in range(config.n_encoder_layers or config.n_layers):
        found += _block(f"encoder.{layer}", config, cross=False)
    if config.norm_position == "pre":
        found += _norm("encoder_norm", config)
    found += _embedding("embed", rows, config, context)
    for layer in range(config.n_layers):
        found += _block(f"blocks.{layer}", config, cross=True)
    if config.norm_position == "pre":
        found += _norm("head.norm", config)
    if config.embeddings == "separate":
        found.append(ParameterShape("head.output.weight", (rows, config.d_model), VOCAB))
    return found


def matmuls(config: TransformerConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one target token and one source token, both sentences ``context`` tokens long."""
    d, f = config.d_model, feed_forward_width(config)
    encoder, decoder = config.n_encoder_layers or config.n_layers, config.n_layers
    both = encoder + decoder
    return [
        Matmul("attention.qkv", 3 * d, d, both),
        Matmul("attention.scores", context, d, both + decoder),
        Matmul("attention.values", d, context, both + decoder),
        Matmul("attention.out", d, d, both),
        Matmul("cross.query", d, d, decoder),
        Matmul("cross.kv", 2 * d, d, decoder),
        Matmul("cross.out", d, d, decoder),
        *([Matmul("mlp.gate", f, d, both)] if config.activation == "swiglu" else []),
        Matmul("mlp.up", f, d, both),
        Matmul("mlp.down", d, f, both),
        Matmul("head.output", vocab_size, d),
    ]
