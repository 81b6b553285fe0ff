"""What ``gradatim plan`` was asked for: options read, model and cluster loaded, every problem at once. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradatim.cli.plan_hints import sizes_hint
from gradatim.config.decode import nearest
from gradatim.config.settings import RunConfig
from gradatim.errors import ConfigError, Problem
from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.cluster import Cluster, Stack, assumed, read_cluster
from gradatim.plan.emit import TRAINERS
from gradatim.plan.layouts import KNOBS, NO_LIMITS, Fixed, divisors, without_limits

WHOLE = ("tp", "pp", "dp", "chunks", "microbatch", "zero", "context", "top")
LISTS = ("gpus", "global_batch")
MOST = 64
"""Numbers of a list."""
DIGITS = 40
"""Of a number: Python reads some thousand and then refuses."""
SIZES = {"tokens": (1.0, 1e30), "critical_batch": (1e-9, 1e30)}
"""Beyond which their quotients are no numbers."""
CHOICES = {
    "schedule": NO_LIMITS.schedules,
    "recompute": ("none", "selective", "full"),
    "sequence_parallel": ("true", "false"),
    "stack": ("any",),
    "emit": tuple(TRAINERS),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A plan's question."""

    model: Architecture
    config: RunConfig | None
    """The recipe that the model came from."""
    cluster: Cluster
    names: tuple[str, str]
    """Of model and cluster, as they were typed."""
    gpus: list[int]
    batches: list[int]
    fixed: Fixed
    limits: Stack
    """What the search stays within."""
    top: int
    by: str | None
    tokens: float | None
    critical_batch: float | None
    trainer: str | None
    """Whom to hand the layout over to."""
    notes: list[str]
    """What is taken for granted."""

    @property
    def swept(self) -> bool:
        """Several searches, of which a curve is made."""
        return self.by is not None or len(self.gpus) > 1 or len(self.batches) > 1


def read_options(
    model: str, cluster: str, options: Mapping[str, str | None], files: Mapping[str, Path | None]
) -> Asked:
    """The question that the command line asks.

    Raises:
        ConfigError: with everything that is wrong with it.
    """
    problems: list[Problem] = []
    numbers = {name: _whole(name, options[name], problems) for name in WHOLE}
    lists = {name: _wholes(name, options[name], problems) for name in LISTS}
    sizes = {name: _size(name, options[name], problems) for name in ("tokens", "critical_batch")}
    choices = {name: _choice(name, options[name], problems) for name in CHOICES}
    fixed = _fixed(numbers, choices)
    by = _knob(options["by"], fixed, problems)
    for name, path in files.items():
        if path is not None and path.is_dir():
            what = "this is a folder"
            problems.append(Problem(where=f"--{name}", what=what, got=str(path), attempt=str(path / f"plan.{name}")))
    if options["critical_batch"] is not None and options["tokens"] is None:
        what = "it says how many more tokens a large batch needs, so it goes with --tokens"
        problems.append(Problem(where="--critical-batch", what=what, got="no --tokens", attempt="--tokens 300e9"))
    loaded, machine = None, None
    unstated: list[str] = []
    try:
        loaded = load_model(model, numbers["context"])
    except ConfigError as error:
        problems += error.problems
    try:
        machine, unstated = read_cluster(cluster)
    except ConfigError as error:
        problems += error.problems
    gpus = lists["gpus"]
    if machine is not None and options["gpus"] is None:
        gpus = _devices(fixed, machine, problems)
    batches, own = lists["global_batch"], loaded[1] if loaded is not None else None
    taken: list[str] = []
    if options["global_batch"] is None and own is not None and own.batch_tokens is None:
        batches = [own.global_batch]
        taken.append(f"--global-batch {own.global_batch}, as {model} has it")
    elif options["global_batch"] is None:
        what, attempt = "a shape says nothing of how many sequences a step reads", "--global-batch 1536"
        problems.append(Problem(where="--global-batch", what=what, attempt=attempt))
    limits = NO_LIMITS
    if machine is not None:
        limits = without_limits(machine.stack) if choices["stack"] else machine.stack
    if wrong := _unequal(fixed, gpus):
        attempt = ""
        if loaded is not None and machine is not None and batches:
            attempt = sizes_hint(loaded[0], max(gpus), batches[0], fixed, limits)
        problems.append(replace(wrong, attempt=attempt))
    _contradictions(fixed, problems)
    if choices["emit"] and (by is not None or len(gpus) > 1 or len(batches) > 1):
        what = "one layout is handed over, and here are several"
        attempt = "one --gpus, one --global-batch and no --by"
        problems.append(Problem(where=f"--emit {choices['emit']}", what=what, attempt=attempt))
    if problems:
        raise ConfigError(*problems)
    assert loaded is not None and machine is not None and numbers["top"]
    return Asked(
        model=loaded[0],
        config=loaded[1],
        cluster=machine,
        names=(model, cluster),
        gpus=gpus,
        batches=batches,
        fixed=fixed,
        limits=limits,
        top=numbers["top"],
        by=by,
        tokens=sizes["tokens"],
        critical_batch=sizes["critical_batch"],
        trainer=choices["emit"],
        notes=[*taken, *_taken_for_granted(cluster, machine, unstated)],
    )


