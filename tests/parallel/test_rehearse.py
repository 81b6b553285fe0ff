"""Rehearsals against what is rehearsed: shapes, real engines on real ranks, real tensors; and the verb's answers."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pool import Pool
from torch import nn
from work_layouts import BATCH, VOCABULARY, make_config

from gradatim.cli.main import main
from gradatim.config.settings import RunConfig
from gradatim.config.settings_lora import LoraConfig
from gradatim.parallel.observe import Observer
from gradatim.parallel.rehearse import Network, Rehearsal, rehearse, shorter, situations
from gradatim.schedules import build_schedule, lower
from gradatim.shapes import REPLICATED, parameters
from gradatim.shapes.lora import adapter_parameters
from gradatim.shapes.split import layers_of_chunks

GPT2 = {"d_model": 16, "n_layers": 4, "n_heads": 4, "vocab_multiple": 4}
LLAMA = {
    "d_model": 16, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "positions": "rotary", "norm": "rms",
    "activation": "swiglu", "bias": False, "tied": False, "vocab_multiple": 4,
}  # fmt: skip
Overrides = dict[str, Any]
SINGLE: Overrides = {}


def config_of(layout: Overrides, model: Overrides = GPT2, **fields: Any) -> RunConfig:
    """A tiny run of microbatches of one sequence."""
    return make_config(model, {"microbatch": 1, **layout}, **{"precision": "fp32", **fields})


def play(config: RunConfig, rank: int = 0, *, network: Network = "nccl", fake: bool = True) -> Rehearsal:
    return rehearse(config, VOCABULARY, rank, network=network, fake=fake, whole=not fake)


def world(layout: Overrides) -> int:
    size: int = layout.get("tp", 1) * layout.get("pp", 1) * layout.get("dp", 1)
    return size


# ------------------------------------------------------------------ the observer


def test_a_storage_counts_from_its_making_until_nobody_holds_it() -> None:
    observer = Observer()
    with observer:
        a = torch.ones(256)
        observer.start()
        view = a.view(16, 16)[3]
        b = a * 2  # 2048 with a
        del a
        c = b + 1  # 3072: a is held by the view
        del view, b
        d = c.exp()
        del c, d
    assert observer.peak().activations == 3 * 1024


def test_saved_tensors_count_while_they_are_saved() -> None:
    def peak(operation: Callable[[torch.Tensor], torch.Tensor]) -> int:
        observer = Observer()
        with observer:
            x = torch.ones(256, requires_grad=True)
            observer.label(x, "weights")
            observer.start()
            y = operation(operation(operation(x)))
            del y
        return observer.peak().activations

    assert peak(torch.exp) == 3 * 1024  # each result is saved
    assert peak(torch.neg) == 2 * 1024  # nothing is


def test_modules_name_what_they_make_even_if_they_fail() -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError

    observer, layer, failing = Observer(), nn.Linear(4, 4), Failing()
    with observer, observer.attend([(layer, "layer"), (failing, "failing")]):
        x = torch.ones(1, 4)
        observer.label(layer.weight, "weights")
        observer.start()
        with pytest.raises(ValueError):
            failing(x)
        y = layer(x)
        z = y + 1
    assert observer.peak().by_kind == {"other": 2 * 16, "layer": 16}
    assert z.shape == (1, 4)


# ------------------------------------------------------------------ against shapes


LAYOUTS: list[Overrides] = [
    SINGLE,
    {"tp": 2},
    {"pp": 2},
    {"pp": 4, "split": (2, 1, 1, 1), "_layers": 5},
    {"pp": 2, "chunks": 2, "schedule": "interleaved"},
    {"tp": 4, "sequence_parallel": True, "dp": 2},
    {"tp": 2, "pp": 2, "dp": 2, "schedule": "zero-bubble"},
]


@pytest.mark.parametrize(
    ("layout", "tied"), [*((each, True) for each in LAYOUTS), *((each, False) for each in LAYOUTS[:3])]
)
def test_weights_and_moments_are_those_of_shapes(layout: Overrides, tied: bool) -> None:
    layout = dict(layout)
    model = {**GPT2, "tied": tied, "n_layers": layout.pop("_layers", 4)}
    config = config_of(layout, model)
    tp, pp = layout.get("tp", 1), layout.get("pp", 1)
    splits = layers_of_chunks(config, VOCABULARY)
    for rank in {0, world(layout) - 1}:
        stage = rank // (world(layout) // pp)
        held = [f"blocks.{layer}." for chunk, layers in enumerate(splits) if chunk % pp == stage for layer in layers]
        ends = [*(["embed."] if stage == 0 else []), *(["head."] if stage == pp - 1 else [])]
        names = tuple(held + ends)
        shapes = parameters(config.model, VOCABULARY, config.context)
        mine = [shape for shape in shapes if shape.name.startswith(names)]
        if tied and pp > 1 and stage == pp - 1:
            mine.append(shapes[0])  # the copy of the embedding
        sizes = [shape.size // (1 if shape.split == REPLICATED else tp) for shape in mine]
        found = play(config, rank)
        assert found.parameters == sum(sizes)
        assert found.weights_bytes == found.gradient_bytes - padding(found, sizes) == 4 * sum(sizes)
        assert found.optimizer_bytes == 8 * sum(sizes) + 4 * len(sizes)


def padding(found: Rehearsal, sizes: list[int]) -> int:
    """Bytes that round up the gradients' places in their buckets; none where gradients lie by themselves."""
    extra = found.gradient_bytes - 4 * sum(sizes)
    assert 0 <= extra < 64 * (len(sizes) + 8)
    return extra


