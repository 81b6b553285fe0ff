"""The settings of fine-tuning: what is to be said of each row of a table, and how gently the weights are moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["own", "mean"]
TaskKind = Literal["none", "classify", "regress", "tag", "span", "choice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """What a GPT or BERT is fine-tuned for."""

    kind: TaskKind = "none"
    """The text itself; a class or a number of each row; a class of each word; the answer's place; the right choice."""
    text: str = "text"
    """Column of the text (tag: its words; span: the question; choice: what the choices continue)."""
    text_b: str | None = None
    """Column of the second text (span: the one that holds the answer); null where there is one text."""
    label: str = "label"
    """Column of what is to be said (span: the answer; choice: number of the right one, from 0, or its text)."""
    choices: tuple[str, ...] = ("choices",)
    """choice: the column that lists them, or the column of each."""
    delimiter: str | None = None
    """gpt: text that stands between two texts; null means the boundary token."""
    pooling: Pooling = "own"
    """What a row's vector is (classify, regress, choice): the model's own (BERT's pooler, GPT's last), or the mean."""
    lm_weight: float = 0.0
    """gpt and bert: weight of the words' loss beside the task's: next tokens (the lambda of GPT-1), or blanks."""
    layer_decay: float = 1.0
    """gpt and bert: a layer learns at this share of the rate of the one above it; the embeddings come last."""
    frozen_layers: int = 0
    """gpt and bert: this many layers, from the first on, keep the weights they begin with."""
    frozen_embeddings: bool = False
    """gpt and bert: embeddings keep the weights they begin with (and so does a tied output matrix)."""
