"""A GPT or BERT with a task's head in the place of its own; the body, and its weights' names, stay as they are."""

from __future__ import annotations

from typing import Any

from gradatim.config.settings import BertConfig
from gradatim.config.tuned import OF_ROWS, TunedConfig
from gradatim.models.bert import BERT
from gradatim.models.gpt import GPT
from gradatim.models.layers.task_head import TaskHead
from gradatim.shapes.tuned import has_bias, has_pooler


def tuned(config: TunedConfig, vocab_size: int, context: int) -> GPT | BERT:
    """The model, its weights not drawn yet."""
    body = config.body
    whole = BERT(body, vocab_size, context) if isinstance(body, BertConfig) else GPT(body, vocab_size, context)
    kept: dict[str, Any] = {}
    if isinstance(whole, GPT):
        kept = {"norm": whole.head.norm, "output": whole.head.output if config.lm else None}
    elif config.lm:
        kept = {"blanks": whole.head}
    whole.head = TaskHead(  # type: ignore[assignment]  # what asks a model for words asks its own head
        body.d_model, config.outputs, of_rows=config.task in OF_ROWS, pooler=has_pooler(config), bias=has_bias(config),
        dropout=body.dropout, mean=config.mean, **kept,
    )  # fmt: skip
    return whole
