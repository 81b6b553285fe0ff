"""``layout: auto``: the fastest layout that fits, for a run that is about to train. No torch.

The search is that of ``gradatim plan``, within what our own trainer can do. The machine is ``cluster``'s, or this one,
for which a packaged measurement of a CPU stands in until ``gradatim calibrate`` has measured it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from gradatim.config.derived import world_size
from gradatim.config.rules import problems as rule_problems
from gradatim.config.rules_layout import WHY_ALONE
from gradatim.config.settings import LayoutConfig, RunConfig
from gradatim.errors import ConfigError, Problem
from gradatim.plan import here
from gradatim.plan.architecture import Architecture, architecture
from gradatim.plan.cluster import Cluster, Stack, cluster_names, load_cluster, read_cluster
from gradatim.plan.explain import rejections
from gradatim.plan.layouts import KNOBS, NO_LIMITS, Fixed, divisors
from gradatim.plan.ours import with_our_stack
from gradatim.plan.search import Candidate, Found, search
from gradatim.plan.words import GIB, layout_text

STAND_IN = "cpu"
"""The packaged cluster for machines that nobody has measured."""
WORDS = {"char": 256, "word": 1 << 15}
"""Entries that a vocabulary is taken for whose size is known only once the text is read."""
WHERE = "layout: auto"
MORE = 8
"""How many times the number of processes is doubled where nothing fits."""
TRIED = 32
"""Layouts that are held against the rules of training."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A layout and why it is."""

    layout: LayoutConfig
    why: str


def choose_layout(config: RunConfig, stated: Collection[str], world: int | None = None) -> Choice:
    """The layout of a run.

    Args:
        config: the run's settings; of its layout only what is stated counts.
        stated: fields of the layout that are not to be chosen.
        world: processes, where that is decided already; else as many as are stated, or as the cluster has, or cores.

    Raises:
        ConfigError: no layout is legal, or none fits, or it is not known what for.
    """
    layout = config.layout
    model = architecture(config, config.data.tokenizer.vocab_size or WORDS.get(config.data.tokenizer.kind, 1))
    if model is None:
        return _alone(config, world)
    if isinstance(layout.split, tuple):
        what = "layers are listed stage by stage, and how many stages there are is yet to be chosen"
        attempt = "--layout.split by-cost"
        raise ConfigError(
            Problem(where="layout.split", what=what, got=",".join(map(str, layout.split)), attempt=attempt)
        )
    cluster, name = _cluster(config)
    fixed = Fixed(**{knob: getattr(layout, knob) for knob in KNOBS if knob in stated})
    product = math.prod(size or 1 for size in (fixed.tp, fixed.pp, fixed.dp))
    whole = None not in (fixed.tp, fixed.pp, fixed.dp)
    decided = world or (product if whole else None)
    most = decided or cluster.devices or (here.processes() if config.cluster is None else None)
    if most is None:
        what = f"how many processes there are is not stated, neither here nor in {name}"
        raise ConfigError(Problem(where=WHERE, what=what, got="nothing", attempt="--nproc 8"))
    limits = replace(NO_LIMITS, layers="gradatim", zero=(0, 1), splits=(layout.split,))
    if model.one_stage:  # translators store all activations
        limits = replace(limits, recompute=("none",))
    refused: Refused | None = None
    for processes in [most] if decided else range(most, 0, -1):
        sized = _sized(cluster, processes)
        tried = _search(config, model, sized, fixed, limits, processes)
        if not isinstance(tried, Refused):
            return _explained(config, tried, sized, name, processes)
        refused = refused or tried
    assert refused is not None
    others = [most << power for power in range(1, MORE)] if refused.least else range(most - 1, 0, -1)
    if whole or (refused.least and cluster.calibrated):  # one machine's memory is what it is
        others = []
    would = (n for n in others if isinstance(_search(config, model, _sized(cluster, n), fixed, limits, n), Ranked))
    raise ConfigError(_problem(refused, _sized(cluster, most), most, next(would, None)))


def _alone(config: RunConfig, world: int | None) -> Choice:
    """Models that are not cut."""
    why = WHY_ALONE.get(type(config.model), "this model is small, and trains in one process")
    if world not in (None, world_size(config.layout)):
        raise ConfigError(Problem(where=WHERE, what=why, got=f"{world} processes", allowed="1", attempt="--nproc 1"))
    return Choice(config.layout, f"one process: {why}")


