"""A GPT or BERT with a task's head in the place of its own; the body, and its weights' names, stay as they are."""

from __future__ import annotations

from gradatim.config.settings import BertConfig
from gradatim.config.tuned import TunedConfig
from gradatim.models.bert import BERT
from gradatim.models.gpt import GPT
from gradatim.models.layers.task_head import TaskHead
from gradatim.shapes.tuned import OF_ROWS, has_bias, has_pooler


def tuned(config: TunedConfig, vocab_size: int, context: int) -> GPT | BERT:
    """The model, its weights not drawn yet."""
    body = config.body
    whole = BERT(body, vocab_size, context) if isinstance(body, BertConfig) else GPT(body, vocab_size, context)
    whole.head = TaskHead(  # type: ignore[assignment]  # with this head a GPT is asked for no word, a BERT for no blank
        body.d_model, config.outputs, of_rows=config.task in OF_ROWS,
        norm=None if isinstance(body, BertConfig) else whole.head.norm, pooler=has_pooler(config),
        bias=has_bias(config), dropout=body.dropout, output=whole.head.output if config.lm else None,
    )  # fmt: skip
    return whole
