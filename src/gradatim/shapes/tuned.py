"""What a Transformer with a task's head consists of: its body, and a linear layer over it. No torch.

The head reads single positions, so it works on whole sequences on every rank.
"""

from __future__ import annotations

from dataclasses import replace

from gradatim.config.settings import BertConfig
from gradatim.config.tuned import OF_ROWS, TunedConfig
from gradatim.shapes import bert, gpt
from gradatim.shapes.parameters import VOCAB, Matmul, ParameterShape


def has_pooler(config: TunedConfig) -> bool:
    """Whether the head reads BERT's vector of the whole row."""
    return isinstance(config.body, BertConfig) and config.task in OF_ROWS and not config.mean


def has_bias(config: TunedConfig) -> bool:
    """Whether the linear layer has a bias: not where a GPT speaks of rows (Radford et al. 2018, equation 3)."""
    return isinstance(config.body, BertConfig) or config.task not in OF_ROWS


def parameters(config: TunedConfig, vocab_size: int, context: int) -> list[ParameterShape]:
    """Every parameter in the order of the model."""
    body, width = config.body, config.body.d_model
    kept: tuple[str, ...]
    if isinstance(body, BertConfig):
        whole = bert.parameters(replace(body, pairs="next-sentence"), vocab_size, context)  # a pooler at any rate
        kept = ("head.pooler.",) if has_pooler(config) else ()
        kept += ("head.transform.", "head.norm.") if config.lm else ()
    else:
        whole = gpt.parameters(body, vocab_size, context)
        kept = ("head.norm.",)
    found = [shape for shape in whole if not shape.name.startswith("head.")]
    found += [replace(shape, whole=True) for shape in whole if shape.name.startswith(kept)]
    found.append(ParameterShape("head.classifier.weight", (config.outputs, width), whole=True))
    if has_bias(config):
        found.append(ParameterShape("head.classifier.bias", (config.outputs,), whole=True))
    if config.lm:
        found += [shape for shape in whole if shape.name.startswith("head.output.") and shape.split == VOCAB]
    return found


def matmuls(config: TunedConfig, vocab_size: int, context: int) -> list[Matmul]:
    """Forward matmuls for one token of a row of ``context``."""
    body, d = config.body, config.body.d_model
    whole = (
        bert.matmuls(body, vocab_size, context)
        if isinstance(body, BertConfig)
        else gpt.matmuls(body, vocab_size, context)
    )
    share = 1 / context if config.task in OF_ROWS else 1.0
    found = [each for each in whole if not each.name.startswith("head.")]
    if has_pooler(config):
        found.append(Matmul("head.pooler", d, d, share=share))
    found.append(Matmul("head.classifier", config.outputs, d, share=share))
    if config.lm and isinstance(body, BertConfig):
        return found + [each for each in whole if each.name in ("head.transform", "head.output")]
    return found + ([Matmul("head.output", vocab_size, d)] if config.lm else [])