def _taken_for_granted(name: str, machine: Cluster, unstated: Sequence[str]) -> list[str]:
    """Figures of a DGX A100 that stand in for those a cluster file leaves out."""
    if not unstated:
        return []
    return [f"{name} does not state all of its hardware; a DGX A100's stands in: {assumed(machine, unstated)}"]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _whole(name: str, text: str | None, problems: list[Problem]) -> int | None:
    if text is None:
        return None
    least, most = (0, 3) if name == "zero" else (1, 10**7)
    if text.isascii() and text.isdecimal() and len(text) <= DIGITS and least <= int(text) <= most:
        return int(text)
    allowed = "0, 1, 2, 3" if name == "zero" else "1, 2, 3, …"
    problems.append(Problem(where=_flag(name), what="this is no such number", got=_short(text), allowed=allowed))
    return None


def _short(text: str) -> str:
    """What was typed, the beginning of it where it is long."""
    return f"{text[:DIGITS]}… ({len(text):,} characters)" if len(text) > DIGITS else text or '""'


def _wholes(name: str, text: str | None, problems: list[Problem]) -> list[int]:
    """Numbers with commas between, each once."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if len(parts) > MOST:
        what = "this list is too long"
        problems.append(Problem(where=_flag(name), what=what, got=f"{len(parts)} numbers", allowed=f"at most {MOST}"))
        return []
    found = [_whole(name, part, problems) for part in parts]
    return list(dict.fromkeys(number for number in found if number))


def _size(name: str, text: str | None, problems: list[Problem]) -> float | None:
    """A number that may be large: ``300e9``."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    least, most = SIZES[name]
    if least <= number <= most:
        return number
    what, attempt = "this is no such number", "300e9" if name == "tokens" else ""
    allowed = f"{least:g} to {most:g}"
    problems.append(Problem(where=_flag(name), what=what, got=_short(text), allowed=allowed, attempt=attempt))
    return None


def _choice(name: str, text: str | None, problems: list[Problem]) -> str | None:
    allowed = CHOICES[name]
    if text is None or text in allowed:
        return text
    problems.append(
        Problem(
            where=_flag(name),
            what="there is no such choice",
            got=_short(text),
            allowed=", ".join(allowed),
            attempt=nearest(text, allowed) or allowed[0],
        )
    )
    return None


def _fixed(numbers: Mapping[str, int | None], choices: Mapping[str, str | None]) -> Fixed:
    names = ("tp", "pp", "dp", "chunks", "microbatch", "zero")
    sequence_parallel = None if choices["sequence_parallel"] is None else choices["sequence_parallel"] == "true"
    schedule = choices["schedule"]
    if schedule is None and numbers["chunks"]:
        schedule = "interleaved" if numbers["chunks"] > 1 else None
    return Fixed(
        **{name: numbers[name] for name in names},
        schedule=schedule,
        recompute=choices["recompute"],
        sequence_parallel=sequence_parallel,
    )


def _knob(text: str | None, fixed: Fixed, problems: list[Problem]) -> str | None:
    """The knob to compare, which nothing may have fixed."""
    if text is None:
        return None
    name = text.replace("-", "_")
    free = [knob for knob in KNOBS if getattr(fixed, knob) is None]
    if name in free:
        return name
    what = "what is fixed is not compared" if name in KNOBS else "there is no such knob"
    attempt = f"leave {_flag(name)} out" if name in KNOBS else nearest(name, free)
    problems.append(Problem(where="--by", what=what, got=text or '""', allowed=", ".join(free), attempt=attempt))
    return None


def _devices(fixed: Fixed, machine: Cluster, problems: list[Problem]) -> list[int]:
    """How many there are where no option says so."""
    if fixed.tp and fixed.pp and fixed.dp:
        return [fixed.tp * fixed.pp * fixed.dp]
    if machine.devices:
        return [machine.devices]
    what = "how many devices there are is not stated"
    problems.append(Problem(where="--gpus", what=what, got="nothing", attempt="--gpus 64"))
    return []


def _unequal(fixed: Fixed, gpus: list[int]) -> Problem | None:
    """What is wrong where the sizes that are fixed do not fill the devices, nor may; without a hint."""
    sizes = {f"--{name}": size for name in ("tp", "pp", "dp") if (size := getattr(fixed, name))}
    product, whole = math.prod(sizes.values()), len(sizes) == 3
    wrong = [devices for devices in gpus if devices != product] if whole else []
    if sizes and not whole and gpus and all(devices % product for devices in gpus):
        wrong = gpus
    if not wrong:
        return None
    own = " · ".join(map(str, sizes.values()))
    what = "their product must be the number of devices" if whole else "this must divide the number of devices"
    return Problem(
        where=" ".join(sizes),
        what=what,
        got=f"{own} = {product:,}" if len(sizes) > 1 else own,
        allowed=", ".join(f"{devices:,}" for devices in gpus)
        if whole
        else ", ".join(str(d) for n in gpus[:1] for d in divisors(n)[:12]),
    )


def _contradictions(fixed: Fixed, problems: list[Problem]) -> None:
    """Options that no layout has together."""
    chunks = fixed.chunks or 1

    def refuse(where: str, what: str, got: str, attempt: str) -> None:
        problems.append(Problem(where=where, what=what, got=got, attempt=attempt))

    if fixed.pp == 1 and chunks > 1:
        what = "a rank has several chunks only of a pipeline, and one stage is none"
        refuse("--pp --chunks", what, f"--pp 1 --chunks {chunks}", "--chunks 1")
    elif chunks > 1 and fixed.schedule not in (None, "interleaved"):
        what = "only the interleaved schedule has several chunks on a rank"
        got = f"--schedule {fixed.schedule} --chunks {chunks}"
        refuse("--schedule --chunks", what, got, "--schedule interleaved")
    if fixed.sequence_parallel and fixed.tp == 1:
        what = "sequence parallelism cuts the sequence over tensor ranks, and one is alone"
        refuse("--sequence-parallel --tp", what, "--sequence-parallel true --tp 1", "--tp 2")
