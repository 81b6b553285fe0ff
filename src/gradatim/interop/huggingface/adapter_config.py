"""``adapter_config.json``, by which the ``peft`` library describes low-rank adapters, read and written. No torch.

Module names are matched by their ends (``attn.c_attn``), or by a regular expression that must match them whole;
``rank_pattern`` and ``alpha_pattern`` say where a layer differs from ``r`` and ``lora_alpha``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.errors import DataError, Problem

if TYPE_CHECKING:
    from gradatim.interop.huggingface.names import Architecture

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KNOWN = frozenset({
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "qalora_group_size", "runtime_config",
    "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "ensure_weight_tying",
})  # fmt: skip
"""Fields that say what we read ourselves, or how the adapters were trained."""
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}  # fmt: skip
"""Fields with several values with which an adapter is W + scale · B A: other first weights change W besides."""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What of an adapter_config.json must be known to add its adapters to the weights they stand beside."""

    base: Path
    """The directory of those weights."""
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    by_root: bool
    """Whether the factor is alpha / √rank (Kalajdzievski 2023, arXiv:2312.03732)."""

    def scale(self, module: str, rank: int) -> float:
        """The factor of a module's adapter, which has that rank."""
        alpha = _of(self.alphas, module, self.alpha)
        return alpha / math.sqrt(rank) if self.by_root else alpha / rank

    def rank_of(self, module: str) -> int:
        """The rank that a module's adapter should have."""
        return round(_of(self.ranks, module, self.rank))


def _of(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), otherwise)


def is_adapter_directory(path: Path) -> bool:
    """Whether a directory holds adapters rather than a model."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter_config(directory: Path) -> AdapterSettings:
    """The settings of a directory's adapters.

    Raises:
        DataError: it is no adapter_config.json, its adapters are of another kind, or their base is not here.
    """
    path = directory / ADAPTER_CONFIG
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("no object")
    except (OSError, ValueError):
        what = "this cannot be read as a JSON object"
        raise DataError(Problem(where=str(path), what=what, attempt="fetch it again")) from None
    problems = []

    def wrong(name: str, allowed: str, attempt: str = "") -> None:
        what = f"{name} is not what this program's adapters compute"
        got = str(facts.get(name))[:200]
        problems.append(Problem(where=str(path), what=what, got=got, allowed=allowed, attempt=attempt))

    if facts.get("peft_type") != "LORA":
        wrong("peft_type", "LORA")
    for name in sorted(facts.keys() - KNOWN):  # whatever else is set makes more of an adapter than W + scale · B A
        allowed = PLAIN.get(name, (None, False, 0, "", [], {}))
        if facts[name] not in allowed:
            wrong(name, ", ".join(map(str, PLAIN.get(name, (None,)))))
    for name in ("r", "lora_alpha"):
        if isinstance(facts.get(name), bool) or not isinstance(facts.get(name), (int, float)) or facts[name] <= 0:
            wrong(name, "a number above 0")
    patterns = {name: facts.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name, pattern in patterns.items():
        if not isinstance(pattern, dict) or not all(_fits(key, value) for key, value in pattern.items()):
            wrong(name, "regular expressions and numbers above 0")
    base = facts.get("base_model_name_or_path")
    folder = directory / base if isinstance(base, str) and (directory / base).is_dir() else Path(str(base))
    if not isinstance(base, str) or not folder.is_dir():
        attempt = "fetch the model, and write its folder there"
        what = "the model that these adapters stand beside is not here (base_model_name_or_path)"
        problems.append(Problem(where=str(path), what=what, got=str(base), allowed="a directory", attempt=attempt))
    elif is_adapter_directory(folder):
        attempt = "gradatim import the base, gradatim export the run, and name that folder"
        what = "these adapters stand beside adapters, not beside a model (base_model_name_or_path)"
        problems.append(Problem(where=str(path), what=what, got=str(base), allowed="a model", attempt=attempt))
    if problems:
        raise DataError(*problems)
    return AdapterSettings(
        folder, int(facts["r"]), float(facts["lora_alpha"]), patterns["rank_pattern"], patterns["alpha_pattern"],
        bool(facts.get("use_rslora", False)),
    )  # fmt: skip


def _fits(key: Any, value: Any) -> bool:
    try:
        re.compile(key)
    except (re.error, TypeError):
        return False
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def adapter_config(
    architecture: Architecture, base: str | None, task_type: str | None, rank: int, alpha: float, dropout: float,
    modules: Sequence[str], several: Mapping[str, int], heads: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The adapter_config.json of a run.

    Args:
        architecture: of the model.
        base: its directory, where there is one.
        task_type: what the library calls the task.
        rank: of the adapters.
        alpha: likewise.
        dropout: likewise.
        modules: ends of the names of adapted modules, such as ``attn.c_attn``.
        several: of those, how many adapters lie in one, where more than one does.
        heads: modules that are trained as a whole.
    """
    target: str | list[str] = sorted(modules)
    if "output.dense" in modules and "attention.output.dense" not in modules:  # whose end it is
        ends = [r"layer\.\d+\." + re.escape(name) for name in sorted(modules)]
        target = rf".*\.(?:{'|'.join(ends)})"
    return {
        "peft_type": "LORA", "task_type": task_type, "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha,
        "lora_dropout": dropout, "target_modules": target, "fan_in_fan_out": architecture == "gpt2", "bias": "none",
        "rank_pattern": {re.escape(name): rank * count for name, count in several.items()},
        "alpha_pattern": {re.escape(name): alpha * count for name, count in several.items()},
        "modules_to_save": list(heads) or None, "inference_mode": True, "init_lora_weights": True,
    }  # fmt: skip
