"""Models as plain mathematics: no file here knows of ranks, training loops or commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gradatim.config.settings import BertConfig, GptConfig, RecurrentConfig, WindowConfig
from gradatim.config.settings_lora import LoraConfig
from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig
from gradatim.config.tuned import AnyModelConfig, TunedConfig

if TYPE_CHECKING:
    from gradatim.models.neural import NeuralModel


def build_model(
    config: AnyModelConfig, vocab_size: int, context: int, seed: int = 0, source_vocab_size: int | None = None
) -> NeuralModel:
    """A neural model with its initial weights, a pure function of the arguments. N-grams are fitted instead.

    ``source_vocab_size`` is that of a translator's source where it has a vocabulary of its own.
    """
    from gradatim.models.layers.init import initialise

    model = new_model(config, vocab_size, context, source_vocab_size)
    initialise(model, seed)
    return model


def build_adapted(
    config: AnyModelConfig,
    lora: LoraConfig,
    vocab_size: int,
    context: int,
    *,
    seed: int,
    dtype: torch.dtype,
    fixed_dtype: torch.dtype,
    device: torch.device,
) -> NeuralModel:
    """A model with adapters, which are drawn; its own weights are to be read from somewhere and hold nothing yet.

    Matrices of those are of ``fixed_dtype``, everything else is of ``dtype``.
    """
    from gradatim.models.layers.init import draw, init_of
    from gradatim.models.layers.lora import adapt
    from gradatim.shapes.lora import learned_heads

    with torch.device("meta"):
        model = new_model(config, vocab_size, context)
        adapt(model, lora, learned_heads(config))
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for name, whole in list(model.named_parameters(remove_duplicate=False)):
        if whole not in made:
            if whole.requires_grad:
                drawn = draw(init_of(model, name, tuple(whole.shape)), name, tuple(whole.shape), seed)
                made[whole] = torch.nn.Parameter(drawn.to(device, dtype))
            else:
                kept = fixed_dtype if whole.dim() > 1 else dtype
                empty = torch.empty(whole.shape, dtype=kept, device=device)
                made[whole] = torch.nn.Parameter(empty, requires_grad=False)
        path, _, own = name.rpartition(".")
        setattr(model.get_submodule(path), own, made[whole])
    for buffer_name, buffer in list(model.named_buffers()):
        setattr(model, buffer_name, buffer.to(device))
    return model


def new_model(
    config: AnyModelConfig, vocab_size: int, context: int, source_vocab_size: int | None = None
) -> NeuralModel:
    """A neural model whose weights mean nothing yet; under ``torch.device("meta")`` they take no memory either."""
    if isinstance(config, TunedConfig):
        from gradatim.models.tuned import tuned

        return tuned(config, vocab_size, context)
    if isinstance(config, GptConfig):
        from gradatim.models.gpt import GPT

        return GPT(config, vocab_size, context)
    if isinstance(config, RecurrentConfig):
        from gradatim.models.recurrent import RecurrentLM

        return RecurrentLM(config, vocab_size)
    if isinstance(config, WindowConfig):
        from gradatim.models.window import WindowLM

        return WindowLM(config, vocab_size)
    if isinstance(config, BertConfig):
        from gradatim.models.bert import BERT

        return BERT(config, vocab_size, context)
    if isinstance(config, TranslateLmConfig):
        from gradatim.models.translate_lm import TranslateLM

        return TranslateLM(config, vocab_size, context)
    if isinstance(config, Seq2SeqConfig):
        from gradatim.models.seq2seq import Seq2Seq

        return Seq2Seq(config, vocab_size, source_vocab_size)
    if isinstance(config, TransformerConfig):
        from gradatim.models.transformer import Transformer

        return Transformer(config, vocab_size, context, source_vocab_size)
    raise TypeError(f"{type(config).__name__} is fitted by counting (models.ngram), not built")
