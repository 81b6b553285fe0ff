"""Batch in, named (sum, count) terms out."""

from __future__ import annotations

from gradatim.config.settings import BertConfig, RunConfig
from gradatim.objectives.masked import Masked
from gradatim.objectives.next_token import NextToken
from gradatim.objectives.objective import Objective


def objective_of(config: RunConfig) -> Objective:
    """What a run learns."""
    if isinstance(config.model, BertConfig):
        return Masked(pairs=config.model.pairs != "none")
    return NextToken()
