"""Fine-tuning under tensor, pipeline and data parallelism computes the training of one process, in float64."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import work_tuning
from pool import Pool
from test_layouts import TOLERANCE, same_outcomes, same_tensors
from work_tuning import MODELS

from gradatim.parallel.engine import LayoutEngine
from gradatim.parallel.mesh import single
from gradatim.train.engine import Engine, SerialEngine

TASKS: dict[str, dict[str, Any]] = {
    "classify": {"kind": "classify", "text_b": "b"},
    "classify lm": {"kind": "classify", "text_b": "b", "lm_weight": 0.5},
    "mean": {"kind": "classify", "text_b": "b", "pooling": "mean"},
    "gently": {"kind": "regress", "text_b": "b", "layer_decay": 0.5, "frozen_layers": 1, "frozen_embeddings": True},
    "by layer": {"kind": "regress", "text_b": "b", "layer_decay": 0.5},
    "tag": {"kind": "tag"},
    "span": {"kind": "span", "text_b": "b"},
    "choice": {"kind": "choice"},
    "choice lm": {"kind": "choice", "lm_weight": 0.5},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatch": 2},
    "zero1": {"dp": 2, "zero": 1},
    "tp2": {"tp": 2, "microbatch": 4},
    "sp2": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2, "microbatch": 2},
    "zero-bubble": {"pp": 2, "microbatch": 2, "schedule": "zero-bubble"},
    "all": {"tp": 2, "pp": 2, "dp": 2, "microbatch": 2, "sequence_parallel": True},
}
FAST = {
    "gpt classify lm dp2", "gpt classify lm pp2", "llama classify lm tp2", "bert classify tp2", "bert tag sp2",
    "gpt span sp2", "bert choice pp2", "gpt choice lm zero-bubble", "bert by layer zero1", "llama gently dp2",
    "bert gently tp2", "bert classify lm all", "bert mean sp2", "gpt mean pp2", "bert choice lm pp2",
}  # fmt: skip


@functools.cache
def reference(model: str, task: str) -> Any:
    return work_tuning.serial(work_tuning.make_config(MODELS[model], TASKS[task], {}))


def cases() -> list[Any]:
    """Every combination that is legal; make test runs some of each kind."""
    found = []
    for model in MODELS:
        for task, fields in TASKS.items():
            for name, layout in LAYOUTS.items():
                if "frozen_layers" in fields and "pp" in layout:
                    continue
                case = f"{model} {task} {name}"
                marks = () if case in FAST else pytest.mark.layouts
                found.append(pytest.param(model, task, layout, id=case, marks=marks))
    return found


@pytest.mark.parametrize(("model", "task", "layout"), cases())
def test_a_layout_computes_the_same_tuning(
    model: str, task: str, layout: dict[str, Any], pool: Callable[[int], Pool]
) -> None:
    config = work_tuning.make_config(MODELS[model], TASKS[task], layout)
    ranks = pool(config.layout.tp * config.layout.pp * config.layout.dp).run("work_tuning:layout", config)
    outcomes, _, weights, valid = reference(model, task)
    same_outcomes([found for found, *_ in ranks], outcomes)
    same_tensors([held for _, held, _ in ranks], weights, "weight")
    assert [loss for *_, loss in ranks] == pytest.approx([valid] * len(ranks), rel=TOLERANCE)


def test_frozen_weights_stay_and_lower_layers_move_less() -> None:
    _, gradients, weights, _ = reference("bert", "gently")
    assert gradients and not any(name.startswith(("embed.", "blocks.0.")) for name in gradients)
    config = work_tuning.make_config(MODELS["bert"], TASKS["gently"], {}, steps=0)
    _, _, before, _ = work_tuning.serial(config)
    for name, tensor in weights.items():
        assert bool((tensor == before[name]).all()) == (name not in gradients), name
    fields = json.loads(json.dumps(TASKS["by layer"]))
    one = work_tuning.make_config(MODELS["bert"], fields, {}, steps=1)
    _, _, moved, _ = work_tuning.serial(one)  # AdamW's first step moves every number by its rate
    rates = {name: float((moved[name] - before[name]).abs().median()) for name in moved}
    top = rates["head.classifier.weight"]
    assert rates["blocks.1.mlp.up.weight"] == pytest.approx(0.5 * top, rel=0.05)
    assert rates["blocks.0.mlp.up.weight"] == pytest.approx(0.25 * top, rel=0.05)
    assert rates["embed.segments.weight"] == pytest.approx(0.125 * top, rel=0.05)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("model", ["bert", "gpt"])
def test_a_head_behind_shards_of_the_sequence_drops_the_same_on_every_rank(
    model: str, check: bool, pool: Callable[[int], Pool]
) -> None:
    """Each shard's blocks drop units of their own, but all compute the one head."""
    layout = {"tp": 2, "sequence_parallel": True, "check": check}
    config = work_tuning.make_config({**MODELS[model], "dropout": 0.2}, TASKS["classify"], layout)
    (first, held, said), (second, others, _) = pool(2).run("work_tuning:dropping", config)
    assert first == second
    assert "head.classifier.weight" in held
    differ = [name for name in held if not torch.equal(held[name], others[name])]
    assert differ == []
    assert said.startswith("layout.check: equal to the bit in 3 steps") == check


@pytest.mark.parametrize("layout", ["zero1", "tp2"])
def test_a_run_with_frozen_weights_goes_on_under_a_layout(
    layout: str, tmp_path: Path, pool: Callable[[int], Pool]
) -> None:
    """What is not trained has no moments, and none are asked for."""
    config = work_tuning.make_config(MODELS["bert"], TASKS["gently"], LAYOUTS[layout])
    for straight, again in pool(2).run("work_tuning:resumed", config, str(tmp_path)):
        assert again == straight


def test_a_run_with_frozen_weights_moves_from_one_process_into_a_layout(tmp_path: Path) -> None:
    config = work_tuning.make_config(MODELS["bert"], TASKS["gently"], {})
    rows = work_tuning.make_rows(config)

    def one() -> Engine:
        return SerialEngine(config, rows)

    def ranks() -> Engine:
        return LayoutEngine(config, rows, single())

    for number, (make, load) in enumerate([(one, ranks), (ranks, one)]):
        (tmp_path / str(number)).mkdir()
        straight, again = work_tuning.save_and_load(make, tmp_path / str(number), load)
        assert again == pytest.approx(straight, rel=TOLERANCE)
