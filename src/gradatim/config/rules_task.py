"""Rules of fine-tuning: what a task asks of model, data and layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradatim.config.settings import BertConfig, GptConfig, RunConfig
from gradatim.config.settings_task import TaskConfig

if TYPE_CHECKING:
    from gradatim.config.rules import Rules

PLAIN = ("python-manual", "installed-docs", "small-english", "phrasebook")
"""Corpora that are no tables."""
SHORTEST_ROW = 8
"""Tokens of the shortest context."""
TABLES = ("small-opinions",)
"""Embedded tables; they bring validation and test rows."""


def task(config: RunConfig, rules: Rules) -> None:
    """Everything that only fine-tuning asks."""
    tuned = isinstance(config.model, (GptConfig, BertConfig))
    rules.require(
        tuned or config.task.kind == "none",
        "task.kind model.kind",
        "only Transformers that read one text are fine-tuned for a task",
        allowed="none, or model.kind gpt or bert",
        attempt="--model.kind bert",
    )
    _gently(config, tuned, rules)
    _words(config, rules)
    if config.task.kind != "none":
        rules.require(
            config.context >= SHORTEST_ROW or isinstance(config.model, BertConfig),
            "context task.kind",
            "a row holds two texts and what stands around them",
            allowed=f"at least {SHORTEST_ROW}",
            attempt=f"--context {SHORTEST_ROW}",
        )
        _columns(config.task, rules)
        _tables(config, rules)


def _gently(config: RunConfig, tuned: bool, rules: Rules) -> None:
    """Layer-wise rates and frozen layers."""
    own, layers = config.task, getattr(config.model, "n_layers", 0)
    for name, plain in {"layer_decay": 1.0, "frozen_layers": 0, "frozen_embeddings": False}.items():
        rules.require(
            tuned or getattr(own, name) == plain,
            f"task.{name} model.kind",
            "layers are told apart in Transformers that read one text",
            allowed=f"{str(plain).lower()}, or model.kind gpt or bert",
            attempt=f"--task.{name} {str(plain).lower()}",
        )
    rules.require(
        not tuned or own.frozen_layers <= layers,
        "task.frozen_layers model.n_layers",
        "the model has not so many layers",
        allowed=f"0 to {layers}",
        attempt=f"--task.frozen_layers {layers}",
    )
    for name in ("frozen_layers", "frozen_embeddings"):
        rules.require(
            not getattr(own, name) or config.layout.pp == 1,
            f"task.{name} layout.pp",
            "a stage whose weights are all frozen has nothing to go backward through",
            allowed="pp 1, or nothing frozen",
            attempt="--layout.pp 1",
        )


def _words(config: RunConfig, rules: Rules) -> None:
    """The auxiliary loss."""
    own = config.task
    rules.require(
        own.lm_weight == 0 or own.kind != "none",
        "task.lm_weight task.kind",
        "the words' loss stands beside a task's, and there is none",
        allowed="0, or a task",
        attempt="--task.lm_weight 0",
    )


def _columns(own: TaskConfig, rules: Rules) -> None:
    rules.require(
        own.kind != "span" or own.text_b is not None,
        "task.text_b task.kind",
        "an answer's place is sought in a second text",
        allowed="the column that holds the passage",
        attempt="--task.text_b context",
    )
    rules.require(
        own.kind not in ("tag", "choice") or own.text_b is None,
        "task.text_b task.kind",
        "words are labelled in one text" if own.kind == "tag" else "the second texts are the choices",
        allowed="null",
        attempt="--task.text_b null",
    )
    rules.require(
        bool(own.choices),
        "task.choices",
        "there is nothing to choose from",
        allowed="a column that lists the choices, or a column for each",
        attempt="--task.choices choices",
    )
    second = {"task.text_b": own.text_b, "task.label": own.label}
    for name, column in second.items():
        rules.require(
            column != own.text,
            f"{name} task.text",
            "one column cannot be both",
            allowed="another column",
        )


def _tables(config: RunConfig, rules: Rules) -> None:
    plain = [name for split in ("train", "valid", "test") for name in getattr(config.data, split) if name in PLAIN]
    rules.require(
        config.task.kind == "classify" or not set(config.data.train) & set(TABLES),
        "data.train task.kind",
        "these rows have a text and a class",
        allowed="classify, or other tables",
        attempt="--task.kind classify",
    )
    rules.require(
        not plain,
        "data.train task.kind",
        f"{' '.join(dict.fromkeys(plain))} is plain text, and a task reads tables with labels",
        allowed=f".jsonl, .csv, .tsv, .parquet, hf:NAME, or {', '.join(TABLES)}",
        attempt="--data.train FILE",
    )
