"""What a resumed run must share with the run it continues, and may change."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from gradatim.config.describe import scalar_text
from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError, ConfigError, Problem
from gradatim.train.publish import list_checkpoints, step_of
from gradatim.train.run_directory import Run

MAY_CHANGE = ("steps", "layout", "cluster", "evaluation", "checkpoint", "track", "compile", "max_skipped_steps")
"""Settings that a resumed run may change; all others define its training."""
MAY_NOT_CHANGE = ("evaluation.tokens",)
"""Of those, what may not: validation losses on another stretch of text cannot be compared with the run's best."""


def training_hash(config: RunConfig) -> str:
    """Fingerprint of the settings that a resumed run must share.

    Settings that stand at their default do not enter, so that a version with a new one goes on with older runs.
    """

    def chosen(value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"": type(value).__name__}
        for field in fields(value):
            own = getattr(value, field.name)
            if own != (field.default if field.default_factory is MISSING else field.default_factory()):
                found[field.name] = chosen(own) if is_dataclass(own) else own
        return found

    facts = chosen(replace(config, data=replace(config.data, cache="")))
    kept = {name: value for name, value in facts.items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def refuse_fewer_steps(run: Run, config: RunConfig) -> None:
    """Raise ConfigError where a run has made more steps than it is now to have: its config would not describe it."""
    done = max(map(step_of, list_checkpoints(run.checkpoints)), default=0)
    if done > config.steps:
        raise ConfigError(
            Problem(
                where="steps",
                what="the run has made more steps already",
                got=str(config.steps),
                allowed=f"at least {done}",
                attempt=f"--steps {done}",
            )
        )


def refuse_changes(before: RunConfig, now: RunConfig, where: Path) -> None:
    """Raise CheckpointError listing every setting that defines the training and differs; of another kind of model only
    its kind, the first of them.
    """

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}" if name else key).items()}

    old, new = flat(asdict(before)), flat(asdict(now))
    names = sorted(old.keys() | new.keys())
    if before.model.kind != now.model.kind:
        names = ["model.kind", *(name for name in names if not name.startswith("model."))]
    problems = [
        Problem(
            where=f"{where}: {name}",
            what="the run was started with another setting",
            got=scalar_text(new.get(name)),
            allowed=scalar_text(old.get(name)),
            attempt=f"start another run, or go on as it began: gradatim train {where} --run {where.parent} --resume",
        )
        for name in names
        if old.get(name) != new.get(name)
        and (name.split(".")[0] not in MAY_CHANGE or name in MAY_NOT_CHANGE)
        and name != "data.cache"
    ]
    if problems:
        raise CheckpointError(*problems)
