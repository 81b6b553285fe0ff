"""What a feed-forward window model consists of. No torch; nothing of it is split over tensor-parallel ranks."""

from __future__ import annotations

from gradatim.config.settings import WindowConfig
from gradatim.shapes.parameters import REPLICATED, VOCAB, Matmul, ParameterShape, linear


def parameters(config: WindowConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """Every parameter in the order of the model; the embedding has one more row, for what stands before a text."""
    d, f = config.d_model, config.d_ff
    found = [ParameterShape("embed.tokens.weight", (vocab_size + 1, d), VOCAB)]
    found += linear("blocks.0.hidden", f, config.window * d, REPLICATED, bias=True)
    if config.tied:
        found.append(ParameterShape("head.projection.weight", (d, f)))
    else:
        found.append(ParameterShape("head.output.weight", (vocab_size, f), VOCAB))
    found.append(ParameterShape("head.output.bias", (vocab_size,), VOCAB))
    return found


def matmuls(config: WindowConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one token."""
    d, f = config.d_model, config.d_ff
    projection = [Matmul("head.projection", d, f)] if config.tied else []
    return [
        Matmul("hidden", f, config.window * d),
        *projection,
        Matmul("head.output", vocab_size, d if config.tied else f),
    ]