def _cluster(config: RunConfig) -> tuple[Cluster, str]:
    """What is planned for, and what it is called: hardware as its file says, software our own."""
    if config.cluster is None:
        if here.has_gpus():
            what = "this machine has GPUs; which cluster is it?"
            allowed = f"{', '.join(cluster_names())}, or a file"
            raise ConfigError(
                Problem(where=WHERE, what=what, got="no cluster", allowed=allowed, attempt="--cluster eos-h100")
            )
        cluster = load_cluster(STAND_IN)
        device = replace(cluster.device, memory=here.memory())
        name = "this machine, taken for the packaged CPU: gradatim calibrate --out FILE and --cluster FILE know better"
        cluster = replace(cluster, device=device, node=replace(cluster.node, devices=1), devices=0)
    else:
        cluster, unstated = read_cluster(config.cluster)
        name = config.cluster
        if unstated:
            name += f" (not stated there, and taken for a DGX A100's: {', '.join(unstated)})"
    return with_our_stack(cluster, config.precision), name


def _sized(cluster: Cluster, processes: int) -> Cluster:
    """Processes of one machine share its memory."""
    if not cluster.calibrated:
        return cluster
    measured = max(1, cluster.node.devices)
    memory = cluster.device.memory * measured / processes
    return replace(
        cluster, device=replace(cluster.device, memory=memory), node=replace(cluster.node, devices=processes)
    )


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no layout."""

    reasons: list[str]
    least: Candidate | None
    """Where nothing fits: what needs least."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Layouts that train, fastest first."""

    best: list[Candidate]
    considered: int


def _search(
    config: RunConfig, model: Architecture, cluster: Cluster, fixed: Fixed, limits: Stack, processes: int
) -> Ranked | Refused:
    """Search for each tensor-parallel size that the vocabulary's padding allows, whatever the vocabulary will be."""
    sizes = [fixed.tp] if fixed.tp else divisors(math.gcd(processes, model.config.vocab_multiple))
    found: list[Found] = []
    for tp in sizes:
        with_tp = replace(fixed, tp=tp)
        if config.batch_tokens is None:
            found.append(search(model, cluster, processes, config.global_batch, fixed=with_tp, top=TRIED, stack=limits))
            continue
        dp = processes // tp  # pairs of like length, each replica's share at once
        share = max(1, config.batch_tokens // config.context // dp)
        one = replace(with_tp, dp=dp, microbatch=share)
        found.append(search(model, cluster, processes, share * dp, fixed=one, top=TRIED, stack=limits))
    best = sorted((c for one in found for c in one.best), key=lambda c: (c.prediction.seconds, max(c.memory)))
    best = [candidate for candidate in best if not rule_problems(_with(config, candidate.layout))]
    if best:
        return Ranked(best, sum(one.considered for one in found))
    least = min((one.least_memory for one in found if one.least_memory), key=lambda c: max(c.memory), default=None)
    return Refused([reason for one in found for reason in rejections(one)], least)


def _with(config: RunConfig, layout: LayoutConfig) -> RunConfig:
    """The run with a layout found, which keeps what is nobody's choice."""
    own = config.layout
    microbatch = layout.microbatch if config.batch_tokens is None else None
    return replace(config, layout=replace(layout, microbatch=microbatch, timeout=own.timeout, check=own.check))


def _explained(config: RunConfig, found: Ranked, cluster: Cluster, name: str, processes: int) -> Choice:
    winner = found.best[0]
    seconds = winner.prediction.seconds
    memory, limit = max(winner.memory) / GIB, cluster.device.memory / GIB
    why = (
        f"{layout_text(winner.layout)}: {seconds:.3g} s a step and {memory:.2f} of {limit:.1f} GiB predicted for {name}"
    )
    why += f"; fastest of {found.considered:,} layouts of {processes} process{'es' if processes > 1 else ''}"
    if len(found.best) > 1:
        second = found.best[1]
        why += f", next {layout_text(second.layout)}, {100 * (second.prediction.seconds / seconds - 1):+.1f} %"
    return Choice(_with(config, winner.layout).layout, why)


def _problem(refused: Refused, cluster: Cluster, processes: int, instead: int | None) -> Problem:
    """Why there is none; with ``instead`` processes there would be."""
    attempt = f"--nproc {instead}" if instead else ""
    if refused.least is None:
        got = "; ".join(_distinct(refused.reasons)) or "no layout has what is stated"
        what = f"no layout of {processes} process{'es' if processes > 1 else ''} trains this"
        return Problem(where=WHERE, what=what, got=got, attempt=attempt or "state less of the layout, or another batch")
    least = refused.least
    return Problem(
        where=WHERE,
        what="nothing fits",
        got=f"{max(least.memory) / GIB:.1f} GiB with {layout_text(least.layout)}, which needs least",
        allowed=f"{cluster.device.memory / GIB:.1f} GiB of each of {processes}",
        attempt=attempt or "a smaller batch, context or model",
    )


def _distinct(reasons: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(reasons))
