"""A planned layout as other programs want it: a recipe, or the launch of a trainer with its flags. No torch.

Flags are those of the projects' main branches at the time that ``AS_OF`` says, and so does the text. Shape, batch and
layout are stated; data, tokenizer, learning rate and checkpoints are left to whoever trains. What a trainer cannot do
is refused; where it has something near, a comment says so.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal

from gradatim.config import config_to_yaml
from gradatim.config.rules import problems as rule_problems
from gradatim.config.settings import DataConfig, GptConfig, LayoutConfig, RunConfig, TokenizerConfig
from gradatim.errors import ConfigError, Problem
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster
from gradatim.plan.ours import recount

AS_OF = {"megatron": "August 2026", "torchtitan": "August 2026", "deepspeed": "July 2025"}
"""State of each project's main branch that its flags were read from."""
PRECISION: Literal["bf16"] = "bf16"
"""Of a recipe that is made from a shape alone."""
Flags = list[str]
"""A line of a command: flags that belong together, with their values."""


def emit(
    trainer: str,
    model: Architecture,
    config: RunConfig | None,
    layout: LayoutConfig,
    global_batch: int,
    cluster: Cluster | None = None,
) -> str:
    """The text for a trainer, one of ``TRAINERS``.

    ``config`` is the recipe that the model came from, where it did. A ``cluster`` adds what its size and its stack
    say: processes of a node, overlap of communication, fused attention. Raises ConfigError where the trainer is not
    known or cannot do what the layout asks for.
    """
    if trainer not in TRAINERS:
        raise ConfigError(
            Problem(where="--emit", what="there is no such trainer", got=trainer, allowed=", ".join(TRAINERS))
        )
    assert layout.microbatch
    return TRAINERS[trainer](model, config, layout, global_batch, cluster)


def _refuse(trainer: str, what: str, got: str, allowed: str, attempt: str) -> ConfigError:
    return ConfigError(Problem(where=f"--emit {trainer}", what=what, got=got, allowed=allowed, attempt=attempt))


def _decoder(trainer: str, model: Architecture) -> GptConfig:
    """The shape of a decoder, which is what the other trainers take."""
    if isinstance(model.config, GptConfig):
        return model.config
    what = "its BERT is not this one" if model.config.kind == "bert" else "it is given decoders alone"
    raise _refuse(trainer, what, model.config.kind, "gpt, llama", "--emit gradatim")


# --------------------------------------------------------------------------- gradatim


def _gradatim(
    model: Architecture, config: RunConfig | None, layout: LayoutConfig, batch: int, cluster: Cluster | None
) -> str:
    """A whole recipe, which ``gradatim check`` passes."""
    kind: Literal["bpe", "wordpiece"] = "bpe" if isinstance(model.config, GptConfig) else "wordpiece"
    vocabulary = TokenizerConfig(kind=kind, vocab_size=model.vocab_size)
    base = config or RunConfig(data=DataConfig(tokenizer=vocabulary), precision=PRECISION)
    base = replace(base, optimizer=replace(base.optimizer, warmup=min(base.optimizer.warmup, base.steps)))
    shape = replace(model.config, vocab_multiple=math.lcm(model.config.vocab_multiple, layout.tp))
    own = base.layout
    layout = replace(layout, timeout=own.timeout, check=own.check)
    made = replace(base, batch_tokens=None, global_batch=batch, context=model.context, model=shape, layout=layout)
    found = rule_problems(made)
    if found:
        raise ConfigError(
            *(
                replace(p, where=f"--emit gradatim: {p.where}", attempt=p.attempt.replace("--layout.", "--"))
                for p in found
            )
        )
    memory = recount(cluster, model, layout, batch, made.precision) if cluster else None
    return (
        f"# Planned: {_axes(layout)}. Save it, then: gradatim train FILE\n"
        + (f"# Does not fit: {memory.text}.\n" if memory and not memory.fits else "")
        + ("" if config else "# Text, tokenizer, learning rate and steps are the defaults: state yours.\n")
        + config_to_yaml(made)
    )


# --------------------------------------------------------------------------- Megatron-LM


