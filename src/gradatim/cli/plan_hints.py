"""What to try where ``gradatim plan`` finds nothing: a hint is held against the rules before it is given. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from gradatim.errors import Problem
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster, Stack
from gradatim.plan.explain import rejections
from gradatim.plan.layouts import FREE, Fixed, divisors, legal_layouts
from gradatim.plan.search import Found, search
from gradatim.plan.words import GIB, device_text, layout_text

if TYPE_CHECKING:
    from gradatim.cli.plan_options import Asked

LARGER = 64
"""How many times more devices are tried where nothing fits."""
NEAR = 256
"""How far off a batch is tried where none is legal, and another may be."""
STEPS = 64
"""Multiples of what is fixed that are tried as numbers of devices, up and down."""
SIZES = ("tp", "pp", "dp")


def legal(model: Architecture, devices: int, batch: int, fixed: Fixed, limits: Stack) -> bool:
    """Whether there is any layout."""
    one = replace(fixed, microbatch=fixed.microbatch or 1)  # what another microbatch allows, one allows too
    return len(legal_layouts(model, devices, batch, one, limits, Counter())) > 0


def near_batch(model: Architecture, devices: int, batch: int, fixed: Fixed, limits: Stack) -> int | None:
    """The batch nearest to this one that has a layout."""
    most = devices * devices * (fixed.microbatch or 1)  # which all replicas, stages and microbatches divide
    if not legal(model, devices, most, fixed, limits):
        return None
    batches = sorted(range(max(1, batch - NEAR), batch + NEAR), key=lambda n: (abs(n - batch), n))
    return next((near for near in batches if legal(model, devices, near, fixed, limits)), None)


def sizes_that_would_do(model: Architecture, devices: int, batch: int, fixed: Fixed, limits: Stack) -> Iterator[str]:
    """Another tp, pp or dp in place of one that is fixed, or another number of devices for all that are."""
    for name in SIZES:
        size = getattr(fixed, name)
        if size is None:
            continue
        others = sorted(divisors(devices), key=lambda d: (abs(math.log(d / size)), d))
        for other in others:
            changed: dict[str, Any] = {name: other}
            if other != size and legal(model, devices, batch, replace(fixed, **changed), limits):
                yield f"--{name} {other}"
                break
    product = math.prod(getattr(fixed, name) or 1 for name in SIZES)
    if product > 1 and None in (fixed.tp, fixed.pp, fixed.dp):
        nearest = max(1, devices // product)
        times = sorted(range(max(1, nearest - STEPS), nearest + STEPS), key=lambda n: abs(n * product - devices))
        found = (n * product for n in times if legal(model, n * product, batch, fixed, limits))
        if (near := next(found, None)) not in (None, devices):
            yield f"--gpus {near}"
    elif product > 1 and product != devices:
        if legal(model, product, batch, fixed, limits):
            yield f"--gpus {product}"
        elif size := near_batch(model, product, batch, fixed, limits):
            yield f"--gpus {product} --global-batch {size}"


def near_context(model: Architecture, devices: int, batch: int, fixed: Fixed, limits: Stack) -> int | None:
    """The context nearest to the model's that a fixed tp cuts into equal parts."""
    if not (fixed.sequence_parallel and fixed.tp) or model.context % fixed.tp == 0:
        return None
    below = model.context // fixed.tp * fixed.tp
    for context in sorted((below, below + fixed.tp), key=lambda n: (abs(n - model.context), -n)):
        if context and legal(replace(model, context=context), devices, batch, fixed, limits):
            return context
    return None


def _freed(model: Architecture, devices: int, batch: int, fixed: Fixed, limits: Stack) -> Iterator[str]:
    """Options without any one of which there would be a layout."""
    for field in fields(fixed):
        if getattr(fixed, field.name) is None:
            continue
        if legal(model, devices, batch, replace(fixed, **{field.name: None}), limits):
            yield f"leave --{field.name.replace('_', '-')} out"


def _either(hints: Iterable[str]) -> str:
    """The first three of them."""
    return " or ".join(list(dict.fromkeys(hints))[:3])


def _illegal(asked: Asked, reasons: str, where: str) -> Problem:
    """Why no layout is legal, and the nearest that would be."""
    rest = (asked.gpus[0], asked.batches[0], asked.fixed, asked.limits)
    attempt = ""
    if near := near_batch(asked.model, *rest):
        attempt = f"--global-batch {near}"
    elif context := near_context(asked.model, *rest):
        attempt = f"--context {context}"
    attempt = attempt or _either([*sizes_that_would_do(asked.model, *rest), *_freed(asked.model, *rest)])
    return Problem(where=where, what="no layout is legal", got=reasons, attempt=attempt or _nothing_fixed(asked))


def _nothing_fixed(asked: Asked) -> str:
    """The nearest number of devices where nothing is fixed."""
    devices, batch = asked.gpus[0], asked.batches[0]
    numbers = sorted(range(max(1, devices - STEPS), devices + STEPS), key=lambda n: (abs(n - devices), n))
    near = next((n for n in numbers if legal(asked.model, n, batch, FREE, asked.limits)), None)
    if near is None:
        return "another --gpus, or fix less"
    return "fix less" + f", and --gpus {near}" * (near != devices)


def sizes_hint(model: Architecture, devices: int, batch: int, fixed: Fixed, limits: Stack) -> str:
    """What to try where the sizes that are fixed do not fill the devices."""
    return _either(sizes_that_would_do(model, devices, batch, fixed, limits)) or "fix less"


def nothing(asked: Asked, found: Found) -> Problem:
    """Why there is no layout, and what would do."""
    shape, machine, fixed, limits = asked.model, asked.cluster, asked.fixed, asked.limits
    devices, batch = asked.gpus[0], asked.batches[0]
    where = f"{device_text(devices)}, batch {batch:,}"
    if not found.considered or found.least_memory is None:
        return _illegal(asked, "; ".join(rejections(found)) or "no layout has what is fixed", where)
    least = found.least_memory
    got = f"{max(least.memory) / GIB:,.1f} GiB with {layout_text(least.layout)}, which needs least"
    allowed = f"{machine.device.memory / GIB:,.1f} GiB on each {machine.device.name}"
    free = replace(fixed, tp=None, pp=None, dp=None)
    knobs: list[str] = []
    cut = bool(fixed.tp or fixed.pp or fixed.dp)
    if cut and search(shape, machine, devices, batch, fixed=free, top=1, stack=limits).best:
        knobs.append("fix neither tp, pp nor dp")
    if fixed.recompute not in (None, "full") and "full" in machine.stack.recompute:
        freer = replace(fixed, recompute="full")
        if search(shape, machine, devices, batch, fixed=freer, top=1, stack=limits).best:
            knobs.append("--recompute full")
    more = None if knobs else more_devices(asked, machine, free, limits)
    if more:
        knobs.append("fix neither tp, pp nor dp, and " * cut + f"--gpus {more}")
    attempt = " or ".join(knobs) or "a smaller model, or a larger batch so that more devices can share it"
    return Problem(where=where, what="nothing fits", got=got, allowed=allowed, attempt=attempt)


def more_devices(asked: Asked, machine: Cluster, fixed: Fixed, limits: Stack) -> int | None:
    """A number of devices, some times those asked for, that a layout fits."""
    times = 2
    while times <= LARGER:
        devices = asked.gpus[0] * times
        if search(asked.model, machine, devices, asked.batches[0], fixed=fixed, top=1, stack=limits).best:
            return devices
        times *= 2
    return None