@pytest.mark.parametrize("layout", [SINGLE, {"tp": 2, "sequence_parallel": True}], ids=["alone", "tp2 sp"])
def test_beside_adapters_weights_have_neither_gradients_nor_moments(layout: Overrides) -> None:
    lora = LoraConfig(rank=2, targets=("qkv", "down"))
    config = dataclasses.replace(config_of(layout, GPT2), lora=lora, init_from="base")
    tp = layout.get("tp", 1)
    found, without = play(config), play(config_of(layout, GPT2))
    shapes = adapter_parameters(config.model, lora, VOCABULARY, config.context)
    sizes = [shape.size // (1 if shape.split == REPLICATED else tp) for shape in shapes]
    assert found.parameters == without.parameters + sum(sizes)
    assert found.weights_bytes == 4 * found.parameters
    assert found.gradient_bytes - padding(found, sizes) == 4 * sum(sizes)
    assert found.optimizer_bytes == 8 * sum(sizes) + 4 * len(sizes)
    low = play(dataclasses.replace(config, precision="bf16"))
    assert low.weights_bytes < 0.55 * found.weights_bytes + 4 * sum(sizes), "fixed matrices as they are multiplied"
    assert low.optimizer_bytes == found.optimizer_bytes


def test_zero_1_shards_moments() -> None:
    whole, sharded = (play(config_of({"dp": 4, "zero": zero})) for zero in (0, 1))
    assert whole.parameters == sharded.parameters
    assert sharded.optimizer_bytes < 0.3 * whole.optimizer_bytes
    kinds = {each.kind for each in sharded.collectives if each.group == "dp"}
    assert kinds == {"reduce-scatter", "all-gather"}
    assert {each.kind for each in whole.collectives if each.group == "dp"} == {"all-reduce"}


# ------------------------------------------------------------------ against real ranks


REAL: list[Overrides] = [
    {"tp": 2},
    {"tp": 2, "sequence_parallel": True},
    {"pp": 2},
    {"pp": 2, "chunks": 2, "schedule": "interleaved"},
    {"pp": 2, "schedule": "zero-bubble", "recompute": "selective"},
    {"dp": 2},
    {"dp": 2, "zero": 1},
    {"tp": 2, "dp": 2, "sequence_parallel": True, "zero": 1, "recompute": "full"},
    {"tp": 2, "pp": 2, "schedule": "gpipe"},
    {"pp": 2, "dp": 2, "zero": 1},
]


STEPS = 5
"""At most, until no message is held longer than its caller holds it: gloo's threads let go of one when they are
scheduled, perhaps a moment later, which can only add to what is held."""
REST = pytest.mark.layouts
"""``make test`` takes some of these cases, ``make test-layouts`` all."""


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        *(pytest.param(each, GPT2, marks=() if i in (1, 3, 6) else REST) for i, each in enumerate(REAL)),
        *(pytest.param(each, LLAMA, marks=REST) for each in REAL[1:7:2]),
    ],
)
def test_real_ranks_hold_and_say_what_was_rehearsed(
    pool: Callable[[int], Pool], layout: Overrides, model: Overrides
) -> None:
    config = config_of(layout, model, precision="fp64")
    ranks = (0, world(layout) - 1)
    rehearsed = [play(config, rank, network="gloo") for rank in ranks]
    for _ in range(STEPS):
        results = pool(world(layout)).run("work_rehearse:step", config)
        peaks = [results[rank]["peak"] for rank in ranks]
        more = [peak.activations > found.peak_activation_bytes or peak.everything > found.peak_bytes
                for peak, found in zip(peaks, rehearsed)]  # fmt: skip
        if config.layout.pp > 1 or not any(more):
            break
    for rank, found in zip(ranks, rehearsed):
        real = results[rank]
        for field in ("parameters", "weights_bytes", "gradient_bytes", "optimizer_bytes", "collectives"):
            assert getattr(found, field) == real[field], field
        if config.layout.pp == 1:  # between stages it depends on the network when sent tensors are let go
            assert found.peak_activation_bytes == real["peak"].activations
            assert found.peak_bytes == real["peak"].everything


