"""The planner against published runs: error by source, ranking, memory.

    python benchmarks/planner_accuracy.py [--rows SOURCE]

Only rows that no fit has seen count: in sources of 20 rows and more, every other row (the multiplier is fitted on the
rest); in smaller ones each row with a multiplier fitted on the others of its source. The constants were fitted on the
fitted halves of the large sources alone (``planner_fit.py``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from common import table, write_result
from gradatim.config.settings import LayoutConfig
from gradatim.plan.memory import GIB, stage_memory
from gradatim.plan.physics import FITTED, Physics
from gradatim.plan.predict import predict
from gradatim.plan.search import search
from planner_fit import predicted, ratios
from planner_rows import DATA, Row, cluster, halves, model, read, rows, whole

MUST = {
    "vtrain_multi": 7.0, "vtrain_single": 7.5, "megatron_2104_table1": 5.0, "megatron_2104_interleaved_175b": 8.0,
    "megatron_2205_table5": 3.5, "megatron_h100_weak": 7.0, "bloom_prequel_a100": 8.0, "simumax_b200": 8.0,
    "mpt_a100_80gb": 8.0,
}  # fmt: skip


def judged(physics: Physics, found: list[Row]) -> tuple[list[Row], Any]:
    """The rows that count and predicted/measured of each, under a multiplier that has not seen it."""
    off = ratios(physics, found)
    if len(found) >= 20:
        _, kept = halves(found)
        return kept, np.median(off[::2]) / off[1::2]
    return found, np.array([np.median(np.delete(off, i)) / off[i] for i in range(len(off))])


def folds(off: Any) -> Any:
    """Predicted/measured of all rows, each under a multiplier fitted on the half that it is not in."""
    found = np.empty(len(off))
    found[1::2], found[::2] = np.median(off[::2]) / off[1::2], np.median(off[1::2]) / off[::2]
    return found


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's."""
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def layouts_ranked(found: list[Row], physics: Physics) -> list[list[str]]:
    """By model: how the order of its layouts agrees, and what the predicted best costs against the measured best."""
    lines = []
    for group in dict.fromkeys(row.group for row in found):
        own = [row for row in found if row.group == group]
        measured, seconds = np.array([row.seconds for row in own]), np.array([predicted(row, physics) for row in own])
        regret = measured[int(np.argmin(seconds))] / measured.min() - 1
        width, layers, gpus, batch = group.split()
        lines.append([f"h {width}, l {layers}, {gpus} GPUs, B {batch}", f"{len(own)}",
                      f"{rank_correlation(measured, seconds):.3f}", f"{100 * regret:.1f}"])  # fmt: skip
    return lines


def interleaving(found: list[Row], physics: Physics) -> list[list[str]]:
    """The gain of interleaving at each batch, measured (from the chart) and predicted."""
    lines = []
    for group in dict.fromkeys(row.group for row in found):
        plain, looped = (next(r for r in found if r.group == group and (r.layouts[0].chunks > 1) == x) for x in (0, 1))
        measured = 100 * (plain.seconds / looped.seconds - 1)
        ours = 100 * (predicted(plain, physics) / predicted(looped, physics) - 1)
        lines.append([group, f"{measured:.0f}", f"{ours:.0f}", f"{ours - measured:+.0f}"])
    return lines


NANOTRON = {"1.34": (16, 2048, 8192, True), "3.57": (28, 3072, 8192, True), "8.86": (32, 4096, 14336, False)}
"""Layers, width, feed-forward width, tied: nanotron's scripts/scaling_benchmarks.py; 32 heads, V 131,072, s 4,096."""


