"""Under a layout a run starts from the same weights as in one process, each rank with its part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import work_layouts
from pool import Pool
from test_layouts import BERT, LLAMA, assembled

from gradatim.models import build_model

CASES = [
    pytest.param(BERT, {"tp": 2, "pp": 2, "sequence_parallel": True}, id="bert tp2 pp2 sp"),
    pytest.param(LLAMA, {"dp": 2, "zero": 1}, id="llama dp2 zero1"),
]


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_parts_are_those_of_the_source(
    model: dict[str, Any], layout: dict[str, Any], pool: Callable[[int], Pool]
) -> None:
    config = work_layouts.make_config(model, {**layout, "microbatch": 2})
    source = build_model(config.model, work_layouts.VOCABULARY, work_layouts.CONTEXT, seed=77).double()
    ranks = pool(config.layout.tp * config.layout.pp * config.layout.dp).run("work_start:start", config, source)
    drawn, found = assembled([before for before, _ in ranks]), assembled([after for _, after in ranks])
    for name, parameter in source.named_parameters():
        words = work_layouts.VOCABULARY if "tokens" in name or "output" in name else None
        expected = drawn[name] if name == "head.pooler.weight" else parameter
        assert torch.equal(found[name][:words], expected[:words]), name