# ------------------------------------------------------------------ against real tensors


TENSORS: list[Overrides] = [
    {"pp": 2, "schedule": "1f1b"},
    {"pp": 4, "schedule": "gpipe"},
    {"pp": 2, "chunks": 2, "schedule": "interleaved", "tp": 2, "sequence_parallel": True},
    {"pp": 2, "schedule": "zero-bubble", "dp": 2, "zero": 1},
]


@pytest.mark.parametrize(
    ("layout", "model", "recompute"),
    [
        *(pytest.param(each, GPT2, "none", marks=() if i in (0, 2) else REST) for i, each in enumerate(TENSORS)),
        *(pytest.param(each, GPT2, "full", marks=REST) for each in TENSORS),
        *(pytest.param(TENSORS[2], LLAMA, recompute, marks=REST) for recompute in ("none", "full")),
    ],
)
def test_the_peak_is_that_of_real_tensors_in_a_whole_step(layout: Overrides, model: Overrides, recompute: str) -> None:
    config = config_of({**layout, "recompute": recompute}, model, global_batch=4 * BATCH, precision="bf16")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, packing="across"))
    for rank in {0, world(layout) - 1}:
        fake, real = (play(config, rank, fake=fake) for fake in (True, False))
        assert real.rehearsed_microbatches == real.microbatches
        assert fake.rehearsed_microbatches < fake.microbatches or layout["schedule"] == "gpipe"
        same = {"seconds": 0.0, "rehearsed_microbatches": 0}
        assert dataclasses.replace(fake, **same) == dataclasses.replace(real, **same)
        assert sum(fake.activation_bytes.values()) == fake.peak_activation_bytes


def test_activations_follow_the_schedule_and_recomputation() -> None:
    def activations(**layout: Any) -> int:
        return play(config_of({"pp": 2, **layout}, global_batch=16)).peak_activation_bytes

    assert activations(schedule="gpipe") > 3 * activations()
    assert activations(recompute="full") < activations(recompute="selective") < activations()


