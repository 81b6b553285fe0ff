"""What an architecture is, without torch: parameters with shape and split, matmuls, FLOPs.

A parameter's name is its path in the model: ``embed.tokens.weight``, ``embed.positions.weight``,
``blocks.0.norm1.weight``, ``blocks.0.attention.qkv.weight``, ``blocks.0.attention.out.weight``,
``blocks.0.mlp.up.weight``, ``blocks.0.mlp.down.weight``, ``head.norm.weight``, ``head.projection.weight``,
``head.output.weight``. A test holds every model to its shape.
"""

from __future__ import annotations

from gradatim.config.settings import BertConfig, GptConfig, RecurrentConfig, WindowConfig
from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig
from gradatim.config.tuned import AnyModelConfig, TunedConfig
from gradatim.shapes import bert, gpt, recurrent, seq2seq, transformer, translate_lm, tuned, window
from gradatim.shapes.parameters import (
    COLUMN,
    REPLICATED,
    ROW,
    VOCAB,
    Matmul,
    ParameterShape,
    Split,
    training_flops,
)

__all__ = [
    "COLUMN",
    "REPLICATED",
    "ROW",
    "VOCAB",
    "Matmul",
    "ParameterShape",
    "Split",
    "flops_per_token",
    "matmuls",
    "parameter_count",
    "parameters",
]


def parameters(
    config: AnyModelConfig, vocab_size: int, context: int, source_vocab_size: int | None = None
) -> list[ParameterShape]:
    """Every parameter of a model, in its order; none for n-grams, which are counted.

    ``source_vocab_size`` is that of a translator's source where it has a vocabulary of its own.
    """
    if isinstance(config, TunedConfig):
        return tuned.parameters(config, vocab_size, context)
    if isinstance(config, GptConfig):
        return gpt.parameters(config, vocab_size, context)
    if isinstance(config, RecurrentConfig):
        return recurrent.parameters(config, vocab_size, context)
    if isinstance(config, WindowConfig):
        return window.parameters(config, vocab_size, context)
    if isinstance(config, BertConfig):
        return bert.parameters(config, vocab_size, context)
    if isinstance(config, TranslateLmConfig):
        return translate_lm.parameters(config, vocab_size, context)
    if isinstance(config, Seq2SeqConfig):
        return seq2seq.parameters(config, vocab_size, source_vocab_size)
    if isinstance(config, TransformerConfig):
        return transformer.parameters(config, vocab_size, context, source_vocab_size)
    return []


def matmuls(config: AnyModelConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Every matrix product of one token's forward pass, in a sequence of ``context`` tokens.

    Of encoder-decoders: of one target token's and one source token's.
    """
    if isinstance(config, TunedConfig):
        return tuned.matmuls(config, vocab_size, context)
    if isinstance(config, GptConfig):
        return gpt.matmuls(config, vocab_size, context)
    if isinstance(config, RecurrentConfig):
        return recurrent.matmuls(config, vocab_size, context)
    if isinstance(config, WindowConfig):
        return window.matmuls(config, vocab_size, context)
    if isinstance(config, BertConfig):
        return bert.matmuls(config, vocab_size, context)
    if isinstance(config, TranslateLmConfig):
        return translate_lm.matmuls(config, vocab_size, context)
    if isinstance(config, Seq2SeqConfig):
        return seq2seq.matmuls(config, vocab_size, context)
    if isinstance(config, TransformerConfig):
        return transformer.matmuls(config, vocab_size, context)
    return []


def parameter_count(config: AnyModelConfig, vocab_size: int, context: int, source_vocab_size: int | None = None) -> int:
    """Trainable numbers, padding of the vocabulary included, a tied matrix once."""
    return sum(parameter.size for parameter in parameters(config, vocab_size, context, source_vocab_size))


def flops_per_token(config: AnyModelConfig, vocab_size: int, context: int) -> int:
    """Model FLOPs of a training step per token, forward and backward (recomputation not counted)."""
    return training_flops(matmuls(config, vocab_size, context))
