"""What a search came to, for people and for programs: layouts ranked, where time goes, what binds. No torch."""

from __future__ import annotations

from typing import Any

from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster
from gradatim.plan.layouts import KNOBS
from gradatim.plan.search import TOO_LARGE, Candidate, Found, best_with
from gradatim.plan.sure import close_to_full, how_sure, others_beyond
from gradatim.plan.words import GIB, layout_text
from gradatim.shapes import matmuls

CAUSES = ("compute", "tensor", "pipeline", "bubble", "data", "optimizer")
"""The order in which a step's seconds are shown."""


def tflops(model: Architecture, cluster: Cluster, candidate: Candidate, global_batch: int) -> tuple[float, float]:
    """TFLOP/s a device: of the model, 72Bslh²(1 + s/6h + V/12lh) for GPT, and with what is computed again."""
    layout = candidate.layout
    devices = layout.tp * layout.pp * layout.dp
    tokens = global_batch * model.context
    again = {"none": 0.0, "selective": 0.0, "full": 0.0}
    blocks = [
        product
        for product in matmuls(model.config, model.vocab_size, model.context)
        if not product.name.startswith("head.")
    ]
    again["full"] = sum(product.flops for product in blocks)
    if cluster.stack.selects:
        core = ("attention.scores", "attention.values")
        again["selective"] = sum(product.flops for product in blocks if product.name in core)
    rate = tokens / candidate.prediction.seconds / devices / 1e12
    return rate * model.flops_per_token, rate * (model.flops_per_token + again[layout.recompute])


def size_text(model: Architecture) -> str:
    """``174.62 B parameters``."""
    count = model.parameter_count
    return f"{count / 1e9:,.2f} B parameters" if count >= 1e8 else f"{count / 1e6:,.2f} M parameters"


def sequence_text(model: Architecture) -> str:
    """What one of a batch is: ``2,048 tokens``, or a pair as long as the context on both sides."""
    tokens = f"{model.context:,}"
    return f"pairs of {tokens} source and {tokens} target tokens" if model.one_stage else f"{tokens} tokens"


def layout_document(model: Architecture, cluster: Cluster, candidate: Candidate, global_batch: int) -> dict[str, Any]:
    """A layout as JSON has it."""
    useful, hardware = tflops(model, cluster, candidate, global_batch)
    document = {knob: getattr(candidate.layout, knob) for knob in KNOBS}
    document |= {
        "split": candidate.layout.split,
        "seconds": candidate.prediction.seconds,
        "tflops_per_gpu": useful,
        "hardware_tflops_per_gpu": hardware,
        "mfu": useful * 1e12 / cluster.device.peak,
        "memory_gib": [stage / GIB for stage in candidate.memory],
        "fits": candidate.fits,
        "breakdown": dict(candidate.prediction.breakdown),
    }
    return document


def knob_costs(model: Architecture, cluster: Cluster, found: Found, global_batch: int) -> dict[str, dict[str, Any]]:
    """For each knob and each of its values the seconds of the fastest layout with it; None where none fits."""
    if found.columns is None:
        return {}
    costs: dict[str, dict[str, Any]] = {}
    for knob in KNOBS:
        best = best_with(found, cluster, model, global_batch, knob)
        costs[knob] = {str(value).lower(): c.prediction.seconds if c else None for value, c in best.items()}
        costs[knob][str(getattr(found.best[0].layout, knob)).lower()] = found.best[0].prediction.seconds
    return costs


RANKING = ["rank", "tp", "pp", "dp", "schedule", "b", "sp", "recompute", "zero", "s/step", "TFLOP/s", "MFU %", "GiB"]
"""Columns of ``ranking``; GiB are those of the fullest stage."""


def measured_document(cluster: Cluster) -> dict[str, Any]:
    """What measured runs of the stack there were and how far they were off, as JSON has it; fractions, not per cent."""
    stack = cluster.stack
    return {"runs": stack.runs or None, "error": stack.error, "devices": stack.seen, "memory_error": stack.memory_error}


