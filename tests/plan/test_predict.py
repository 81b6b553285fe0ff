"""Predictions of published runs: a few figures stand for the benchmark, which has them all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradatim.config.settings import LayoutConfig
from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.cluster import Cluster, load_cluster
from gradatim.plan.communication import Messages, collective_seconds, transfer_seconds
from gradatim.plan.physics import FITTED
from gradatim.plan.predict import exposed, held_parameters, pipeline_times, predict, sharded_seconds
from gradatim.shapes import parameter_count

TABLE_5 = [
    ("n_layers=48,d_model=6144,n_heads=64", {"microbatch": 4}, 4, 1.42, 1.10),
    ("n_layers=96,d_model=12288,n_heads=96", {"pp": 8, "chunks": 3}, 64, 18.13, 13.75),
    ("n_layers=128,d_model=25600,n_heads=160", {"pp": 64}, 512, 94.42, 71.49),
]
"""Korthikanti et al. 2022 (arXiv:2205.05198), table 5: full recomputation, and selective with sequence parallelism."""


@pytest.mark.parametrize(("shape", "layout", "batch", "full", "selective"), TABLE_5)
def test_table_5(shape: str, layout: dict[str, int], batch: int, full: float, selective: float) -> None:
    model, _ = load_model(f"gpt:{shape},vocab_size=51200")
    cluster = load_cluster("selene-2022")
    common = {"tp": 8, "microbatch": 1, "schedule": "interleaved" if "chunks" in layout else "1f1b", **layout}
    times = [
        predict(cluster, model, LayoutConfig(recompute=r, sequence_parallel=s, **common), batch).seconds  # type: ignore[arg-type]
        for r, s in (("full", False), ("selective", True))
    ]
    assert times == pytest.approx([full, selective], rel=0.06)
    assert times[0] / times[1] == pytest.approx(full / selective, rel=0.06)


PUBLISHED = [
    ("n_layers=28,d_model=3072,d_ff=8192", True, 3.57, 43.77, {"pp": 2, "dp": 8, "microbatch": 2, "zero": 1}),
    ("n_layers=32,d_model=4096,d_ff=14336", False, 8.86, 36.33, {"tp": 8, "dp": 16, "microbatch": 8}),
    ("n_layers=32,d_model=4096,d_ff=14336", False, 8.86, 45.22, {"pp": 4, "dp": 2, "microbatch": 1, "zero": 1}),
]
"""nanotron on H100 (the Ultra-Scale Playbook's table of best layouts): shape, tied, billions, MFU %, layout."""


@pytest.mark.parametrize(("shape", "tied", "billions", "mfu", "layout"), PUBLISHED)
def test_gradients_summed_in_buckets(
    shape: str, tied: bool, billions: float, mfu: float, layout: dict[str, int]
) -> None:
    model, _ = load_model(f"llama:{shape},n_heads=32,vocab_size=131072,context=4096,tied={str(tied).lower()}")
    assert model.parameter_count / 1e9 == pytest.approx(billions, rel=0.01)
    split = model.layers_past_share(layout.get("pp", 1))
    fixed = LayoutConfig(split=split, sequence_parallel="tp" in layout, **layout)  # type: ignore[arg-type]
    devices = fixed.tp * fixed.pp * fixed.dp
    seconds = model.flops_per_token * 256 * 4096 / devices / (mfu / 100 * 989e12)
    assert predict(load_cluster("nanotron-h100"), model, fixed, 256).seconds == pytest.approx(seconds, rel=0.06)


def test_zero_1_that_sums_whole_gradients_costs_more_than_none() -> None:
    model, _ = load_model("llama:n_layers=16,d_model=2048,n_heads=32,vocab_size=131072,context=4096,tied=true")
    cluster = load_cluster("nanotron-h100")

    def data(cluster: Cluster, zero: int) -> float:
        layout = LayoutConfig(dp=64, microbatch=4, zero=zero)  # type: ignore[arg-type]
        return predict(cluster, model, layout, 256).breakdown["data"]

    def other(**traits: object) -> Cluster:
        return replace(cluster, stack=replace(cluster.stack, **traits))  # type: ignore[arg-type]

    assert data(cluster, 1) > data(other(copies_weights=False), 1) > data(cluster, 0)
    alone = {"overlap_data": False, "copies_weights": False}
    assert data(other(**alone), 0) > data(other(**alone, bucket=0.0), 0)
    whole, sharded = (data(other(**alone, bucket=0.0, scatters_gradients=x), 1) for x in (False, True))
    assert whole > data(other(**alone, bucket=0.0), 0) > sharded


def test_what_more_of_a_thing_costs() -> None:
    model, _ = load_model("gpt:n_layers=24,d_model=4096,n_heads=32,vocab_size=51200")
    cluster = load_cluster("selene-2022")

    def seconds(**layout: object) -> dict[str, float]:
        return predict(cluster, model, LayoutConfig(**{"microbatch": 1, **layout}), 64).breakdown  # type: ignore[arg-type]

    plain = seconds(tp=4, dp=4)
    assert seconds(tp=4, dp=4, recompute="full")["compute"] > 1.2 * plain["compute"]
    assert seconds(tp=8, dp=4)["tensor"] > plain["tensor"] > 0 == seconds(dp=4)["tensor"]
    assert seconds(pp=4, dp=4)["bubble"] > 0 == plain["bubble"]
    assert seconds(tp=4, dp=16)["optimizer"] == plain["optimizer"] > seconds(tp=4, dp=16, zero=1)["optimizer"]
    looped = seconds(pp=4, dp=4, chunks=3, schedule="interleaved")
    assert looped["bubble"] < seconds(pp=4, dp=4)["bubble"] and looped["pipeline"] > seconds(pp=4, dp=4)["pipeline"]


def test_a_loss_step_by_step_costs_more() -> None:
    model, _ = load_model("gpt:n_layers=4,d_model=1024,n_heads=16,vocab_size=131072")
    cluster = load_cluster("selene-2022")
    fused = replace(cluster, stack=replace(cluster.stack, fused_loss=True))
    one, other = (predict(c, model, LayoutConfig(microbatch=4), 4).breakdown["compute"] for c in (cluster, fused))
    logits = 4 * model.context * 131072 * 4  # bytes in fp32, over which it goes seven times more often
    moved = 7 * logits / (cluster.device.bandwidth * FITTED.memory)
    assert one - other == pytest.approx(moved * cluster.stack.multiplier, rel=1e-6)


def test_transfers_that_the_device_waits_for() -> None:
    model, _ = load_model("gpt:n_layers=24,d_model=4096,n_heads=32,vocab_size=51200")
    cluster = load_cluster("selene-2022")
    freely = replace(cluster, stack=replace(cluster.stack, transfer_operations=0))
    layout = LayoutConfig(pp=4, microbatch=1, chunks=2, schedule="interleaved")
    waited = predict(cluster, model, layout, 16).breakdown["pipeline"]
    hosts = 2 * 16 * 2 * cluster.stack.transfer_operations * FITTED.launch  # both ways, microbatches, chunks
    assert waited - predict(freely, model, layout, 16).breakdown["pipeline"] == pytest.approx(
        hosts * cluster.stack.multiplier
    )


def test_a_tied_matrix_on_two_stages_is_summed_over_both() -> None:
    shape = "gpt:n_layers=24,d_model=4096,n_heads=32,vocab_size=51200,tied="
    cluster = load_cluster("selene-2021")
    tied, alone = (
        predict(cluster, load_model(shape + word)[0], LayoutConfig(pp=4, microbatch=1), 16).breakdown["data"]
        for word in ("true", "false")
    )
    moved = 51200 * 4096 * 4 / (cluster.node.link * FITTED.link)  # a sum over two moves it once; both in one node
    assert alone == 0 and tied == pytest.approx(moved * cluster.stack.multiplier, rel=0.05)


def test_gradients_that_are_sharded_are_scattered_in_every_microbatch() -> None:
    model, _ = load_model("gpt:n_layers=8,d_model=1024,n_heads=16,vocab_size=51200")
    cluster = load_cluster("selene-2022")
    sums = {  # seconds of gradients' and weights' ways, for one microbatch and for four
        (zero, m): predict(cluster, model, LayoutConfig(dp=8, microbatch=1, zero=zero), 8 * m).breakdown["data"]  # type: ignore[arg-type]
        for zero in (1, 2, 3) for m in (1, 4)
    }  # fmt: skip
    assert sums[1, 4] == pytest.approx(sums[1, 1])
    assert sums[3, 4] == pytest.approx(4 * sums[3, 1])
    scattered = (sums[2, 4] - sums[2, 1]) / 3
    assert scattered > 0.5 * sums[1, 1] and sums[2, 4] == pytest.approx(sums[2, 1] + 3 * scattered)
    behind = replace(cluster, stack=replace(cluster.stack, overlap_data=True))
    layout = LayoutConfig(dp=8, microbatch=1, zero=2)
    assert predict(behind, model, layout, 32).breakdown["data"] < sums[2, 4]


def test_weights_hide_behind_all_that_a_rank_computes() -> None:
    """A rank with two chunks gathers both behind the passes of both, layer by layer of its own."""
    model, _ = load_model("gpt:n_layers=16,d_model=4096,n_heads=32,vocab_size=51200")
    cluster = load_cluster("mpt-a100-80gb")
    one, two = (
        predict(cluster, model, LayoutConfig(pp=4, dp=8, microbatch=2, zero=3, chunks=v, schedule=name), 128)
        for v, name in ((1, "1f1b"), (2, "interleaved"))
    )
    assert two.breakdown["data"] == pytest.approx(one.breakdown["data"], rel=1e-3)
    layout = LayoutConfig(pp=4, dp=8, zero=3)
    exposing = replace(cluster, stack=replace(cluster.stack, overlap_data=False))
    waited = sharded_seconds(FITTED, exposing, model, layout, [4] * 4, None)
    held = max(held_parameters(model, layout, [4] * 4))
    shares = [(2, "all-gather", cluster.stack.weight_bytes), (1, "reduce-scatter", cluster.stack.reduced_bytes)]
    expected = sum(
        times * 4 * collective_seconds(FITTED, cluster, kind, held * size / 4, 8) for times, kind, size in shares
    )
    assert waited == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "few", "many", "batch", "measured"),
    [
        ("n_layers=32,d_model=2560,n_heads=20", 128, 512, 8, 0.756 / 0.699),
        ("n_layers=48,d_model=7168,n_heads=56", 128, 512, 8, 7.743 / 7.450),
        ("n_layers=40,d_model=5120,n_heads=40", 128, 512, 16, 6.616 / 6.450),
    ],
)
def test_more_devices_take_longer_for_the_same_work(
    shape: str, few: int, many: int, batch: int, measured: float
) -> None:
    """MPT of 3, 30 and 13 billion parameters on H100 (llm-foundry's table): a third of what is lost is not enough."""
    model, _ = load_model(f"gpt:{shape},vocab_size=50368,context=2048")
    large = model.width > 2560
    layout = LayoutConfig(microbatch=batch, zero=3 if large else 2, recompute="full" if large else "none")
    one, other = (
        predict(load_cluster("mpt-h100-80gb"), model, replace(layout, dp=dp), batch * dp).seconds for dp in (few, many)
    )
    assert 0.6 < (other / one - 1) / (measured - 1) < 1.4


