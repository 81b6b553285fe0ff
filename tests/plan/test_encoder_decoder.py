"""Translators: parameters, FLOPs, memory and time are those of an encoder and a decoder that looks at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import gradatim.parallel.rehearse as rehearsal
from gradatim.config.settings import DataConfig, LayoutConfig, OptimizerConfig, RunConfig
from gradatim.config.settings_translators import TransformerConfig
from gradatim.plan.architecture import EncoderDecoder
from gradatim.plan.auto import choose_layout
from gradatim.plan.cluster import load_cluster
from gradatim.plan.memory import stage_memory
from gradatim.plan.physics import FITTED
from gradatim.plan.predict import part_times
from gradatim.plan.search import judge
from gradatim.plan.work import block_work, cross_work, head_work
from gradatim.shapes import flops_per_token, parameter_count
from gradatim.text.batches import Batch, Source

WORDS, CONTEXT = 8192, 128
SHAPES: list[dict[str, Any]] = [
    {"d_model": 256, "n_layers": 3, "n_heads": 4, "d_ff": 1024},
    {"d_model": 128, "n_layers": 2, "n_encoder_layers": 5, "n_heads": 4, "embeddings": "separate",
     "positions": "rotary", "activation": "gelu"},
    {"d_model": 256, "n_layers": 2, "n_heads": 8, "norm_position": "post", "embeddings": "tied"},
]  # fmt: skip


def model_of(shape: dict[str, Any]) -> EncoderDecoder:
    return EncoderDecoder(TransformerConfig(**shape, dropout=0.0, label_smoothing=0.0), WORDS, CONTEXT)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_flops_are_those_of_the_shapes(shape: dict[str, Any]) -> None:
    model = model_of(shape)
    assert model.parameter_count == parameter_count(model.config, WORDS, CONTEXT)
    stack = load_cluster("selene-2022").stack
    options: dict[str, Any] = {"sequences": 1, "tp": 1}
    again = {"sequence_parallel": False, "recompute": "none"}
    works = [block_work(model.encoder, stack, **options, **again)] * model.encoder_layers
    works += [block_work(model.decoder, stack, **options, **again)] * model.layers
    works += [cross_work(model, stack, **options, recompute="none")] * model.layers
    works.append(head_work(model, stack, **options, sequence_parallel=False))
    flops = sum(product.flops for work in works for side in (work.forward, work.backward) for product in side.products)
    assert flops == CONTEXT * flops_per_token(model.config, WORDS, CONTEXT)


@pytest.mark.parametrize("fields", [{"microbatch": 8}, {"tp": 2, "dp": 2, "zero": 1, "microbatch": 4}])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_what_a_rehearsal_counts(
    shape: dict[str, Any], fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pairs(config: RunConfig, rows: int) -> Batch:
        ids = torch.zeros(rows, config.context, dtype=torch.int64)
        return Batch(ids, ids.clone(), source=Source(ids.clone(), ids[:, 0] + config.context))

    monkeypatch.setattr(rehearsal, "empty_batch", pairs)
    model, layout = model_of(shape), LayoutConfig(**fields)
    batch = 2 * fields["microbatch"] * layout.dp
    config = RunConfig(
        model=model.config, layout=layout, context=CONTEXT, global_batch=batch, precision="bf16",
        optimizer=OptimizerConfig(clip=1.0), data=DataConfig(packing="within"),
    )  # fmt: skip
    (mine,) = stage_memory(load_cluster("gradatim-h100").stack, model, layout, batch)
    real = rehearsal.rehearse(config, WORDS, 0)
    assert mine.weights == pytest.approx(real.weights_bytes, rel=2e-3)
    assert mine.optimizer == pytest.approx(real.optimizer_bytes, rel=2e-3)
    assert mine.activations + mine.working == pytest.approx(real.peak_activation_bytes, rel=0.05)


@pytest.mark.parametrize("cluster", ["selene-2022", "cpu"])
def test_time_is_the_sum_of_both_sides(cluster: str) -> None:
    """An encoder of n layers more takes n of its blocks longer, and attention to the source costs something."""
    machine, shape = load_cluster(cluster), SHAPES[0]
    arguments = (FITTED, machine, model_of(shape), 4, 1, False, "none")
    deep = model_of({**shape, "n_encoder_layers": 7})
    own = part_times(FITTED, machine, deep.encoder, 4, 1, False, "none")[0]
    block, embedding, _ = part_times(*arguments)
    deeper = part_times(FITTED, machine, deep, 4, 1, False, "none")[1]
    assert deeper.forward.total - embedding.forward.total == pytest.approx(4 * own.forward.total)
    alone = part_times(FITTED, machine, deep.decoder, 4, 1, False, "none")[0]
    assert block.forward.total > alone.forward.total and block.backward.total > alone.backward.total
    layout = LayoutConfig(microbatch=4)
    assert (
        judge(machine, deep, layout, 8).prediction.seconds
        > judge(machine, model_of(shape), layout, 8).prediction.seconds
    )


def test_auto_with_batches_of_so_many_tokens() -> None:
    config = RunConfig(
        model=model_of(SHAPES[0]).config, batch_tokens=4096, context=CONTEXT, cluster="cpu",
        data=DataConfig(train=("phrasebook",), source_language="fr", target_language="en"),
    )  # fmt: skip
    layout = choose_layout(config, ()).layout
    assert layout.tp * layout.dp == 2 and (layout.pp, layout.microbatch, layout.recompute) == (1, None, "none")
    assert choose_layout(replace(config, layout=LayoutConfig(tp=2)), {"tp"}).layout.tp == 2
