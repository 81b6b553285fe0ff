"""Adapters under tensor, pipeline and data parallelism learn what they learn in one process, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import work_lora
from pool import Pool
from test_layouts import TOLERANCE, same_outcomes, same_tensors
from work_tuning import MODELS

from gradatim.shapes.lora import is_adapter

LORA: dict[str, dict[str, Any]] = {
    "together": {"rank": 3, "targets": ("qkv", "out", "up", "down")},
    "apart": {"rank": 2, "alpha": 5.0, "targets": ("v", "q", "down")},
    "gated": {"rank": 2, "targets": ("k", "gate", "up", "out")},
}
TASKS: dict[str, dict[str, Any]] = {
    "text": {},
    "classify": {"kind": "classify", "text_b": "b", "layer_decay": 0.5},
    "tag": {"kind": "tag"},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2, "microbatch": 2},
    "zero1": {"dp": 2, "zero": 1},
    "tp2": {"tp": 2, "microbatch": 4},
    "sp2": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2, "microbatch": 2, "recompute": "full"},
    "zero-bubble": {"pp": 2, "microbatch": 2, "schedule": "zero-bubble"},
    "all": {"tp": 2, "pp": 2, "dp": 2, "microbatch": 2, "sequence_parallel": True, "zero": 1},
}
FAST = {
    "gpt together text tp2", "llama gated text sp2", "bert apart classify tp2", "gpt apart text pp2",
    "llama together text zero-bubble", "gpt together classify zero1", "bert together tag dp2", "llama apart text tp2",
}  # fmt: skip


@functools.cache
def reference(model: str, lora: str, task: str) -> Any:
    return work_lora.serial(work_lora.make_config(MODELS[model], LORA[lora], {}, TASKS[task]))


def cases() -> list[Any]:
    """Every combination that is legal; make test runs some of each kind."""
    found = []
    for model in MODELS:
        for lora, task, name in ((lora, task, name) for lora in LORA for task in TASKS for name in LAYOUTS):
            if lora == "gated" and model != "llama":
                continue
            case = f"{model} {lora} {task} {name}"
            marks = () if case in FAST else pytest.mark.layouts
            found.append(pytest.param(model, lora, task, LAYOUTS[name], id=case, marks=marks))
    return found


@pytest.mark.parametrize(("model", "lora", "task", "layout"), cases())
def test_a_layout_trains_the_same_adapters(
    model: str, lora: str, task: str, layout: dict[str, Any], pool: Callable[[int], Pool]
) -> None:
    config = work_lora.make_config(MODELS[model], LORA[lora], layout, TASKS[task])
    grid = config.layout
    ranks = pool(grid.tp * grid.pp * grid.dp).run("work_lora:layout", config)
    outcomes, weights, valid, _ = reference(model, lora, task)
    same_outcomes([found for found, *_ in ranks], outcomes)
    same_tensors([held for _, held, *_ in ranks], weights, "weight")
    assert [loss for *_, loss, _ in ranks] == pytest.approx([valid] * len(ranks), rel=TOLERANCE)
    held = sum(p.numel() for parts in ranks[0][1].values() for *_, p in parts)
    assert ranks[0][3] < held / 2, "no moments of weights that stay as they are"


@pytest.mark.layouts
def test_compiled_blocks_train_the_same_adapters(pool: Callable[[int], Pool]) -> None:
    config = work_lora.make_config(MODELS["llama"], LORA["gated"], LAYOUTS["sp2"], TASKS["text"], compile=True)
    ranks = pool(2).run("work_lora:layout", config, timeout=500.0)
    outcomes, weights, *_ = reference("llama", "gated", "text")
    same_outcomes([found for found, *_ in ranks], outcomes)
    same_tensors([held for _, held, *_ in ranks], weights, "weight")


@pytest.mark.parametrize("task", ["text", "classify"])
def test_only_adapters_and_a_tasks_head_move(task: str) -> None:
    model = "bert" if task == "classify" else "llama"
    config = work_lora.make_config(MODELS[model], LORA["apart"], {}, TASKS[task], steps=0)
    _, before, _, _ = work_lora.serial(config)
    _, after, _, moments = reference(model, "apart", task)
    moved = {name for name, tensor in after.items() if not (tensor == before[name]).all()}
    learns = {name for name in after if is_adapter(name) or name.startswith(("head.classifier", "head.pooler"))}
    assert moved == learns - (set() if task == "classify" else {n for n in learns if not is_adapter(n)})
    assert moments == sum(after[name].numel() for name in moved)