def _megatron(
    model: Architecture, config: RunConfig | None, layout: LayoutConfig, batch: int, cluster: Cluster | None
) -> str:
    """Launch of Megatron-LM's pretraining script."""
    shape = _decoder("megatron", model)
    if layout.pp > 1 and layout.schedule not in ("1f1b", "interleaved"):
        raise _refuse(
            "megatron", "this schedule is not one of its own", layout.schedule, "1f1b, interleaved", "--schedule 1f1b"
        )
    stack, fsdp = cluster.stack if cluster else None, layout.zero >= 2
    lines: list[Flags] = [_sizes(layout)]
    counts = model.layer_counts(layout)
    if layout.pp > 1 and len(set(counts)) > 1:
        lines.append(["--pipeline-model-parallel-layout", stage_text(counts)])
    elif layout.chunks > 1:
        lines.append(["--num-layers-per-virtual-pipeline-stage", str(counts[0])])
    if layout.sequence_parallel:
        lines.append(["--sequence-parallel"])
    lines.append(_batches(layout, batch))
    lines += _recomputed(layout)
    if fsdp:
        strategy = "optim_grads" if layout.zero == 2 else "optim_grads_params"
        lines.append(["--use-megatron-fsdp", "--data-parallel-sharding-strategy", strategy])
        lines.append(["--ckpt-format", "fsdp_dtensor"])
    if layout.zero:
        lines.append(["--use-distributed-optimizer"])
    if stack and stack.overlap_data and layout.dp > 1:
        lines.append(["--overlap-grad-reduce", *(["--overlap-param-gather"] if layout.zero else [])])
    hides = stack is not None and stack.overlap_tensor > 0 and layout.tp > 1
    if hides and layout.sequence_parallel:
        lines.append(["--tp-comm-overlap"])
    lines += _shape(model)
    if model.kv_heads != model.heads:
        lines.append(["--group-query-attention", "--num-query-groups", str(model.kv_heads)])
    if shape.positions == "rotary":
        lines.append(["--position-embedding-type", "rope", "--rotary-base", f"{shape.rope_theta:.0f}"])
    name = "RMSNorm" if shape.norm == "rms" else "LayerNorm"
    lines.append(["--normalization", name, "--norm-epsilon", f"{shape.norm_eps:g}"])
    lines += _variants(model, shape, layout)
    if stack and stack.attention == "flash":
        lines.append(["--attention-backend", "flash"])
    lines.append(["--bf16"])
    remarks = [
        f"Megatron-LM: {_axes(layout)}. Add data, tokenizer, learning rate and --train-iters.",
        *_where(layout, cluster),
        _as_of("megatron"),
        "--vocab-size is read with --tokenizer-type NullTokenizer; another tokenizer brings its own size.",
    ]
    if hides and layout.sequence_parallel:
        remarks.append("The predicted time counts on --tp-comm-overlap, which needs Transformer Engine (the default).")
    elif hides:
        remarks.append(
            "The predicted time hides tensor-parallel messages: it does that with --sequence-parallel alone."
        )
    exports = ["export CUDA_DEVICE_MAX_CONNECTIONS=1"] if layout.tp > 1 and not fsdp else []
    return _script(remarks, exports, [*_torchrun(layout, cluster), "pretrain_gpt.py"], lines)


def stage_text(counts: Sequence[int]) -> str:
    """Layers of each chunk as Megatron-LM's ``--pipeline-model-parallel-layout`` has them: ``Et*3|(t*4|)*2t*3L``."""
    last = len(counts) - 1
    text = f"Et*{counts[0]}|"
    for count, run in groupby(counts[1:last]):
        times = len(list(run))
        text += f"(t*{count}|)*{times}" if times > 1 else f"t*{count}|"
    return f"{text}t*{counts[last]}L"


# --------------------------------------------------------------------------- torchtitan

TORCHTITAN_SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B"}
TORCHTITAN_MODELS = {
    (32, 4096, 32, 8, 14336, 128256): "llama3_8b",
    (80, 8192, 64, 8, 28672, 128256): "llama3_70b",
    (126, 16384, 128, 8, 53248, 128256): "llama3_405b",
}
"""Layers, width, heads, those of keys and values, feed-forward width, vocabulary: the project's configuration."""


