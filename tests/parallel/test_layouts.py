"""The contract: any layout computes the training of one process: losses, gradients, norm, weights, in float64.

A difference is measured against max(‖tensor‖, global norm / √tensors), for some gradients (biases of keys) are zero but
for rounding. Texts have documents shorter than the context, so targets are padded; microbatches may be unequal.
``make test`` runs a subset of the matrix, ``make test-layouts`` all of it.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import work_layouts
from pool import Pool
from torch import Tensor

GPT2 = {"d_model": 16, "n_layers": 4, "n_heads": 4, "vocab_multiple": 4}
LLAMA = {
    "d_model": 16, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "positions": "rotary", "norm": "rms",
    "activation": "swiglu", "bias": False, "tied": False, "vocab_multiple": 4,
}  # fmt: skip
BERT = {
    "kind": "bert", "d_model": 16, "n_layers": 4, "n_heads": 4, "vocab_multiple": 4, "dropout": 0.0, "masked": 0.3,
    "whole_words": True, "first_length": 8, "first_steps": 1,
}  # fmt: skip
MODELS = {"gpt2": GPT2, "llama": LLAMA, "bert": BERT, "blanks alone": {**BERT, "pairs": "none"}}
IN_MATRIX = ("gpt2", "llama", "bert")
TOLERANCE = 1e-10
SINGLE_TOLERANCE = 2e-6
"""Of losses in fp32."""


@functools.cache
def reference(model: str, fields: str) -> Any:
    return work_layouts.serial(work_layouts.make_config(MODELS[model], {"microbatch": 2}, **json.loads(fields)))


def assembled(ranks: list[work_layouts.Parts]) -> dict[str, Tensor]:
    """Whole tensors of all ranks' pieces; pieces of the same place (replicas, tied copies) must be equal to the bit."""
    whole: dict[str, Tensor] = {}
    filled: dict[str, Tensor] = {}
    for parts in ranks:
        for name, held in parts.items():
            for shape, offset, tensor in held:
                if name not in whole:
                    whole[name] = torch.zeros(shape, dtype=tensor.dtype)
                    filled[name] = torch.zeros(shape, dtype=torch.bool)
                where = tuple(slice(o, o + n) for o, n in zip(offset, tensor.shape))
                seen = filled[name][where]
                assert torch.equal(whole[name][where][seen], tensor[seen]), f"{name} differs between ranks"
                whole[name][where] = tensor
                filled[name][where] = True
    assert all(mask.all() for mask in filled.values())
    return whole


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference, and where."""
    assert ours.keys() == theirs.keys()
    total = sum(float(tensor.norm()) ** 2 for tensor in theirs.values()) ** 0.5
    floor = total / len(theirs) ** 0.5
    return max(
        (float((ours[name] - theirs[name]).norm()) / max(float(theirs[name].norm()), floor), name) for name in ours
    )


def same_outcomes(found: list[Any], outcomes: Any) -> None:
    """Of every rank to the bit, and to rounding those of one process."""
    for each in found:
        assert each == found[0], "all ranks must know the same losses and norms, to the bit"
        for ours, theirs in zip(each, outcomes, strict=True):
            assert ours == pytest.approx(theirs, rel=TOLERANCE)


def same_tensors(ranks: list[work_layouts.Parts], whole: dict[str, Tensor], what: str) -> None:
    """What the ranks hold is, put together, what one process has."""
    apart, where = difference(assembled(ranks), whole)
    assert apart <= TOLERANCE, f"{what} of {where}: {apart:.1e}"


def check(
    pool: Callable[[int], Pool], model: str, layout: dict[str, Any], microbatches: int | None = None, *,
    compiled: bool = False, **fields: Any,
) -> None:  # fmt: skip
    config = work_layouts.make_config(MODELS[model], layout, compile=compiled, **fields)
    world = config.layout.tp * config.layout.pp * config.layout.dp
    ranks = pool(world).run("work_layouts:layout", config, microbatches)
    outcomes, gradients, weights, valid = reference(model, json.dumps(fields))
    same_outcomes([found for found, *_ in ranks], outcomes)
    same_tensors([held for _, held, *_ in ranks], gradients, "gradient")
    same_tensors([held for *_, held, _ in ranks], weights, "weight")
    assert [loss for *_, loss in ranks] == pytest.approx([valid] * world, rel=TOLERANCE)


SINGLE = [
    ("gpt2", {"tp": 2, "sequence_parallel": True, "microbatch": 4}),
    ("llama", {"pp": 2, "schedule": "interleaved", "chunks": 2, "microbatch": 2}),
    ("gpt2", {"dp": 2, "zero": 1, "microbatch": 2}),
    ("llama", {"tp": 2, "microbatch": 2}),
    ("gpt2", {"pp": 2, "schedule": "zero-bubble", "microbatch": 2}),
    ("llama", {"dp": 2, "recompute": "full", "microbatch": 4}),
    ("gpt2", {"tp": 2, "pp": 2, "schedule": "gpipe", "microbatch": 2}),
    ("llama", {"tp": 2, "dp": 2, "sequence_parallel": True, "zero": 1, "microbatch": 2}),
    ("gpt2", {"pp": 2, "dp": 2, "recompute": "selective", "microbatch": 1}),
    ("llama", {"tp": 2, "pp": 2, "dp": 2, "sequence_parallel": True, "schedule": "interleaved", "chunks": 2, "zero": 1,
               "microbatch": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "layout"),
    [pytest.param(*case, marks=() if number < 3 else pytest.mark.layouts) for number, case in enumerate(SINGLE)],
)
def test_single_precision_stays_close_for_twenty_steps(
    model: str, layout: dict[str, Any], pool: Callable[[int], Pool]
) -> None:
    config = work_layouts.make_config(MODELS[model], layout, steps=20, precision="fp32")
    (found, *_), *_ = pool(config.layout.tp * config.layout.pp * config.layout.dp).run("work_layouts:layout", config)
    outcomes, *_ = reference(model, json.dumps({"steps": 20, "precision": "fp32"}))
    apart = [abs(ours[0] - theirs[0]) / theirs[0] for ours, theirs in zip(found, outcomes, strict=True)]
    assert max(apart) <= SINGLE_TOLERANCE, apart


def matrix() -> list[Any]:
    """Every combination of the issue's contract that is legal; fast ones are marked by being few ranks."""
    cases = []
    for tp, pp, dp in itertools.product((1, 2), repeat=3):
        if tp * pp * dp == 1:
            continue
        schedules = [("1f1b", 1)] if pp == 1 else [("gpipe", 1), ("1f1b", 1), ("zero-bubble", 1), ("interleaved", 2)]
        for (schedule, chunks), sequence, zero, recompute, model in itertools.product(
            schedules, (False, True), (0, 1), ("none", "selective", "full"), IN_MATRIX
        ):
            if (sequence and tp == 1) or (zero and dp == 1):
                continue
            case = {
                "tp": tp, "pp": pp, "dp": dp, "schedule": schedule, "chunks": chunks,
                "sequence_parallel": sequence, "zero": zero, "recompute": recompute, "microbatch": 2 if dp == 1 else 1,
            }  # fmt: skip
            name = f"{model} tp{tp} pp{pp} dp{dp} {schedule}{' sp' * sequence}{' zero1' * zero} {recompute}"
            # Of each kind of layout make test runs one, with the other settings taken in turns.
            fast = recompute == ("none", "selective", "full")[(len(cases) // 3 + tp + pp) % 3] and len(cases) % 5 == 0
            cases.append(pytest.param(model, case, id=name, marks=() if fast else pytest.mark.layouts))
    return cases


@pytest.mark.parametrize(("model", "case"), matrix())
def test_a_layout_computes_the_same_training(model: str, case: dict[str, Any], pool: Callable[[int], Pool]) -> None:
    check(pool, model, case)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero-bubble"])
@pytest.mark.parametrize("microbatches", [1, 3])
def test_unequal_and_few_microbatches(schedule: str, microbatches: int, pool: Callable[[int], Pool]) -> None:
    check(pool, "gpt2", {"pp": 2, "schedule": schedule}, microbatches)


def test_four_stages_and_fewer_microbatches(pool: Callable[[int], Pool]) -> None:
    check(pool, "gpt2", {"pp": 4, "schedule": "1f1b", "microbatch": 4})
    check(pool, "llama", {"pp": 4, "schedule": "zero-bubble", "microbatch": 1})


def test_a_given_split_of_layers(pool: Callable[[int], Pool]) -> None:
    check(pool, "gpt2", {"pp": 2, "split": (3, 1), "microbatch": 2})


COMPILED = [
    ("gpt2", {"pp": 2, "microbatch": 2}),
    ("llama", {"dp": 2, "zero": 1, "recompute": "selective", "microbatch": 1}),
    ("gpt2", {"tp": 2, "microbatch": 2}),
    ("llama", {"tp": 2, "sequence_parallel": True, "recompute": "full", "microbatch": 2}),
    ("bert", {"tp": 2, "recompute": "selective", "microbatch": 2}),
    ("llama", {"pp": 2, "schedule": "zero-bubble", "microbatch": 2}),
    ("gpt2", {"tp": 2, "pp": 2, "sequence_parallel": True, "schedule": "interleaved", "chunks": 2, "microbatch": 1}),
]


@pytest.mark.layouts
@pytest.mark.parametrize(("model", "layout"), COMPILED)
def test_compiled_blocks_compute_the_same(model: str, layout: dict[str, Any], pool: Callable[[int], Pool]) -> None:
    """Against the one process that compiles nothing. Left to ``make test-layouts``: the compiler takes its time."""
    check(pool, model, layout, compiled=True)


@pytest.mark.parametrize(
    "layout",
    [
        {"dp": 2, "zero": 1, "microbatch": 2},
        {"tp": 2, "sequence_parallel": True, "microbatch": 4},
        {"pp": 2, "microbatch": 2},
    ],
)
def test_a_model_for_blanks_alone_has_nothing_that_is_not_trained(
    layout: dict[str, Any], pool: Callable[[int], Pool]
) -> None:
    """A pooler that no loss depends on would decay under a layout, where gradients are zeros, and else not."""
    check(pool, "blanks alone", layout)
    _, gradients, weights, _ = reference("blanks alone", "{}")
    assert gradients.keys() == weights.keys()


def test_the_same_layout_twice_is_the_same_to_the_bit(pool: Callable[[int], Pool]) -> None:
    config = work_layouts.make_config(
        {**GPT2, "dropout": 0.1}, {"pp": 2, "dp": 2, "zero": 1, "microbatch": 1}, precision="fp32"
    )
    first, second = (pool(4).run("work_layouts:layout", config) for _ in range(2))
    for (a, _, weights, x), (b, _, others, y) in zip(first, second):
        assert (a, x) == (b, y)
        assert all(torch.equal(p[2], q[2]) for name in weights for p, q in zip(weights[name], others[name]))