def ranking(model: Architecture, cluster: Cluster, found: list[Candidate], global_batch: int) -> list[list[Any]]:
    """The layouts, fastest first, as the cells of a table."""
    cells: list[list[Any]] = []
    for place, candidate in enumerate(found, 1):
        layout = candidate.layout
        useful, _ = tflops(model, cluster, candidate, global_batch)
        schedule = "-" if layout.pp == 1 else layout.schedule + (f" x{layout.chunks}" if layout.chunks > 1 else "")
        fullest = max(candidate.memory) / GIB
        cells.append(
            [place, layout.tp, layout.pp, layout.dp, schedule, layout.microbatch, layout.sequence_parallel]
            + [layout.recompute, layout.zero, candidate.prediction.seconds, _short(useful)]
            + [round(100 * useful * 1e12 / cluster.device.peak, 1)]
            + [f"{fullest:,.1f}" if candidate.fits else f"{fullest:,.1f}, too much"]
        )
    return cells


def _short(rate: float) -> float:
    """A tenth is exact enough of a GPU's TFLOP/s, not of a CPU's."""
    return round(rate, 1) if rate >= 10 else float(f"{rate:.3g}")


def time_split(found: list[Candidate]) -> list[list[Any]]:
    """Per cent of the step by cause, in the order of the ranking; columns are rank and ``CAUSES``."""
    return [
        [place] + [round(100 * c.prediction.breakdown[cause] / c.prediction.seconds, 1) for cause in CAUSES]
        for place, c in enumerate(found, 1)
    ]


def memory_by_stage(found: Candidate, cluster: Cluster) -> str:
    """``77.1 75.0 … 70.2 GiB`` of the limit: every stage, or the first and last eight."""
    stages = [f"{stage / GIB:,.1f}" for stage in found.memory]
    shown = stages if len(stages) <= 16 else [*stages[:8], "…", *stages[-8:]]
    return f"memory by stage: {' '.join(shown)} of {cluster.device.memory / GIB:,.1f} GiB"


def remarks(model: Architecture, cluster: Cluster, found: Found, global_batch: int) -> list[str]:
    """Sentences about the winner: what it is, what binds it, what else would cost, how sure we are."""
    winner = found.best[0]
    seconds = winner.prediction.seconds
    parts = sorted(winner.prediction.breakdown.items(), key=lambda part: -part[1])
    lost = [
        f"{name} {100 * value / seconds:.0f} %"
        for name, value in parts
        if name != "compute" and value > 0.005 * seconds
    ]
    lines = [f"fastest: {layout_text(winner.layout)}: {seconds:.4g} s a step"]
    lines.append("time goes to computing" + (f", besides {', '.join(lost)}" if lost else " alone"))
    lines.append(memory_by_stage(winner, cluster))
    lines += close_to_full(model, cluster, found, global_batch)
    if len(found.best) > 1:
        second = found.best[1]
        lines.append(f"next: {layout_text(second.layout)}, {_percent(second.prediction.seconds / seconds)}")
    lines += _one_knob_away(model, cluster, found, global_batch)
    lines += [how_sure(cluster, winner.layout), *others_beyond(cluster, found)]
    return lines


def _one_knob_away(model: Architecture, cluster: Cluster, found: Found, global_batch: int) -> list[str]:
    """For each knob what its other values cost, the rest chosen anew."""
    winner, lines = found.best[0], []
    for knob, costs in knob_costs(model, cluster, found, global_batch).items():
        own = str(getattr(winner.layout, knob)).lower()
        others = [
            f"{value} {_percent(seconds / winner.prediction.seconds) if seconds else 'does not fit'}"
            for value, seconds in costs.items()
            if value != own
        ]
        if others:
            shown = others if len(others) <= 8 else [*others[:8], "…"]
            lines.append(f"{knob.replace('_', ' ')} {own}; else {'; '.join(shown)}")
    return lines


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def rejections(found: Found) -> list[str]:
    """Why layouts were left out, most first."""
    return [
        f"{count:,} {reason}" if reason == TOO_LARGE else f"{count:,} time{'s' if count > 1 else ''} {reason}"
        for reason, count in found.rejected.most_common()
    ]
