"""``gradatim plan MODEL CLUSTER``: every legal layout's time and memory, the fastest that fit, why, and how sure.

MODEL is a recipe or an inline shape (``gpt:n_layers=80,d_model=12288,n_heads=96,vocab_size=51200``), CLUSTER a packaged
cluster or a YAML file, such as ``gradatim calibrate`` writes. What is fixed by an option is not searched; a layout that
is fixed altogether (tp, pp, dp, microbatch) is predicted even where it does not fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gradatim.cli.output import Table, Verb, emit, json_option
from gradatim.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gradatim.plan.architecture import Architecture
    from gradatim.plan.cluster import Cluster
    from gradatim.plan.search import Fixed, Found

WHOLE = ("tp", "pp", "dp", "chunks", "microbatch", "zero", "context", "gpus", "top", "global_batch")
LARGER = 64
"""How many times more devices are tried where nothing fits."""


@click.command(cls=Verb)
@click.argument("model")
@click.argument("cluster")
@click.option("--global-batch", required=True, metavar="B", help="Sequences per step.")
@click.option("--gpus", metavar="N", help="Devices to use.")
@click.option("--context", metavar="S", help="Tokens per sequence, in place of the recipe's.")
@click.option("--tp", metavar="T", help="Fix the tensor-parallel size.")
@click.option("--pp", metavar="P", help="Fix the pipeline-parallel size.")
@click.option("--dp", metavar="D", help="Fix the data-parallel size.")
@click.option("--chunks", metavar="V", help="Fix the model chunks per rank.")
@click.option("--schedule", metavar="NAME", help="Fix the schedule: gpipe, 1f1b, interleaved, zero-bubble.")
@click.option("--microbatch", metavar="N", help="Fix the sequences per microbatch.")
@click.option("--recompute", metavar="NAME", help="Fix what is computed again: none, selective, full.")
@click.option("--sequence-parallel", metavar="BOOL", help="Fix sequence parallelism: true or false.")
@click.option("--zero", metavar="N", help="Fix the ZeRO stage: 0 to 3.")
@click.option("--top", default="10", show_default=True, metavar="K", help="Layouts to show.")
@click.option("--stack", metavar="any", help="Search what the cluster's software cannot do, too.")
@json_option
def command(model: str, cluster: str, stack: str | None, as_json: bool, **options: str | None) -> None:
    """Find the fastest layouts of MODEL on CLUSTER that fit, and say why."""
    from gradatim.plan.architecture import load_model
    from gradatim.plan.cluster import load_cluster
    from gradatim.plan.search import NO_LIMITS, search

    problems: list[Problem] = []
    numbers = {name: _whole(name, options[name], problems) for name in WHOLE}
    choices = _choices(options, stack, problems)
    shape, machine = None, None
    for load in (lambda: load_model(model, numbers["context"])[0], lambda: load_cluster(cluster)):
        try:
            loaded: Any = load()
        except ConfigError as error:
            problems += error.problems
        else:
            shape, machine = (loaded, machine) if shape is None and not hasattr(loaded, "stack") else (shape, loaded)
    if problems:
        raise ConfigError(*problems)
    assert shape is not None and machine is not None and numbers["global_batch"] and numbers["top"]
    fixed = _fixed(numbers, choices)
    devices = _devices(numbers, machine)
    batch = numbers["global_batch"]
    limits = replace(NO_LIMITS, recompute=machine.stack.recompute) if stack else machine.stack
    found = search(shape, machine, devices, batch, fixed=fixed, top=numbers["top"], stack=limits)
    if not found.best and found.least_memory and None not in (fixed.tp, fixed.pp, fixed.dp, fixed.microbatch):
        found.best = [found.least_memory]
    if not found.best:
        raise ConfigError(_nothing(shape, machine, devices, batch, fixed, found, limits))
    document = {
        "model": model,
        "cluster": cluster,
        "gpus": devices,
        "global_batch": batch,
        "parameters": shape.parameter_count,
        "layouts": _documents(shape, machine, found, batch),
        "considered": found.considered,
        "rejected": dict(found.rejected),
        "search_seconds": found.seconds,
        "error_seen": machine.stack.error,
    }
    emit(document, as_json, lambda: _page(shape, machine, found, batch, devices))


def _documents(shape: Architecture, machine: Cluster, found: Found, batch: int) -> list[dict[str, Any]]:
    from gradatim.plan.explain import layout_document

    return [layout_document(shape, machine, candidate, batch) for candidate in found.best]


def _page(shape: Architecture, machine: Cluster, found: Found, batch: int, devices: int) -> list[str | Table]:
    from gradatim.plan.explain import CAUSES, RANKING, ranking, rejections, remarks, time_split

    title = (
        f"{shape.parameter_count / 1e9:,.2f} B parameters, {devices:,} devices, {batch:,} x {shape.context:,} tokens"
    )
    parts: list[str | Table] = [
        Table(tuple(RANKING), [tuple(row) for row in ranking(shape, machine, found.best, batch)], title=title),
        "",
        Table(
            ("rank", *(f"{cause} %" for cause in CAUSES)), [tuple(row) for row in time_split(found.best)], title="time"
        ),
        "",
        *remarks(shape, machine, found, batch),
        "",
        f"considered {found.considered:,} layouts in {found.seconds:.2f} s; left out: "
        + ("; ".join(rejections(found)) or "none"),
    ]
    return parts


def _whole(name: str, text: str | None, problems: list[Problem]) -> int | None:
    if text is None:
        return None
    least = 0 if name == "zero" else 1
    most = 3 if name == "zero" else 10**7
    if text.isascii() and text.isdecimal() and least <= int(text) <= most:
        return int(text)
    allowed = "0, 1, 2, 3" if name == "zero" else "1, 2, 3, …"
    problems.append(
        Problem(where=f"--{name.replace('_', '-')}", what="this is no such number", got=text or '""', allowed=allowed)
    )
    return None


def _choices(options: dict[str, str | None], stack: str | None, problems: list[Problem]) -> dict[str, str | None]:
    from gradatim.config.decode import nearest

    allowed = {
        "schedule": ("gpipe", "1f1b", "interleaved", "zero-bubble"),
        "recompute": ("none", "selective", "full"),
        "sequence_parallel": ("true", "false"),
        "stack": ("any",),
    }
    given = {**{name: options.get(name) for name in allowed}, "stack": stack}
    for name, text in given.items():
        if text is not None and text not in allowed[name]:
            problems.append(
                Problem(
                    where=f"--{name.replace('_', '-')}",
                    what="there is no such choice",
                    got=text or '""',
                    allowed=", ".join(allowed[name]),
                    attempt=nearest(text, allowed[name]) or allowed[name][0],
                )
            )
    return given


def _fixed(numbers: dict[str, int | None], choices: dict[str, str | None]) -> Fixed:
    from gradatim.plan.search import Fixed

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


def _devices(numbers: dict[str, int | None], machine: Cluster) -> int:
    sizes = [numbers[name] for name in ("tp", "pp", "dp")]
    product = 1
    for size in sizes:
        product *= size or 1
    devices = numbers["gpus"] or (product if None not in sizes else machine.devices)
    if not devices:
        raise ConfigError(
            Problem(where="--gpus", what="how many devices there are is not stated", got="nothing", attempt="--gpus 64")
        )
    if None not in sizes and product != devices:
        raise ConfigError(
            Problem(
                where="--tp --pp --dp",
                what="their product must be the number of devices",
                got=f"{' · '.join(map(str, sizes))} = {product:,}",
                allowed=f"{devices:,}",
                attempt=f"--gpus {product}",
            )
        )
    return devices


def _nothing(
    shape: Architecture, machine: Cluster, devices: int, batch: int, fixed: Fixed, found: Found, limits: Any
) -> Problem:
    """Why there is no layout, and what would do."""
    from gradatim.plan.explain import GIB, layout_text, rejections
    from gradatim.plan.search import search

    reasons = "; ".join(rejections(found)) or "no layout has what is fixed"
    where = f"{devices:,} devices, batch {batch:,}"
    if not found.considered or found.least_memory is None:
        for near in sorted(range(1, 4 * batch + 1), key=lambda n: (abs(n - batch), n))[:512]:
            if search(shape, machine, devices, near, fixed=fixed, top=1, stack=limits).considered:
                return Problem(where=where, what="no layout is legal", got=reasons, attempt=f"--global-batch {near}")
        return Problem(where=where, what="no layout is legal", got=reasons, attempt="another --gpus, or fix less")
    least = found.least_memory
    got = f"{max(least.memory) / GIB:.1f} GiB with {layout_text(least.layout)}, which needs least"
    allowed = f"{machine.device.memory / GIB:.1f} GiB on a {machine.device.name}"
    free = replace(fixed, tp=None, pp=None, dp=None)
    knobs: list[str] = []
    if (fixed.tp or fixed.pp or fixed.dp) and search(
        shape, machine, devices, batch, fixed=free, top=1, stack=limits
    ).best:
        knobs.append("fix neither tp, pp nor dp")
    if fixed.recompute not in (None, "full") and "full" in machine.stack.recompute:
        freer = replace(fixed, recompute="full")
        if search(shape, machine, devices, batch, fixed=freer, top=1, stack=limits).best:
            knobs.append("--recompute full")
    times = 2
    while not knobs and times <= LARGER:
        more = search(shape, machine, devices * times, batch, fixed=free, top=1, stack=limits)
        if more.best:
            knobs.append(f"--gpus {devices * times}")
        times *= 2
    attempt = " or ".join(knobs) or "a smaller model, or a larger batch so that more devices can share it"
    return Problem(where=where, what="nothing fits", got=got, allowed=allowed, attempt=attempt)