def test_a_part_of_the_sequence_is_sent_as_it_is() -> None:
    """Under sequence parallelism a rank sends its own part, and the receiver has nothing to gather."""
    cluster = load_cluster("selene-2022")
    size, tp = 2.0 * 2048 * 12288, 8
    across = {"tp": tp, "dp": 1, "pp": 8}
    split = transfer_seconds(FITTED, cluster, size / tp, **across, split=True)
    whole = transfer_seconds(FITTED, cluster, size, **across)
    assert whole - split == pytest.approx(collective_seconds(FITTED, cluster, "all-gather", size, tp))
    model, _ = load_model("gpt:n_layers=16,d_model=12288,n_heads=96,vocab_size=51200")
    layout = LayoutConfig(tp=tp, pp=8, microbatch=1, sequence_parallel=True)
    host = cluster.stack.transfer_operations * FITTED.launch
    assert pipeline_times(cluster, model, layout, 16).transfer == pytest.approx(split + host)


def test_communication_beside_computation() -> None:
    assert exposed(Messages(1.0), 0.0) == 1.0
    assert 0 < exposed(Messages(1.0), 5.0) < 0.5
    assert exposed(Messages(5.0), 1.0) > 4.0
    assert exposed(Messages(1.0, 2.0), 5.0) == exposed(Messages(1.0), 5.0) + 2.0, "hops are not hidden"


@pytest.mark.parametrize("recipe", ["gpt2-124m", "gpt3-175b", "llama3-8b", "bert-large"])
def test_parameters_are_the_models(recipe: str) -> None:
    model, config = load_model(recipe)
    assert config is not None
    assert model.parameter_count == parameter_count(config.model, model.vocab_size, model.context)
    split = Architecture(config.model, model.vocab_size, model.context)
    assert 8 * split.block_parameters(8) >= split.block_parameters()
