"""Rules of low-rank adapters: what they stand beside, and what they cannot be combined with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradatim.config.settings import BertConfig, GptConfig, RunConfig

if TYPE_CHECKING:
    from gradatim.config.rules import Rules

TOGETHER = ("q", "k", "v")
"""Targets that ``qkv`` is one adapter for."""


def lora(config: RunConfig, rules: Rules) -> None:
    """Every reason why adapters cannot be trained so."""
    adapters, model = config.lora, config.model
    if adapters.rank is None:
        return
    rules.require(
        isinstance(model, (GptConfig, BertConfig)),
        "lora.rank model.kind",
        "adapters stand beside the layers of a GPT or BERT",
        allowed="null, or kind gpt or bert",
        attempt="--lora.rank null",
    )
    rules.require(
        config.init_from is not None,
        "lora.rank init_from",
        "adapters adapt weights that are there already, and none are named",
        allowed="init_from with a run or a Hugging Face directory, or rank null",
        attempt="--init_from DIR",
    )
    width = getattr(model, "d_model", adapters.rank)
    rules.require(
        adapters.rank <= width,
        "lora.rank model.d_model",
        "a matrix has no more rank than its width: an adapter so wide is no smaller than the weights",
        allowed=f"1 to {width}",
        attempt="--lora.rank 8",
    )
    for name, plain in {"frozen_layers": 0, "frozen_embeddings": False}.items():
        rules.require(
            getattr(config.task, name) == plain,
            f"task.{name} lora.rank",
            "beside adapters every weight keeps its value already",
            allowed=f"{str(plain).lower()}, or lora.rank null",
            attempt=f"--task.{name} {str(plain).lower()}",
        )
    targets = adapters.targets
    once = tuple(dict.fromkeys(targets))
    rules.require(
        bool(targets) and once == targets,
        "lora.targets",
        "each target is named once, and at least one is",
        allowed="some of qkv, q, k, v, out, gate, up, down",
        attempt=f"--lora.targets {','.join(once) or 'qkv'}",
    )
    apart = [name for name in once if name in TOGETHER]
    rules.require(
        "qkv" not in targets or not apart,
        "lora.targets",
        "qkv is one adapter for queries, keys and values; they cannot have their own besides",
        allowed="qkv, or some of q, k and v",
        attempt=f"--lora.targets {','.join(name for name in once if name not in TOGETHER)}",
    )
    gated = isinstance(model, GptConfig) and model.activation == "swiglu"
    rules.require(
        "gate" not in targets or gated,
        "lora.targets model.kind",
        "only swiglu has a gate",
        allowed="targets without gate",
        attempt=f"--lora.targets {','.join(name for name in once if name != 'gate') or 'qkv'}",
    )
    rules.require(
        adapters.dropout == 0.0 or not (config.layout.sequence_parallel and config.layout.tp > 1),
        "lora.dropout layout.sequence_parallel",
        "the inputs of an adapter are put together from shards of the sequence, each of which would drop others",
        allowed="0, or sequence_parallel false",
        attempt="--lora.dropout 0",
    )
