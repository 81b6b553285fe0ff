"""Numbers that follow from settings: what a null stands for, and how many ranks and microbatches a layout has."""

from __future__ import annotations

from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, RunConfig
from gradatim.config.settings_translators import TransformerConfig

OF_TRAINING = (
    "dropout", "vocab_multiple", "embedding_dropout", "weight_drop", "masked", "whole_words", "pairs", "short",
    "attention_dropout", "label_smoothing", "loss_on", "first_length", "first_steps",
    "position_vectors", "queries_and_keys",
)  # fmt: skip
"""Settings of a model that weights do not prescribe: they are of its training, or of how it is stored."""


def feed_forward_width(config: GptConfig | BertConfig | TransformerConfig) -> int:
    """``d_ff``, or its customary value."""
    if config.d_ff is not None:
        return config.d_ff
    if config.activation == "swiglu":
        return -(-8 * config.d_model // (3 * 64)) * 64
    return 4 * config.d_model


def loss_unit(config: RunConfig, validation: bool = False) -> str:
    """What a run's loss is counted in; validation of a task leaves out the words that are learned beside it."""
    if config.task.lm_weight > 0 and not validation:
        return "nats per row, and " + ("per blank" if isinstance(config.model, BertConfig) else "of next tokens")
    if config.task.kind == "none" and isinstance(config.model, BertConfig):
        return "nats per blank" + (", and per pair" if config.model.pairs != "none" else "")
    units = {"none": "nats per token", "tag": "nats per word", "regress": "squared error"}
    return units.get(config.task.kind, "nats per row")


def world_size(layout: LayoutConfig) -> int:
    """Processes of a layout."""
    return layout.tp * layout.pp * layout.dp


def microbatch_count(config: RunConfig) -> int:
    """Microbatches of a replica's step; the rules make sure that they come out even."""
    share = config.global_batch // config.layout.dp
    return share // (config.layout.microbatch or share)