def _torchtitan(
    model: Architecture, config: RunConfig | None, layout: LayoutConfig, batch: int, cluster: Cluster | None
) -> str:
    """Launch of torchtitan, its configurations being Python functions that flags override."""
    shape = _decoder("torchtitan", model)
    if not model.gated or shape.norm != "rms" or shape.positions != "rotary" or shape.bias:
        raise _refuse(
            "torchtitan",
            "its dense models are Llama's",
            f"{shape.activation}, {shape.norm} norm, {shape.positions} positions" + (", bias" if shape.bias else ""),
            "swiglu, rms norm, rotary positions, no bias",
            "--emit megatron, or a shape llama:…",
        )
    if layout.pp > 1 and layout.schedule not in TORCHTITAN_SCHEDULES:
        what = "its zero-bubble schedules want two chunks of a rank at least, and ours has one"
        raise _refuse("torchtitan", what, layout.schedule, ", ".join(TORCHTITAN_SCHEDULES), "--schedule 1f1b")
    assert layout.microbatch
    remarks = [
        f"torchtitan: {_axes(layout)}. Data, learning rate and --training.steps are the configuration's.",
        *_where(layout, cluster),
        _as_of("torchtitan"),
    ]
    key = (model.layers, model.width, model.heads, model.kv_heads, model.feed_forward, model.vocabulary)
    name = None if shape.tied else TORCHTITAN_MODELS.get(key)
    if name is None:
        remarks.append(
            "It has no configuration of this shape: write one beside llama3_8b in torchtitan/models/llama3, with "
            f"n_layers {model.layers}, dim {model.width}, n_heads {model.heads}, n_kv_heads {model.kv_heads}, "
            f"hidden_dim {model.feed_forward}, vocab_size {model.vocabulary}, enable_weight_tying {shape.tied}."
        )
    sharded = layout.zero > 0 and layout.dp > 1
    lines: list[Flags] = [
        ["--parallelism.tensor_parallel_degree", str(layout.tp)],
        ["--parallelism.data_parallel_replicate_degree", str(1 if sharded else layout.dp)],
        ["--parallelism.data_parallel_shard_degree", str(layout.dp if sharded else 1)],
    ]
    if sharded:
        lines.append(["--parallelism.fsdp_reshard_after_forward", "always" if layout.zero == 3 else "never"])
    if sharded and layout.zero == 1:
        remarks.append("It shards gradients together with the optimizer's state (ZeRO-2); ZeRO-1 it has not.")
    if layout.tp > 1 and not layout.sequence_parallel:
        lines.append(["--parallelism.no-enable-sequence-parallel"])
    if layout.pp > 1:
        counts = model.layer_counts(layout)
        lines.append(["--parallelism.pipeline_parallel_degree", str(layout.pp)])
        lines.append(["--parallelism.pipeline_parallel_schedule", TORCHTITAN_SCHEDULES[layout.schedule]])
        lines.append(["--parallelism.num_pp_microbatches", str(batch // layout.dp // layout.microbatch)])
        if len(set(counts)) == 1:
            lines.append(["--parallelism.pipeline_parallel_layers_per_stage", str(counts[0])])
            lines.append(["--parallelism.pipeline_parallel_first_stage_less_layers", "0"])
            lines.append(["--parallelism.pipeline_parallel_last_stage_less_layers", "0"])
        else:
            remarks.append(
                "Stages are unequal: set parallelism.module_fqns_per_model_part in the configuration to "
                f"{_module_lists(counts)}"
            )
    lines.append(["--training.max_context_length", str(model.context)])
    lines.append(["--training.num_tokens_per_microbatch_per_dp_rank", str(layout.microbatch * model.context)])
    lines.append(["--training.num_tokens_per_train_step", str(batch * model.context)])
    if layout.recompute == "selective":
        remarks.append("Its fused attention keeps no scores, so there is nothing for selective recomputation to do.")
    lines.append(["activation-checkpoint:full" if layout.recompute == "full" else "activation-checkpoint:none"])
    start = [*_torchrun(layout, cluster), "-m", "torchtitan.train", "--module", "llama3", "--config", name or "YOURS"]
    return _script(remarks, [], start, lines)


def _module_lists(counts: Sequence[int]) -> str:
    """Names of the modules in each chunk, as Python writes them."""
    chunks, layer = [], 0
    for count in counts:
        chunks.append([f"layers.{n}" for n in range(layer, layer + count)])
        layer += count
    chunks[0].insert(0, "tok_embeddings")
    chunks[-1] += ["norm", "lm_head"]
    return str(chunks)


# --------------------------------------------------------------------------- DeepSpeed


def _deepspeed(
    model: Architecture, config: RunConfig | None, layout: LayoutConfig, batch: int, cluster: Cluster | None
) -> str:
    """DeepSpeed's JSON, and the launch of Megatron-DeepSpeed with it."""
    assert layout.microbatch
    shape = _decoder("deepspeed", model)
    if layout.pp > 1:
        _deepspeed_pipeline(model, layout)
    document = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": layout.microbatch,
        "gradient_accumulation_steps": batch // layout.dp // layout.microbatch,
        "gradient_clipping": config.optimizer.clip or 0.0 if config else 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": layout.zero},
    }
    lines: list[Flags] = [_sizes(layout)]
    if layout.pp == 1:
        lines.append(["--no-pipeline-parallel"])
    elif layout.schedule == "zero-bubble":
        lines.append(["--enable-zbh1-pipeline"])
    if layout.sequence_parallel:
        lines.append(["--sequence-parallel"])
    lines.append(_batches(layout, batch))
    lines += _recomputed(layout)
    if layout.recompute == "full":
        lines.append(["--deepspeed-activation-checkpointing"])
    lines += _shape(model)
    if model.kv_heads != model.heads:
        lines.append(["--num-key-value-heads", str(model.kv_heads)])
    if shape.positions == "rotary":
        lines.append(
            ["--use-rotary-position-embeddings", "--rotary-position-embeddings-theta", f"{shape.rope_theta:.0f}"]
        )
    name = "rmsnorm" if shape.norm == "rms" else "layernorm"
    lines.append(["--normalization", name, "--layernorm-epsilon", f"{shape.norm_eps:g}"])
    lines += _variants(model, shape, layout)
    if cluster and cluster.stack.attention == "flash":
        lines.append(["--use-flash-attn-v2"])
    lines.append(["--bf16"])
    lines.append(["--deepspeed", "--deepspeed_config", "ds_config.json", "--zero-stage", str(layout.zero)])
    remarks = [
        f"Megatron-DeepSpeed: {_axes(layout)}. Add data, tokenizer, learning rate and --train-iters.",
        *_where(layout, cluster),
        _as_of("deepspeed"),
    ]
    if len(set(model.layer_counts(layout))) > 1:
        remarks.append("DeepSpeed shares the layers out by itself: which stages get one more may differ from the plan.")
    before = [f"cat > ds_config.json <<'END'\n{json.dumps(document, indent=2)}\nEND"]
    if layout.sequence_parallel:
        before.append("export CUDA_DEVICE_MAX_CONNECTIONS=1")
    return _script(remarks, before, [*_torchrun(layout, cluster), "pretrain_gpt.py"], lines)


def _deepspeed_pipeline(model: Architecture, layout: LayoutConfig) -> None:
    """Raise what its pipeline engine cannot do."""
    found: list[tuple[str, str, str, str]] = []
    if layout.schedule not in ("1f1b", "zero-bubble"):
        found.append(
            (
                "its pipeline has one chunk of a rank, and two schedules",
                layout.schedule,
                "1f1b, zero-bubble",
                "--schedule 1f1b",
            )
        )
    if layout.zero >= 2:
        found.append(("its pipeline goes with ZeRO 0 and 1 alone", f"zero {layout.zero}", "0, 1", "--zero 1"))
    if layout.schedule == "zero-bubble" and layout.sequence_parallel:
        found.append(
            (
                "its zero-bubble schedule refuses sequence parallelism",
                "both",
                "one of them",
                "--sequence-parallel false",
            )
        )
    counts = model.layer_counts(layout)
    if max(counts) - min(counts) > 1:
        what = "it shares layers out evenly, by one more or less"
        found.append((what, " ".join(map(str, counts)), "uniform", "--emit megatron"))
    if found:
        raise ConfigError(
            *(
                Problem(where="--emit deepspeed", what=what, got=got, allowed=allowed, attempt=attempt)
                for what, got, allowed, attempt in found
            )
        )


# --------------------------------------------------------------------------- what they share


def _axes(layout: LayoutConfig) -> str:
    return f"tp {layout.tp} · pp {layout.pp} · dp {layout.dp} = {layout.tp * layout.pp * layout.dp} processes"


def _as_of(trainer: str) -> str:
    return f"Flags are those of its main branch in {AS_OF[trainer]}; a later one may have renamed some."


def _torchrun(layout: LayoutConfig, cluster: Cluster | None) -> list[str]:
    """The launcher; a node has eight devices where no cluster says otherwise."""
    nodes, each = _nodes(layout, cluster)
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:29500"] if nodes > 1 else []
    return ["torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(each), *meet]


def _nodes(layout: LayoutConfig, cluster: Cluster | None) -> tuple[int, int]:
    """How many nodes, and processes on each."""
    world = layout.tp * layout.pp * layout.dp
    each = math.gcd(world, cluster.node.devices if cluster else 8)
    return world // each, each


def _where(layout: LayoutConfig, cluster: Cluster | None) -> list[str]:
    """A remark on where it is to be started, if that is not plain."""
    nodes, _ = _nodes(layout, cluster)
    return [f"To be run on each of {nodes} nodes, with the address of one of them for HOST."] if nodes > 1 else []


def _sizes(layout: LayoutConfig) -> Flags:
    return ["--tensor-model-parallel-size", str(layout.tp), "--pipeline-model-parallel-size", str(layout.pp)]


def _batches(layout: LayoutConfig, batch: int) -> Flags:
    return ["--micro-batch-size", str(layout.microbatch), "--global-batch-size", str(batch)]


def _recomputed(layout: LayoutConfig) -> list[Flags]:
    if layout.recompute == "none":
        return []
    flags = ["--recompute-granularity", layout.recompute]
    if layout.recompute == "full":
        flags += ["--recompute-method", "uniform", "--recompute-num-layers", "1"]
    return [flags]


def _shape(model: Architecture) -> list[Flags]:
    """Sizes that both Megatrons name alike."""
    context = str(model.context)
    return [
        ["--num-layers", str(model.layers), "--hidden-size", str(model.width)],
        ["--ffn-hidden-size", str(model.feed_forward), "--num-attention-heads", str(model.heads)],
        ["--seq-length", context, "--max-position-embeddings", context],
    ]


def _variants(model: Architecture, shape: GptConfig, layout: LayoutConfig) -> list[Flags]:
    """Kinds of layers that both name alike, and the vocabulary, padded to as many rows as were planned."""
    flags = ["--swiglu"] if model.gated else []
    flags += [] if shape.bias else ["--disable-bias-linear"]
    flags += [] if shape.tied else ["--untie-embeddings-and-output-weights"]
    lines = [flags] if flags else []
    dropout = f"{shape.dropout:g}"
    lines.append(["--hidden-dropout", dropout, "--attention-dropout", dropout])
    multiple = math.lcm(shape.vocab_multiple, layout.tp) // layout.tp
    lines.append(["--vocab-size", str(model.vocab_size), "--make-vocab-size-divisible-by", str(multiple)])
    return lines


def _script(remarks: Sequence[str], before: Sequence[str], start: Sequence[str], lines: Sequence[Flags]) -> str:
    """Shell text: remarks, what comes first, and the command with a line for each group of flags."""
    command = " \\\n    ".join(shlex.join(line) for line in (start, *lines))
    return "\n".join([*(f"# {remark}" for remark in remarks), *before, command, ""])


Emitter = Callable[[Architecture, RunConfig | None, LayoutConfig, int, Cluster | None], str]

TRAINERS: dict[str, Emitter] = {
    "gradatim": _gradatim,
    "megatron": _megatron,
    "torchtitan": _torchtitan,
    "deepspeed": _deepspeed,
}
"""Who can take a layout over."""
