"""Batch in, named (sum, count) terms out."""

from __future__ import annotations

from gradatim.config.settings import BertConfig, RunConfig
from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig
from gradatim.objectives.masked import Masked
from gradatim.objectives.next_token import NextToken
from gradatim.objectives.objective import Objective
from gradatim.objectives.translation import Translation
from gradatim.objectives.tuning import Tuning


def objective_of(config: RunConfig) -> Objective:
    """What a run learns."""
    if config.task.kind != "none":
        return Tuning(config.task)
    if isinstance(config.model, BertConfig):
        return Masked(pairs=config.model.pairs != "none")
    if isinstance(config.model, (TranslateLmConfig, Seq2SeqConfig, TransformerConfig)):
        return Translation(isinstance(config.model, TranslateLmConfig) and config.model.loss_on == "all")
    return NextToken()
