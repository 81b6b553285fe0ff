"""What a run's network is built from: the model that the config names, or that model with a task's head.

A head's width is the number of labels, which the training rows tell and no config does.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradatim.config.settings import BertConfig, GptConfig, ModelConfig, RunConfig
from gradatim.config.settings_task import TaskConfig, TaskKind

OF_ROWS: tuple[TaskKind, ...] = ("classify", "regress", "choice")
"""Tasks that say something of a row; the others speak of its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedConfig:
    """A Transformer whose head says something of rows (or of their tokens) instead of predicting words."""

    body: GptConfig | BertConfig
    task: TaskKind
    outputs: int
    """Numbers that the head gives: labels, 1 for a number or a choice's score, 2 for the ends of a span."""
    mean: bool = False
    """Whether a row is the mean of its vectors."""
    lm: bool = False
    """Whether the output matrix stays (with what a BERT has before it), for the auxiliary loss."""


AnyModelConfig = ModelConfig | TunedConfig
"""Whatever models are built from."""


def model_of(config: RunConfig, labels: int) -> AnyModelConfig:
    """What a run's network is built from; ``labels`` counts those of the training rows."""
    model, kind = config.model, config.task.kind
    if kind == "none" or not isinstance(model, (GptConfig, BertConfig)):
        return model
    outputs = {"regress": 1, "choice": 1, "span": 2}.get(kind, labels)
    mean = config.task.pooling == "mean" and kind in OF_ROWS
    return TunedConfig(body=model, task=kind, outputs=outputs, mean=mean, lm=config.task.lm_weight > 0)


def share_of_rate(name: str, task: TaskConfig, layers: int) -> float:
    """A parameter's share of the learning rate under layer-wise decay d: the head 1, the last block d, the one below
    it d², …, the embeddings d^(layers + 1) (Howard and Ruder 2018, arXiv:1801.06146; Clark et al. 2020,
    arXiv:2003.10555).
    """
    if task.layer_decay == 1.0 or name.startswith("head."):
        return 1.0
    depth = layers - int(name.split(".")[1]) if name.startswith("blocks.") else layers + 1
    return float(task.layer_decay**depth)


def is_frozen(name: str, task: TaskConfig) -> bool:
    """Whether a parameter keeps the weights it begins with."""
    if name.startswith("embed."):
        return task.frozen_embeddings
    return name.startswith("blocks.") and int(name.split(".")[1]) < task.frozen_layers
