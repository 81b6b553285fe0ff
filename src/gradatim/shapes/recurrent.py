"""Parameters and matmuls of the recurrent and the fixed-window language models. No torch.

They are small and never split, so every parameter is whole on every rank.
"""

from __future__ import annotations

from gradatim.config.settings import RecurrentConfig, WindowConfig
from gradatim.shapes.parameters import Matmul, ParameterShape

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Matrices of a cell stacked in one, in torch's order."""


def recurrent_parameters(config: RecurrentConfig, vocab_size: int) -> list[ParameterShape]:
    """Every parameter in the order of the model; a tied matrix stands once, at the embedding."""
    width = config.d_embedding or config.d_model
    d, gates = config.d_model, GATES[config.kind]
    found = [ParameterShape("embed.weight", (vocab_size, width))]
    for layer in range(config.n_layers):
        into = width if layer == 0 else d
        shapes = {
            "weight_ih": (gates * d, into),
            "weight_hh": (gates * d, d),
            "bias_ih": (gates * d,),
            "bias_hh": (gates * d,),
        }
        found += [ParameterShape(f"blocks.{layer}.{name}_l0", shape) for name, shape in shapes.items()]
    if config.tied and width != d:
        found.append(ParameterShape("project.weight", (width, d)))
    if not config.tied:
        found.append(ParameterShape("output.weight", (vocab_size, d)))
    return [*found, ParameterShape("output.bias", (vocab_size,))]


def recurrent_matmuls(config: RecurrentConfig, vocab_size: int) -> list[Matmul]:
    """Forward matmuls for one token."""
    matrices = [p for p in recurrent_parameters(config, vocab_size) if len(p.shape) == 2]
    inner = [Matmul(p.name, *p.shape) for p in matrices if p.name.startswith(("blocks", "project"))]
    width = (config.d_embedding or config.d_model) if config.tied else config.d_model
    return [*inner, Matmul("output", vocab_size, width)]


def window_parameters(config: WindowConfig, vocab_size: int) -> list[ParameterShape]:
    """Every parameter in the order of the model."""
    found = [
        ParameterShape("embed.weight", (vocab_size, config.d_model)),
        ParameterShape("blocks.0.weight", (config.d_ff, config.window * config.d_model)),
        ParameterShape("blocks.0.bias", (config.d_ff,)),
    ]
    if config.tied:
        found.append(ParameterShape("project.weight", (config.d_model, config.d_ff)))
    else:
        found.append(ParameterShape("output.weight", (vocab_size, config.d_ff)))
    return [*found, ParameterShape("output.bias", (vocab_size,))]


def window_matmuls(config: WindowConfig, vocab_size: int) -> list[Matmul]:
    """Forward matmuls for one token."""
    found = [Matmul("blocks.0", config.d_ff, config.window * config.d_model)]
    if config.tied:
        found.append(Matmul("project", config.d_model, config.d_ff))
    return [*found, Matmul("output", vocab_size, config.d_model if config.tied else config.d_ff)]