def nanotron(data: Path, physics: Physics) -> list[list[str]]:
    """Where the published best of each cell stands among ours.

    Layouts that differ only in what the source does not tell (sequence parallelism: it ran both) count once; its 1F1B
    wants one microbatch less than there are stages, at least. Memory: what PyTorch had reserved on the first rank.
    """
    lines = []
    for row in read(data, "nanotron_best_h100.csv"):
        layers, width, inner, tied = NANOTRON[row["params_b"]]
        what = model(
            width, 32, layers, 131072, 4096, d_ff=inner, tied=tied, positions="rotary", norm="rms",
            activation="swiglu", bias=False,
        )  # fmt: skip
        dp, tp, pp, m, b, gpus = whole(row, "dp", "tp", "pp", "gas", "mbs", "gpus")
        zero = int(row["zero"][-1])
        found = search(what, cluster("nanotron-h100"), gpus, dp * m * b, top=60, physics=physics)
        layouts = [c.layout for c in found.best]
        layouts = [x for x in layouts if dp * m * b // x.dp // (x.microbatch or 1) >= x.pp - 1]
        keys = list(dict.fromkeys((x.tp, x.pp, x.dp, x.microbatch, x.zero) for x in layouts))[:20]
        published: tuple[object, ...] = (tp, pp, dp, b, zero)
        place = next((place for place, key in enumerate(keys, 1) if key == published), 0)
        best = LayoutConfig(
            tp=tp, pp=pp, dp=dp, microbatch=b, zero=zero, sequence_parallel=tp > 1,  # type: ignore[arg-type]
            split=what.layers_past_share(pp),
        )  # fmt: skip
        seconds = what.flops_per_token * dp * m * b * 4096 / gpus / (float(row["mfu_pct"]) / 100 * 989e12)
        off = predict(cluster("nanotron-h100"), what, best, dp * m * b, physics).seconds / seconds - 1
        said = f"t {tp}, p {pp}, d {dp}, b {b}, ZeRO-{zero}"
        planned = stage_memory(cluster("nanotron-h100").stack, what, best, dp * m * b)[0].total / GIB
        lines.append([row["params_b"], f"{gpus}", said, f"{place or '> 20'}", f"{seconds:.3f}", f"{100 * off:+.0f}",
                      row["mem"].removesuffix("GB"), f"{planned:.1f}"])  # fmt: skip
    return lines


HEAD = ["source", "rows", "judged", "mean", "median", "90th percentile", "largest", "both halves", "must", "met"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", action="append", default=[], metavar="SOURCE", help="list this source's rows")
    parser.add_argument("--physics", default="{}", help="other constants, as JSON")
    options = parser.parse_args()
    physics = dataclasses.replace(FITTED, **json.loads(options.physics))
    lines, worst, every = [], [], rows(options.data)
    for name, found in every.items():
        kept, off = judged(physics, found)
        errors = 100 * np.abs(off - 1)
        both = 100 * np.abs((folds(ratios(physics, found)) if len(found) >= 20 else off) - 1)
        lines.append([name, f"{len(found)}", f"{len(kept)}", f"{errors.mean():.2f}", f"{np.median(errors):.2f}",
                      f"{np.percentile(errors, 90):.1f}", f"{errors.max():.1f}", f"{both.mean():.2f}",
                      f"{MUST[name]:g}", "yes" if errors.mean() <= MUST[name] else "no"])  # fmt: skip
        order = np.argsort(-errors)[:3]
        worst += [[name, kept[i].label, f"{kept[i].seconds:.3f}", f"{100 * (off[i] - 1):+.1f}"] for i in order]
        if name in options.rows:
            for row, x in zip(kept, off):
                print(f"  {row.label:50} {row.seconds:9.3f} s  {100 * (x - 1):+6.1f} %")
    parts = [
        "Errors are |predicted/measured − 1| in per cent on rows that no multiplier has seen; `both halves` swaps the "
        "fitted and the judged half and takes all rows. The constants were fitted on the first halves of the four "
        "large sources alone: " + ", ".join(f"{k} {v:.3g}" for k, v in dataclasses.asdict(physics).items()) + ".",
        table(HEAD, lines),
        "Where the model is furthest off:",
        table(["source", "run", "measured s", "off %"], worst),
        "Ranking of layouts (vtrain_multi); regret: what the predicted best costs against the fastest measured:",
        table(["model", "layouts", "rank correlation", "regret %"], layouts_ranked(every["vtrain_multi"], physics)),
        "Gain of interleaving, 175B on 96 GPUs, in per cent of the plain schedule's throughput:",
        table(["batch", "measured", "predicted", "points off"],
              interleaving(every["megatron_2104_interleaved_175b"], physics)),
        "Published best layouts (nanotron, H100) and their place among ours:",
        table(["parameters, B", "GPUs", "published best", "our place", "measured s", "off %", "GiB", "planned"],
              nanotron(options.data, physics)),
    ]  # fmt: skip
    write_result("planner_accuracy", "The planner against published runs", "\n\n".join(parts))


if __name__ == "__main__":
    main()
