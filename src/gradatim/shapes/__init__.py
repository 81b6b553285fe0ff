"""What an architecture is, without torch: parameters with shape and split, matmuls, FLOPs."""

from __future__ import annotations

from gradatim.config.settings import GptConfig, ModelConfig, RecurrentConfig, WindowConfig
from gradatim.shapes import gpt, recurrent
from gradatim.shapes.parameters import Matmul, ParameterShape, training_flops

__all__ = ["Matmul", "ParameterShape", "flops_per_token", "matmuls", "parameter_count", "parameters"]


def parameters(config: ModelConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """Every parameter of a neural model; n-grams have counts instead, and none here."""
    if isinstance(config, GptConfig):
        return gpt.parameters(config, vocab_size, context)
    if isinstance(config, RecurrentConfig):
        return recurrent.recurrent_parameters(config, vocab_size)
    if isinstance(config, WindowConfig):
        return recurrent.window_parameters(config, vocab_size)
    return []


def parameter_count(config: ModelConfig, vocab_size: int, context: int) -> int:
    """Number of trainable values."""
    return sum(parameter.size for parameter in parameters(config, vocab_size, context))


def matmuls(config: ModelConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Matrix products of a forward pass, per token."""
    if isinstance(config, GptConfig):
        return gpt.matmuls(config, vocab_size, context)
    if isinstance(config, RecurrentConfig):
        return recurrent.recurrent_matmuls(config, vocab_size)
    if isinstance(config, WindowConfig):
        return recurrent.window_matmuls(config, vocab_size)
    return []


def flops_per_token(config: ModelConfig, vocab_size: int, context: int) -> int:
    """Model FLOPs of training on one token, forward and backward.

    For a GPT-2 shape this is the 72 l h² (1 + s/6h + V/12lh) of Narayanan et al. 2021 (arXiv:2104.04473), without recomputation.
    """
    return training_flops(matmuls(config, vocab_size, context))