@pytest.mark.parametrize("name", ["1f1b", "zero-bubble", "interleaved"])
def test_a_shorter_step_meets_the_same_situations(name: str) -> None:
    chunks = 2 if name == "interleaved" else 1
    whole = lower(build_schedule(name, 4, 64, chunks))
    for rank in range(4):
        found = shorter(whole, rank)
        assert found.microbatches < 40
        assert situations(found, rank) == situations(whole, rank)
    gpipe = lower(build_schedule("gpipe", 4, 12))
    assert shorter(gpipe, 0) is gpipe


# ------------------------------------------------------------------ the verb


@REST
def test_a_trillion_parameters_in_a_minute(tmp_path: Path) -> None:
    """gpt3-1t over 3,072 ranks, the first of them: in less than 60 s and 4 GiB."""
    arguments = ["gpt3-1t", "--rank", "0", "--world", "3072", "--layout.tp", "8", "--layout.pp", "64", "--json"]
    began = time.monotonic()
    script = "import sys; from gradatim.cli.main import main; sys.exit(main(['rehearse', *sys.argv[1:]]))"
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert time.monotonic() - began < 120  # tests share their machine; alone it takes 15
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 << 20
    assert found["layout"]["dp"] == 6
    assert found["parameters"] == 2_182_700_800  # 2 of 128 layers and the embedding, an eighth of each
    assert found["microbatches"] == 512
    sends = next(each for each in found["collectives"] if each["kind"] == "send")
    assert sends == {"kind": "send", "group": "pp", "bytes": 4 * 2048 * 25600, "count": 512}


def test_the_answer_of_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model.d_model", "32", "--model.n_heads", "2", "--global_batch", "8", "--layout.microbatch", "1"]
    arguments = ["rehearse", "demo", "--rank", "5", "--world", "8", "--layout.tp", "2", "--layout.pp", "2", *small]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    fields = {"parameters", "weights_bytes", "gradient_bytes", "optimizer_bytes", "peak_activation_bytes"}
    fields |= {"activation_bytes", "peak_bytes", "collectives", "layout", "microbatches", "rehearsed_microbatches"}
    assert set(document) == {*fields, "seconds"}
    assert {key: document["layout"][key] for key in ("tp", "pp", "dp", "stage", "replica", "shard")} == {
        "tp": 2, "pp": 2, "dp": 2, "stage": 1, "replica": 0, "shard": 1,
    }  # fmt: skip
    assert set(document["collectives"][0]) == {"kind", "group", "bytes", "count"}
    assert {each["group"] for each in document["collectives"]} == {"tp", "pp", "dp", "ends", "world"}
    assert sum(document["activation_bytes"].values()) == document["peak_activation_bytes"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "stage 1, replica 0, shard 1" in text
    assert "activations, at their peak" in text


@pytest.mark.parametrize(
    ("arguments", "where", "allowed"),
    [
        (["--rank", "4", "--world", "4"], "--rank", "0 … 3"),
        (["--rank", "-1", "--world", "4"], "--rank", "0, 1, 2, …"),
        (["--rank", "0", "--world", "0"], "--world", "1, 2, 3, …"),
        (["--rank", "0", "--world", "6", "--layout.tp", "4"], "--world", "multiples of 4: 4, 8, …"),
        (["--rank", "0", "--world", "6", "--layout.tp", "2", "--layout.dp", "2"], "--world", "4"),
        (["--rank", "0", "--world", "6", "--layout.tp", "3"], "--layout.tp", "tp 2 or 4"),
        (["--rank", "0", "--world", "3"], "--layout.dp", "dp 2 or 4"),
    ],
)
def test_what_cannot_be_rehearsed_is_told(
    arguments: list[str], where: str, allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", "demo", *arguments, "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert any(problem["where"] == where and problem["allowed"].startswith(allowed) for problem in problems)
    assert all(problem["try"] for problem in problems)


def test_n_grams_have_no_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rehearse", "bigram", "--rank", "0", "--world", "1", "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert problem["where"] == "model.kind"
