"""The encoder-decoder under tensor and data parallelism computes the training of one process, in float64."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import work_translation
from pool import Pool
from test_layouts import TOLERANCE, assembled, difference

BASE = {"d_model": 16, "n_layers": 2, "n_encoder_layers": 1, "n_heads": 4, "dropout": 0.0, "vocab_multiple": 4}
MODELS: dict[str, dict[str, Any]] = {
    "shared": {**BASE, "label_smoothing": 0.1, "norm_position": "post"},
    "separate": {
        **BASE, "embeddings": "separate", "positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False,
        "d_ff": 24,
    },
    "learned": {**BASE, "embeddings": "tied", "positions": "learned", "activation": "gelu", "label_smoothing": 0.0},
}  # fmt: skip


@functools.cache
def reference(model: str, fields: str) -> Any:
    return work_translation.serial(work_translation.make_config(MODELS[model], {}, **json.loads(fields)))


def cases() -> list[Any]:
    """Every combination; make test runs a few of each kind."""
    layouts = {"tp2": {"tp": 2}, "dp2": {"dp": 2}, "tp2 dp2": {"tp": 2, "dp": 2}, "zero1": {"dp": 2, "zero": 1}}
    fast = {"shared tp2 dp2 tokens", "shared zero1 pairs", "separate tp2 tokens", "separate dp2 tokens",
            "learned tp2 dp2 pairs"}  # fmt: skip
    found = []
    for model in MODELS:
        for name, layout in layouts.items():
            for kind, fields in {"tokens": {"batch_tokens": 40}, "pairs": {"global_batch": 8}}.items():
                case = f"{model} {name} {kind}"
                marks = () if case in fast else pytest.mark.layouts
                found.append(pytest.param(model, layout, fields, id=case, marks=marks))
    return found


@pytest.mark.parametrize(("model", "layout", "fields"), cases())
def test_a_layout_computes_the_same_training(
    model: str, layout: dict[str, Any], fields: dict[str, Any], pool: Callable[[int], Pool]
) -> None:
    config = work_translation.make_config(MODELS[model], layout, **fields)
    world = config.layout.tp * config.layout.dp
    ranks = pool(world).run("work_translation:layout", config)
    outcomes, gradients, weights, valid = reference(model, json.dumps(fields))
    for found, *_ in ranks:
        assert found == ranks[0][0], "all ranks must know the same losses and norms, to the bit"
        for ours, theirs in zip(found, outcomes, strict=True):
            assert ours == pytest.approx(theirs, rel=TOLERANCE)
    if all(held for _, held, *_ in ranks):
        apart, where = difference(assembled([held for _, held, *_ in ranks]), gradients)
        assert apart <= TOLERANCE, f"gradient of {where}: {apart:.1e}"
    apart, where = difference(assembled([held for *_, held, _ in ranks]), weights)
    assert apart <= TOLERANCE, f"weight {where}: {apart:.1e}"
    assert [loss for *_, loss in ranks] == pytest.approx([valid] * world, rel=TOLERANCE)
