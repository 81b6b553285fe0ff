"""What a recurrent language model consists of. No torch; nothing of it is split over tensor-parallel ranks."""

from __future__ import annotations

from gradatim.config.settings import RecurrentConfig
from gradatim.shapes.parameters import REPLICATED, VOCAB, Matmul, ParameterShape

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Row blocks of a recurrence's matrices, d_model rows each."""


def parameters(config: RecurrentConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """Every parameter in the order of the model; a tied matrix stands once, at the embedding."""
    d, width = config.d_model, config.d_embedding or config.d_model
    rows = GATES[config.kind] * d
    found = [ParameterShape("embed.tokens.weight", (vocab_size, width), VOCAB)]
    for layer in range(config.n_layers):
        found += [
            ParameterShape(f"blocks.{layer}.weight_ih", (rows, d if layer else width)),
            ParameterShape(f"blocks.{layer}.weight_hh", (rows, d)),
            ParameterShape(f"blocks.{layer}.bias_ih", (rows,)),
            ParameterShape(f"blocks.{layer}.bias_hh", (rows,)),
        ]
    if config.tied and width != d:
        found.append(ParameterShape("head.projection.weight", (width, d), REPLICATED))
    if not config.tied:
        found.append(ParameterShape("head.output.weight", (vocab_size, d), VOCAB))
    found.append(ParameterShape("head.output.bias", (vocab_size,), VOCAB))
    return found


def matmuls(config: RecurrentConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one token."""
    d, width = config.d_model, config.d_embedding or config.d_model
    rows = GATES[config.kind] * d
    projects = config.tied and width != d
    return [
        Matmul("recurrence.input", rows, width),
        *([Matmul("recurrence.input", rows, d, config.n_layers - 1)] if config.n_layers > 1 else []),
        Matmul("recurrence.hidden", rows, d, config.n_layers),
        *([Matmul("head.projection", width, d)] if projects else []),
        Matmul("head.output", vocab_size, width if projects else d),
    ]
