"""What a decoder-only Transformer consists of: parameters with shape and split, matmuls. No torch.

Splits over tensor-parallel ranks are those of Shoeybi et al. 2019 (arXiv:1909.08053).
"""

from __future__ import annotations

from gradatim.config.derived import feed_forward_width
from gradatim.config.settings import GptConfig
from gradatim.shapes.parameters import COLUMN, REPLICATED, ROW, VOCAB, Matmul, ParameterShape, linear

__all__ = ["feed_forward_width", "matmuls", "padded_vocabulary", "parameters"]


def padded_vocabulary(vocab_size: int, multiple: int) -> int:
    """Rows of the embedding and output matrix."""
    return -(-vocab_size // multiple) * multiple


def _norm(name: str, config: GptConfig) -> list[ParameterShape]:
    names = ["weight", "bias"] if config.norm == "layer" and config.bias else ["weight"]
    return [ParameterShape(f"{name}.{end}", (config.d_model,), REPLICATED) for end in names]


def parameters(config: GptConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """Every parameter in the order of the model; a tied matrix stands once, at the embedding."""
    d, f = config.d_model, feed_forward_width(config)
    head_dim = d // config.n_heads
    kv = config.n_kv_heads or config.n_heads
    rows = padded_vocabulary(vocab_size, config.vocab_multiple)
    found = [ParameterShape("embed.tokens.weight", (rows, d), VOCAB)]
    if config.positions == "learned":
        found.append(ParameterShape("embed.positions.weight", (context, d), REPLICATED))
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        found += _norm(f"{block}.norm1", config)
        found += linear(f"{block}.attention.qkv", (config.n_heads + 2 * kv) * head_dim, d, COLUMN, config.bias)
        found += linear(f"{block}.attention.out", d, config.n_heads * head_dim, ROW, config.bias)
        found += _norm(f"{block}.norm2", config)
        if config.activation == "swiglu":
            found += linear(f"{block}.mlp.gate", f, d, COLUMN, config.bias)
        found += linear(f"{block}.mlp.up", f, d, COLUMN, config.bias)
        found += linear(f"{block}.mlp.down", d, f, ROW, config.bias)
    found += _norm("head.norm", config)
    if not config.tied:
        found.append(ParameterShape("head.output.weight", (rows, d), VOCAB))
    return found


def matmuls(config: GptConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one token of a sequence of ``context``, attention counted over the whole square.

    With d_ff = 4 d_model and no shared keys, three times their FLOPs are 72 l h² (1 + s/6h + V/12lh) per token, the
    model FLOPs of Narayanan et al. 2021 (arXiv:2104.04473) without recomputation.
    """
    d, f, head_dim = config.d_model, feed_forward_width(config), config.d_model // config.n_heads
    kv, layers = config.n_kv_heads or config.n_heads, config.n_layers
    return [
        Matmul("attention.qkv", (config.n_heads + 2 * kv) * head_dim, d, layers),
        Matmul("attention.scores", context, config.n_heads * head_dim, layers),
        Matmul("attention.values", config.n_heads * head_dim, context, layers),
        Matmul("attention.out", d, config.n_heads * head_dim, layers),
        *([Matmul("mlp.gate", f, d, layers)] if config.activation == "swiglu" else []),
        Matmul("mlp.up", f, d, layers),
        Matmul("mlp.down", d, f, layers),
        Matmul("head.output", vocab_size, d),
    ]
