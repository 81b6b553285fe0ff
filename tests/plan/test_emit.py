"""What is handed to other trainers: recipes that check, flags that say the layout, refusals that say why."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from gradatim.config import check_config, load_config
from gradatim.config.settings import LayoutConfig
from gradatim.errors import ConfigError
from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.cluster import load_cluster
from gradatim.plan.emit import AS_OF, TRAINERS, emit, stage_text
from gradatim.shapes.gpt import padded_vocabulary

WIDE = LayoutConfig(
    tp=8, pp=12, dp=2, chunks=2, schedule="interleaved", microbatch=1, sequence_parallel=True, zero=1, recompute="full"
)
LLAMA = "llama:n_layers=32,d_model=4096,n_heads=32,n_kv_heads=8,d_ff=14336,vocab_size=128256"


def flags(text: str) -> dict[str, list[str]]:
    """Flags of an emitted command with their values."""
    found: dict[str, list[str]] = {}
    command = text[text.index("torchrun") :].replace("\\\n", " ")
    for word in shlex.split(command)[5:]:
        if word.startswith("--"):
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


@pytest.mark.parametrize("name", ["gpt3-175b", "gpt:n_layers=24,d_model=3072,n_heads=24,vocab_size=51200"])
def test_recipe_passes_check_and_says_the_layout(name: str, tmp_path: Path) -> None:
    model, config = load_model(name)
    text = emit("gradatim", model, config, WIDE, 48)
    path = tmp_path / "planned.yaml"
    path.write_text(text)
    assert check_config(path) == []
    read = load_config(path)
    assert (read.layout, read.global_batch, read.context) == (WIDE, 48, model.context)
    vocabulary = read.data.tokenizer.vocab_size
    assert vocabulary == model.vocab_size
    assert padded_vocabulary(vocabulary, read.model.vocab_multiple) == model.vocabulary  # type: ignore[union-attr]


def test_megatron_flags() -> None:
    model, config = load_model("gpt3-175b")
    found = flags(emit("megatron", model, config, WIDE, 48, load_cluster("selene-2021")))
    assert found["--tensor-model-parallel-size"] == ["8"]
    assert found["--pipeline-model-parallel-size"] == ["12"]
    assert found["--num-layers-per-virtual-pipeline-stage"] == ["4"]
    assert (found["--micro-batch-size"], found["--global-batch-size"]) == (["1"], ["48"])
    assert found["--recompute-granularity"] == ["full"] and found["--recompute-method"] == ["uniform"]
    assert "--sequence-parallel" in found and "--use-distributed-optimizer" in found
    assert "--swiglu" not in found and "--disable-bias-linear" not in found
    padded = padded_vocabulary(50257, 8 * int(found["--make-vocab-size-divisible-by"][0]))
    assert padded == model.vocabulary


def test_megatron_llama_and_shards() -> None:
    model, _ = load_model(LLAMA)
    layout = LayoutConfig(tp=2, dp=4, microbatch=1, zero=3)
    text = emit("megatron", model, None, layout, 8, load_cluster("eos-h100"))
    found = flags(text)
    assert found["--data-parallel-sharding-strategy"] == ["optim_grads_params"]
    assert found["--num-query-groups"] == ["8"] and found["--ffn-hidden-size"] == ["14336"]
    assert {"--swiglu", "--disable-bias-linear", "--untie-embeddings-and-output-weights"} <= set(found)
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in text  # which its sharding refuses


@pytest.mark.parametrize(
    ("cluster", "change", "overlaps", "told"),
    [
        ("eos-h100", {}, True, "needs Transformer Engine"),
        ("eos-h100", {"sequence_parallel": False}, False, "with --sequence-parallel alone"),
        ("eos-h100", {"tp": 1, "dp": 16, "sequence_parallel": False}, False, ""),
        ("selene-2022", {}, False, ""),
    ],
)
def test_megatron_hides_messages_where_the_plan_does(
    cluster: str, change: dict[str, object], overlaps: bool, told: str
) -> None:
    """Megatron-LM asserts sequence parallelism beside --tp-comm-overlap."""
    model, config = load_model("gpt3-175b")
    text = emit("megatron", model, config, replace(WIDE, **change), 48, load_cluster(cluster))  # type: ignore[arg-type]
    assert ("--tp-comm-overlap" in flags(text)) is overlaps
    assert told in text and ("predicted time" in text) is bool(told)


@pytest.mark.parametrize("counts", [[3, 4, 4, 3], [1, 2], [5, 4, 4, 4, 4, 5, 5, 2]])
def test_stage_text_says_each_chunk(counts: list[int]) -> None:
    """Unrolled as Megatron-LM documents: (…)*n first, then t*n."""
    import re

    text = stage_text(counts)
    for pattern in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        text = re.sub(pattern, lambda found: found.group(1) * int(found.group(2)), text)
    assert text.startswith("E") and text.endswith("L")
    assert [stage.strip("EL") for stage in text.split("|")] == ["t" * count for count in counts]


def test_torchtitan_knows_its_own_llama() -> None:
    model, _ = load_model(LLAMA, context=8192)
    layout = LayoutConfig(
        tp=2, pp=4, dp=4, chunks=2, schedule="interleaved", microbatch=1, sequence_parallel=True, zero=3
    )
    text = emit("torchtitan", model, None, layout, 64)
    assert "--config llama3_8b" in text and text.rstrip().endswith("activation-checkpoint:none")
    found = flags(text)
    assert found["--parallelism.pipeline_parallel_schedule"] == ["Interleaved1F1B"]
    assert found["--parallelism.pipeline_parallel_layers_per_stage"] == ["4"]
    assert found["--parallelism.num_pp_microbatches"] == ["16"]
    assert found["--training.num_tokens_per_train_step"][0] == str(64 * 8192)
    assert found["--parallelism.data_parallel_shard_degree"] == ["4"]
    uneven = emit("torchtitan", model, None, replace(layout, pp=3, dp=1, chunks=1, schedule="1f1b"), 6)
    assert "module_fqns_per_model_part" in uneven and "'tok_embeddings', 'layers.0'" in uneven


def test_deepspeed_json_and_flags() -> None:
    model, config = load_model("gpt3-175b")
    layout = LayoutConfig(tp=8, pp=12, dp=2, microbatch=2, zero=1)
    text = emit("deepspeed", model, config, layout, 48)
    document = json.loads(text[text.index("{") : text.index("\nEND")])
    assert document["train_batch_size"] == 48
    assert document["train_micro_batch_size_per_gpu"] * document["gradient_accumulation_steps"] * layout.dp == 48
    assert document["zero_optimization"] == {"stage": 1} and document["bf16"] == {"enabled": True}
    assert flags(text)["--pipeline-model-parallel-size"] == ["12"]


@pytest.mark.parametrize(
    ("trainer", "name", "change", "said"),
    [
        ("gradatim", LLAMA, {"zero": 3}, "stages 2 and 3"),
        ("megatron", LLAMA, {"pp": 2, "schedule": "zero-bubble"}, "schedule"),
        ("torchtitan", "gpt3-175b", {}, "Llama"),
        ("torchtitan", LLAMA, {"pp": 2, "schedule": "zero-bubble"}, "two chunks"),
        ("deepspeed", LLAMA, {"pp": 2, "chunks": 2, "schedule": "interleaved"}, "one chunk"),
        ("deepspeed", LLAMA, {"pp": 2, "zero": 2}, "ZeRO 0 and 1"),
        ("deepspeed", LLAMA, {"pp": 2, "split": (10, 22)}, "evenly"),
        ("megatron", "bert:n_layers=12,d_model=768,n_heads=12,vocab_size=30720", {}, "BERT"),
        ("colossalai", LLAMA, {}, "no such trainer"),
    ],
)
def test_refusals_say_why(trainer: str, name: str, change: dict[str, object], said: str) -> None:
    model, config = load_model(name)
    layout = replace(LayoutConfig(dp=2, microbatch=1), **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        emit(trainer, model, config, layout, 8)
    problem = caught.value.problems[0]
    assert said in problem.what and problem.allowed
    assert problem.where.startswith("--emit")


def test_every_trainer_takes_the_plain_layout() -> None:
    model, _ = load_model(LLAMA)
    assert isinstance(model, Architecture)
    for trainer in TRAINERS:
        text = emit(trainer, model, None, LayoutConfig(dp=4, microbatch=2), 16)
        assert text.endswith("\n")
        assert (trainer == "gradatim") or f"main branch in {AS_OF[trainer]}" in text
