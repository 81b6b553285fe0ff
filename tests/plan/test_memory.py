"""Memory of layouts: published closed forms, schedules, and what a rehearsal of the real model counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, OptimizerConfig, RunConfig
from gradatim.parallel.rehearse import rehearse
from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.cluster import load_cluster
from gradatim.plan.layouts import NO_LIMITS, Fixed, legal_layouts
from gradatim.plan.memory import block_activations, in_flight, stage_memory
from gradatim.plan.ours import with_our_stack
from gradatim.plan.search import _held, bounds
from gradatim.plan.tensors import Case, Ledger, Walk
from gradatim.schedules import build_schedule, peak_in_flight

GPT2: dict[str, Any] = {"n_layers": 8, "d_model": 256, "n_heads": 8, "vocab_multiple": 32}
LLAMA: dict[str, Any] = {
    **GPT2, "n_kv_heads": 4, "d_ff": 704, "positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False,
    "tied": False,
}  # fmt: skip
WORDS, CONTEXT = 2000, 256


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize("split", [False, True])
def test_korthikanti(t: int, split: bool) -> None:
    """Activation bytes of a layer as in arXiv:2205.05198, table 2."""
    s, b, h, a = 512, 4, 1024, 16
    model = Architecture(GptConfig(d_model=h, n_heads=a, n_layers=2), 50304, s)
    stack = load_cluster("selene-2022").stack

    def kept(recompute: str) -> float:
        return block_activations(model, stack, sequences=b, tp=t, sequence_parallel=split, recompute=recompute)[0]

    sbh, scores = s * b * h, 5 * a * s / h
    if split:
        assert kept("none") == sbh / t * (34 + scores)
        assert kept("selective") == 34 * sbh / t
        assert kept("full") == 2 * sbh / t
    else:
        assert kept("none") == sbh * (10 + 24 / t + scores / t)
        assert kept("selective") == sbh * (10 + 24 / t)
        assert kept("full") == 2 * sbh


# ------------------------------------------------------------------ schedules

PIPELINES = [
    *((name, p, m, 1) for name in ("gpipe", "1f1b", "zero-bubble") for p in (2, 4, 7) for m in (1, 3, 4, 9, 24)),
    *(("interleaved", p, p * n, v) for p in (2, 4) for v in (2, 3) for n in (1, 2, 3, 7)),
]


@pytest.mark.parametrize(("name", "p", "m", "v"), PIPELINES)
def test_in_flight_is_the_schedules_own(name: str, p: int, m: int, v: int) -> None:
    expected = peak_in_flight(build_schedule(name, p, m, v))
    assert list(in_flight(name, p, m, v)) == expected
    columns = SimpleNamespace(names=[name], schedule=np.zeros(p, int), pp=np.full(p, p), chunks=np.full(p, v))
    assert _held(columns, np.full(p, m), np.arange(p)).tolist() == expected  # type: ignore[arg-type]


# ------------------------------------------------------------------ our own layers


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("tp", "split"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("shape", [GPT2, LLAMA, {**GPT2, "dropout": 0.1}], ids=["gpt2", "llama", "dropout"])
def test_a_backward_pass_lets_go_of_what_its_forward_pass_kept(
    shape: dict[str, Any], tp: int, split: bool, waits: bool, recompute: str, exact: bool, scores: bool
) -> None:
    case = Case(Architecture(GptConfig(**shape), WORDS, CONTEXT), 2, tp, split, recompute, waits, exact, scores)
    walk = Walk(case)
    walk.ledger = Ledger(walk.stream)
    walk.forward()  # its output, and then in its place the output's gradient, is counted besides
    deferred = walk.backward()
    assert walk.ledger.held == pytest.approx(walk.stream + deferred, rel=1e-12)


LAYOUTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (GPT2, {"recompute": "none"}),
    (GPT2, {"recompute": "full", "dp": 2, "zero": 1}),
    (GPT2, {"tp": 4, "pp": 4, "sequence_parallel": True, "recompute": "full"}),
    (GPT2, {"tp": 2, "pp": 2, "recompute": "selective"}),
    (LLAMA, {"tp": 2, "pp": 4, "sequence_parallel": True, "dp": 2}),
    (LLAMA, {"pp": 2, "chunks": 2, "schedule": "interleaved"}),
    (GPT2, {"tp": 2, "pp": 2, "schedule": "zero-bubble", "sequence_parallel": True}),
    (GPT2, {"pp": 2, "schedule": "gpipe"}),
]


@pytest.mark.parametrize(("shape", "fields"), LAYOUTS, ids=[f"{i}" for i in range(len(LAYOUTS))])
def test_plans_what_a_rehearsal_counts(shape: dict[str, Any], fields: dict[str, Any]) -> None:
    layout = LayoutConfig(microbatch=2, **fields)
    batch = 2 * layout.dp * layout.pp * 2
    config = RunConfig(
        model=GptConfig(**shape), layout=layout, context=CONTEXT, global_batch=batch, precision="bf16",
        optimizer=OptimizerConfig(clip=1.0),
    )  # fmt: skip
    stack = load_cluster("gradatim-h100").stack
    planned = stage_memory(stack, Architecture(GptConfig(**shape), WORDS, CONTEXT), layout, batch)
    for stage in sorted({0, layout.pp // 2, layout.pp - 1}):
        real = rehearse(config, WORDS, stage * layout.tp * layout.dp)
        mine = planned[stage]
        assert mine.weights == pytest.approx(real.weights_bytes, rel=2e-3)
        assert mine.gradients == pytest.approx(real.gradient_bytes, rel=2e-3)
        assert mine.optimizer == pytest.approx(real.optimizer_bytes, rel=2e-3)
        assert mine.activations + mine.working == pytest.approx(real.peak_activation_bytes, rel=0.03)


ON_CPUS: list[tuple[dict[str, Any], dict[str, Any], Literal["fp32", "fp64"]]] = [
    (GPT2, {}, "fp32"),
    ({**GPT2, "dropout": 0.1}, {}, "fp32"),
    ({**GPT2, "dropout": 0.1}, {"recompute": "selective"}, "fp32"),
    ({**LLAMA, "dropout": 0.1}, {"recompute": "full"}, "fp32"),
    ({**LLAMA, "dropout": 0.1}, {}, "fp32"),
    (GPT2, {"tp": 2}, "fp32"),
    (GPT2, {}, "fp64"),
    (LLAMA, {"tp": 2, "recompute": "full"}, "fp64"),
]


@pytest.mark.parametrize(("shape", "fields", "precision"), ON_CPUS, ids=[f"{i}" for i in range(len(ON_CPUS))])
def test_plans_what_a_cpu_holds(
    shape: dict[str, Any], fields: dict[str, Any], precision: Literal["fp32", "fp64"]
) -> None:
    """With the scores that attention keeps where it drops weights, which no kernel for CPUs does."""
    model, layout = GptConfig(**{**shape, "n_layers": 2, "d_model": 128}), LayoutConfig(microbatch=2, **fields)
    config = RunConfig(
        model=model, layout=layout, context=CONTEXT, global_batch=4, precision=precision,
        optimizer=OptimizerConfig(clip=1.0),
    )  # fmt: skip
    stack = with_our_stack(load_cluster("cpu"), precision).stack
    (mine,) = stage_memory(stack, Architecture(model, WORDS, CONTEXT), layout, 4)
    real = rehearse(config, WORDS, 0, network="gloo")
    assert mine.state == pytest.approx(real.weights_bytes + real.gradient_bytes + real.optimizer_bytes, rel=2e-3)
    few_words = (
        0.07 if precision == "fp32" else 0.15
    )  # the loss takes as many bytes of logits at once, which are planned twice
    assert mine.activations + mine.working == pytest.approx(real.peak_activation_bytes, rel=few_words)


@pytest.mark.parametrize(("name", "precision"), [("gradatim-h100", "bf16"), ("cpu", "fp32")])
def test_berts_head_holds_the_positions_that_are_predicted(name: str, precision: Literal["bf16", "fp32"]) -> None:
    model, layout = BertConfig(n_layers=2, d_model=128), LayoutConfig(microbatch=4)
    config = RunConfig(model=model, layout=layout, context=128, global_batch=8, precision=precision)
    (mine,) = stage_memory(load_cluster(name).stack, Architecture(model, 8000, 128), layout, 8)
    real = rehearse(config, 8000, 0, network="gloo" if name == "cpu" else "nccl")
    assert mine.activations + mine.working == pytest.approx(real.peak_activation_bytes, rel=0.05)


def test_dropout_keeps_no_scores_on_gpus() -> None:
    """Fused kernels draw again; a rehearsal says so, though it is observed on a CPU."""
    model, layout = GptConfig(**{**GPT2, "n_layers": 2, "dropout": 0.1}), LayoutConfig(microbatch=2)
    config = RunConfig(model=model, layout=layout, context=CONTEXT, global_batch=4, precision="bf16")
    (mine,) = stage_memory(load_cluster("gradatim-h100").stack, Architecture(model, WORDS, CONTEXT), layout, 4)
    real = rehearse(config, WORDS, 0)
    assert mine.activations + mine.working == pytest.approx(real.peak_activation_bytes, rel=0.01)


def test_elements_of_four_bytes_take_twice_as_much() -> None:
    model = Architecture(GptConfig(**GPT2), WORDS, CONTEXT)
    stack = replace(load_cluster("eos-h100").stack, dropout=False)
    options: dict[str, Any] = {"sequences": 2, "tp": 1, "sequence_parallel": False, "recompute": "full"}
    two, four = (block_activations(model, replace(stack, element_bytes=n), **options) for n in (2, 4))
    assert four[0] == 2 * two[0] and four[1] == pytest.approx(2 * two[1], rel=0.05)


# ------------------------------------------------------------------ the search's


@pytest.mark.parametrize("name", ["gradatim-h100", "selene-2022", "eos-h100"])
@pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_the_search_knows_the_fullest_rank(name: str, shape: dict[str, Any]) -> None:
    """To the byte for uniform stages, as ranks between the second and the last hold less."""
    stack = replace(load_cluster(name).stack, schedules=NO_LIMITS.schedules, splits=("uniform",), zero=(0, 1))
    cluster = replace(load_cluster(name), stack=stack)
    model = Architecture(GptConfig(**shape), WORDS, CONTEXT)
    columns = legal_layouts(model, 16, 64, Fixed(), stack, Counter())
    _, needed = bounds(cluster, model, columns, 64)
    for i in np.random.default_rng(1).permutation(len(columns))[:60].tolist():
        most = max(stage.total for stage in stage_memory(stack, model, columns.layout(i), 64))
        assert needed[i] == pytest.approx(most, rel=1e-9)


def test_sums_in_fp32_are_what_did_not_fit_before_bloom() -> None:
    """100 layers on 6 stages ran out of memory once DeepSpeed kept sums of gradients in fp32."""
    model = Architecture(GptConfig(d_model=12288, n_layers=100, n_heads=64, vocab_multiple=1), 250880, 2048)
    before, after = load_cluster("jean-zay-a100"), load_cluster("jean-zay-bf16")
    for microbatch in (1, 2):
        layout = LayoutConfig(
            tp=4, pp=6, dp=16, microbatch=microbatch, recompute="full", zero=1, split=(16, 17, 17, 17, 17, 16)
        )
        one, other = (stage_memory(cluster.stack, model, layout, 2048) for cluster in (before, after))
        assert max(stage.total for stage in one) < before.device.memory
        assert max(stage.total for stage in other) > after.device.memory
        assert [b.gradients - a.gradients for a, b in zip(one, other)] == [2 * a.weights for a in one]


def test_a_layer_that_is_sharded_is_whole_while_it_works() -> None:
    model, _ = load_model("gpt:n_layers=24,d_model=2048,n_heads=16,vocab_size=1024")
    block, stack = model.block_parameters(), load_cluster("selene-2022").stack

    def working(zero: int, **traits: Any) -> float:
        layout = LayoutConfig(dp=8, microbatch=1, zero=zero)  # type: ignore[arg-type]
        return stage_memory(replace(stack, **traits), model, layout, 8)[0].working

    assert working(2) - working(1) == block * stack.reduced_bytes
    assert working(3) - working(2) == block * stack.weight_bytes
    assert working(3, overlap_data=True) - working(2) == 2 * block * stack.weight_bytes  # and the next one


ALLOCATED = [
    ("n_layers=12,d_model=8192,n_heads=64,d_ff=28672", {"pp": 2, "dp": 4}, 66.55),
    ("n_layers=12,d_model=8192,n_heads=64,d_ff=28672", {"tp": 8}, 28.29),
    ("n_layers=4,d_model=16384,n_heads=128,d_ff=53248", {"pp": 2, "dp": 4}, 87.08),
    ("n_layers=4,d_model=16384,n_heads=128,d_ff=53248", {"tp": 8}, 38.57),
]  # fmt: skip
"""Llama-70B's and 405B's layers on B200 (SimuMax 1.2): shape, layout, GiB that Megatron Core had allocated."""


@pytest.mark.parametrize(("shape", "layout", "gib"), ALLOCATED)
def test_a_gradients_place_is_taken_by_a_tensor_that_stays(shape: str, layout: dict[str, int], gib: float) -> None:
    """In Transformer Engine; without counting them the wide layers are planned 4 to 8 per cent too small."""
    model, _ = load_model(f"llama:{shape},n_kv_heads=8,vocab_size=128256,context=4096")
    tp = layout.get("tp", 1)
    fixed = LayoutConfig(microbatch=1, sequence_parallel=tp > 1, zero=1, **layout)  # type: ignore[arg-type]
    stack = load_cluster("b200-8").stack
    others = stage_memory(replace(stack, keeps_placeholders=False), model, fixed, 32)
    own = stage_memory(stack, model, fixed, 32)
    assert max(stage.total for stage in own) - stack.overhead == pytest.approx(gib * 2**30, rel=0.025)
    d, f = model.width, model.feed_forward
    matrices = d * (d + 2 * 8 * model.head_dim) + d * d + 3 * d * f  # of four shapes
    assert [a.total - b.total for a, b in zip(own, others)] == pytest.approx([2 * matrices / tp] * len(own))


PUBLISHED = [
    ("n_layers=16,d_model=2048,d_ff=8192,tied=true", (11, 5), {"pp": 2, "dp": 8, "microbatch": 1}, 19.45),
    ("n_layers=28,d_model=3072,d_ff=8192,tied=true", (16, 12), {"pp": 2, "dp": 4, "microbatch": 2}, 56.87),
    ("n_layers=32,d_model=4096,d_ff=14336,tied=false", (9, 9, 8, 6), {"pp": 4, "dp": 2, "microbatch": 1}, 63.07),
    ("n_layers=32,d_model=4096,d_ff=14336,tied=false", (32,), {"tp": 4, "dp": 4, "microbatch": 4}, 58.34),
    ("n_layers=32,d_model=4096,d_ff=14336,tied=false", (32,), {"tp": 8, "dp": 32, "microbatch": 8, "zero": 0}, 63.39),
]  # fmt: skip
"""nanotron on H100 (the Ultra-Scale Playbook's best): shape, layers of stages, layout, GiB of the first rank."""


@pytest.mark.parametrize(("shape", "counts", "layout", "gib"), PUBLISHED)
def test_what_nanotron_reserved(shape: str, counts: tuple[int, ...], layout: dict[str, int], gib: float) -> None:
    model, _ = load_model(f"llama:{shape},n_heads=32,vocab_size=131072,context=4096")
    stack = load_cluster("nanotron-h100").stack
    assert model.layers_past_share(len(counts)) == counts
    layout = {"pp": 1, "zero": 1, **layout}
    fixed = LayoutConfig(sequence_parallel="tp" in layout, split=counts, **layout)  # type: ignore[arg-type]
    assert stage_memory(stack, model, fixed, 256)[0].total / 2**30 == pytest.approx(gib, rel=0.07)
    free = Fixed(**layout)  # type: ignore[arg-type]
    found = legal_layouts(model, fixed.tp * fixed.pp * fixed.dp, 256, free, stack, Counter())
    assert found.layout(0).split == counts


def test_a_stage_is_left_for_every_rank() -> None:
    """Also where the output matrix costs more than all layers."""
    model, _ = load_model("gpt:n_layers=4,d_model=64,n_heads=2,vocab_size=50000")
    assert model.layers_past_share(4) == (1, 1, 1, 1)
    assert model.layers_past_share(1) == (4,)
