"""What follows from settings."""

from __future__ import annotations

import pytest

from gradatim.config.derived import loss_unit
from gradatim.config.settings import BertConfig, GptConfig, RunConfig
from gradatim.config.settings_task import TaskConfig


@pytest.mark.parametrize(
    ("config", "unit"),
    [
        (RunConfig(model=GptConfig()), "nats per token"),
        (RunConfig(model=BertConfig()), "nats per blank, and per pair"),
        (RunConfig(model=BertConfig(pairs="none")), "nats per blank"),
        (RunConfig(model=BertConfig(), task=TaskConfig(kind="tag")), "nats per word"),
        (RunConfig(model=GptConfig(), task=TaskConfig(kind="regress")), "squared error"),
        (RunConfig(model=GptConfig(), task=TaskConfig(kind="classify")), "nats per row"),
        (
            RunConfig(model=GptConfig(), task=TaskConfig(kind="classify", lm_weight=0.5)),
            "nats per row, and of next tokens",
        ),
        (
            RunConfig(model=BertConfig(), task=TaskConfig(kind="classify", lm_weight=0.5)),
            "nats per row, and per blank",
        ),
    ],
)
def test_a_loss_has_the_unit_of_its_terms(config: RunConfig, unit: str) -> None:
    assert loss_unit(config) == unit
    assert loss_unit(config, validation=True) == unit if config.task.kind == "none" else unit.split(", and")[0]
