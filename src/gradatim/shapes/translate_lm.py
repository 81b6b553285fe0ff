"""What a translator that is one language model consists of: the parameters of that model. No torch."""

from __future__ import annotations

from dataclasses import replace

from gradatim.config.settings import GptConfig, RecurrentConfig
from gradatim.config.settings_translators import TranslateLmConfig
from gradatim.shapes import gpt, recurrent
from gradatim.shapes.parameters import Matmul, ParameterShape


def body_of(config: TranslateLmConfig) -> GptConfig | RecurrentConfig:
    """The language model it is."""
    if config.body == "gpt":
        return GptConfig(
            d_model=config.d_model, n_layers=config.n_layers, n_heads=config.n_heads, d_ff=config.d_ff,
            dropout=config.dropout, tied=config.tied, positions="rotary",
        )  # fmt: skip
    return RecurrentConfig(
        kind=config.body, d_model=config.d_model, n_layers=config.n_layers, dropout=config.dropout, tied=config.tied
    )


def parameters(config: TranslateLmConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """Those of the body, whose context is two sentences long."""
    body = body_of(config)
    if isinstance(body, GptConfig):
        found = gpt.parameters(body, vocab_size, 2 * context)
    else:
        found = recurrent.parameters(body, vocab_size, 2 * context)
    return [replace(parameter, name=f"body.{parameter.name}") for parameter in found]


def matmuls(config: TranslateLmConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one token of a pair."""
    body = body_of(config)
    if isinstance(body, GptConfig):
        return gpt.matmuls(body, vocab_size, 2 * context)
    return recurrent.matmuls(body, vocab_size, 2 * context)
