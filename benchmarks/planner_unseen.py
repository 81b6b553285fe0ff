"""The planner against published runs that nothing in it was fitted to: other rows of its sources, and other machines.

Every packaged cluster is taken as it is, with its multiplier; only that of ``mpt-h100-80gb`` is of these very tables:
fitted on every other row, judged by the rest. Settled on these rows, with no constant: that computation hides no hops,
what Transformer Engine keeps, and the clock that this H100's attention is reckoned with (docs/plan.md).
Read from public repositories, each a clone:

    git clone https://github.com/VIA-Research/vTrain      # f8dda84: data/ground_truth_*.csv
    git clone https://github.com/mosaicml/llm-foundry     # 8c8dd48: scripts/train/benchmarking/README.md
    git clone https://github.com/MooreThreads/SimuMax     # 4dcaae5: docs/b200/b200_release_v1.2_summary.md
    python benchmarks/planner_unseen.py --vtrain vTrain --foundry llm-foundry --simumax SimuMax

Rows that ``../shared/measurements`` has are left out. FP8, context parallelism, mixtures of experts and steps that
microbatches do not fill are not planned here, so those rows are left out, too.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import table, write_result
from gradatim.config.settings import LayoutConfig
from gradatim.plan.cluster import Cluster
from gradatim.plan.memory import GIB, stage_memory
from gradatim.plan.physics import FITTED
from gradatim.plan.predict import multiplier, predict
from planner_accuracy import judged, rank_correlation
from planner_rows import DATA, MPT, SIMUMAX, Row, cluster, model, read, rows, whole

SHAPES = MPT | {"70b": (8192, 64, 80)}
A100_40GB: dict[str, Any] = {"name": "A100-SXM4-40GB", "bandwidth": 1.555e12, "memory": 42.4e9}
"""What the datasheet has otherwise than that of 80 GB."""


@dataclass(frozen=True)
class Group:
    """Runs that belong together, and the cluster they are planned on."""

    name: str
    cluster: Cluster
    rows: list[Row]
    fitted: bool = False
    """Every other row fits the stack's multiplier, the rest judges."""


# ------------------------------------------------------------------ sources


def vtrain(clone: Path, seen: Path) -> Iterator[Group]:
    """Half of the runs on one node (all those on 8 GPUs) and the two larger models are in none of our files."""
    here = cluster("vtrain-a100")
    for file, known, groups in (
        ("ground_truth_single.csv", "vtrain_single", ((0, "vTrain, one node of 8"),)),
        ("ground_truth_multi.csv", "vtrain_multi", (
            (6144, "vTrain, 18B on 256 A100"), (12288, "vTrain, 175B on 512 A100"),
        )),
    ):  # fmt: skip
        have = {(row.model, row.layouts, row.global_batch) for row in rows(seen)[known]}
        found = []
        with (clone / "data" / file).open(newline="", encoding="utf-8-sig") as lines:
            for line in csv.DictReader(lines):
                batch, b, width, heads, layers, context, tp, dp, pp = whole(
                    line, "global batch", "micro batch", "hidden size", "attention heads", "# layers",
                    "sequence length", "tensor parallelism", "data parallelism", "pipeline parallelism",
                )  # fmt: skip
                what = model(width, heads, layers, 51200, context)
                layouts = (LayoutConfig(tp=tp, dp=dp, pp=pp, microbatch=b, recompute="full"),)
                if (what, layouts, batch) not in have:
                    seconds = float(line["iteration time (ms)"]) / 1e3
                    label = f"h {width}, l {layers}, B {batch}, b {b}, t {tp}, p {pp}, d {dp}"
                    found.append(Row(known, "vtrain-a100", what, layouts, batch, seconds, label=label))
        for width, name in groups:
            yield Group(name, here, [row for row in found if row.model.width == width or not width])


def foundry(clone: Path, seen: Path) -> Iterator[Group]:
    """MPT models under FSDP, by the headings of llm-foundry's page; 80 GB on one node is what our file has."""
    known = {tuple(row[key] for key in KEYS) for row in read(seen, "mpt_a100_80gb.csv")}
    tables: dict[str, list[dict[str, str]]] = {}
    for line in (clone / "scripts/train/benchmarking/README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|") and cells[0] == "Model":
            names, tables[heading] = cells, []
        elif line.startswith("|") and not cells[0].startswith("---"):
            tables[heading].append(dict(zip(names, cells)))
    a100, h100 = cluster("mpt-a100-80gb"), cluster("mpt-h100-80gb")
    # the runs in pure bf16 keep logits and their softmax in bf16, too
    stack = dataclasses.replace(a100.stack, logits_working=2)
    small = dataclasses.replace(a100, device=dataclasses.replace(a100.device, **A100_40GB), stack=stack)
    bf16 = {heading: lines for heading, lines in tables.items() if "FP8" not in heading}
    other = [line for heading, lines in bf16.items() if "A100 80GB" in heading for line in lines]
    other = [line for line in other if tuple(line[key] for key in KEYS) not in known]
    yield Group("MPT, 70B on 32 and 64 A100 of 80 GB", a100, [mpt(line) for line in other if full(line)])
    for name, where, of in (
        ("MPT, 8 to 128 A100 of 40 GB", small, "A100 40GB"), ("MPT, 8 to 512 H100", h100, "H100 80GB"),
    ):  # fmt: skip
        lines = [line for heading, lines in bf16.items() if of in heading for line in lines if full(line)]
        yield Group(name, where, [mpt(line) for line in lines], fitted=of.startswith("H100"))


KEYS = ("Model", "SeqLen (T)", "# GPUs", "MicroBatchSize", "GlobalBatchSize")


def full(line: dict[str, str]) -> bool:
    """Whether microbatches fill the step."""
    gpus, b, batch = whole(line, "# GPUs", "MicroBatchSize", "GlobalBatchSize")
    return batch % (b * gpus) == 0


def mpt(line: dict[str, str]) -> Row:
    """As a row; throughput in tokens, since sequences a second are rounded."""
    width, heads, layers = SHAPES[line["Model"]]
    context, gpus, b, batch = whole(line, "SeqLen (T)", "# GPUs", "MicroBatchSize", "GlobalBatchSize")
    recompute = "full" if line["Activation Checkpointing"] == "True" else "none"
    zero = 3 if line["Sharding Strategy"] == "FULL_SHARD" else 2
    layout = LayoutConfig(dp=gpus, microbatch=b, zero=zero, recompute=recompute)  # type: ignore[arg-type]
    return Row(
        "mpt", "", model(width, heads, layers, 50368, context), (layout,), batch,
        batch * context / float(line["Throughput (T/s)"]),
        label=f"{line['Model']}, s {context}, {gpus} GPUs, b {b}, {recompute}",
    )  # fmt: skip


def simumax(clone: Path) -> Iterator[Group]:
    """Llama-405B's layers on the machine of the file's 70B, under the same strategies; time and allocated memory."""
    found = []
    for line in (clone / "docs/b200/b200_release_v1.2_summary.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not cells[0].startswith("llama3_405b") or "_cp" in cells[0]:
            continue
        tp, pp, dp, m = (int(re.search(rf"_{key}(\d+)", cells[0])[1]) for key in ("tp", "pp", "dp", "mbc"))  # type: ignore[index]
        layout = LayoutConfig(tp=tp, pp=pp, dp=dp, microbatch=1, sequence_parallel=tp > 1, zero=1)
        what = model(16384, 128, 4, 128256, 4096, **(SIMUMAX | {"d_ff": 53248}))
        found.append(Row("simumax", "b200-8", what, (layout,), dp * m, float(cells[2]) / 1e3,
                         gib=float(cells[5]), label=f"t {tp}, p {pp}, d {dp}, m {m}"))  # fmt: skip
    yield Group("Llama-405B's layers on 8 B200", cluster("b200-8"), found)


def megatron_turing() -> Iterator[Group]:
    """Smith et al. 2022 (arXiv:2201.11990), section 2.4: seconds of a step on 280, 350 and 420 nodes of eight A100.

    The model and cluster of Narayanan et al. 2021, but Megatron with DeepSpeed: a stack of which no run was fitted.
    """
    what = model(20480, 128, 105, 51200, 2048)
    found = [
        Row("mt-nlg", "selene-2021", what, (LayoutConfig(tp=8, pp=35, dp=dp, microbatch=1, recompute="full"),), 1920,
            seconds, label=f"{dp * 280} GPUs")
        for dp, seconds in ((8, 60.1), (10, 50.2), (12, 44.4))
    ]  # fmt: skip
    yield Group("Megatron-Turing 530B, 2,240 to 3,360 A100", cluster("selene-2021"), found)


# ------------------------------------------------------------------ judging


def off(group: Group) -> tuple[list[Row], Any, float]:
    """The rows that count, predicted over measured, and the multiplier they were predicted with."""
    stack = dataclasses.replace(group.cluster.stack, multiplier=1.0) if group.fitted else group.cluster.stack
    where = dataclasses.replace(group.cluster, stack=stack)
    ratios = np.array([
        predict(where, row.model, row.layouts[0], row.global_batch, FITTED).seconds / row.seconds for row in group.rows
    ])  # fmt: skip
    if not group.fitted:
        return group.rows, ratios, multiplier(where, group.rows[0].layouts[0])
    fitted = float(1 / np.median(ratios[::2]))
    return group.rows[1::2], fitted * ratios[1::2], fitted


def memory(group: Group) -> list[Any]:
    """The fullest stage of each row, in GiB."""
    stack = group.cluster.stack
    return [
        max(stage.total for stage in stage_memory(stack, row.model, row.layouts[0], row.global_batch)) / GIB
        for row in group.rows
    ]


def ranking(group: Group, kept: list[Row], ratios: Any) -> list[str]:
    """How the order of layouts agrees, and what the predicted best costs against the measured best."""
    measured = np.array([row.seconds for row in kept])
    planned = ratios * measured
    regret = measured[int(np.argmin(planned))] / measured.min() - 1
    return [group.name, f"{len(kept)}", f"{rank_correlation(measured, planned):.3f}", f"{100 * regret:.1f}"]


def figures(ratios: Any) -> list[str]:
    """How many ratios of predicted to measured, the error's mean, median, 90th percentile and most, and its sign."""
    errors = 100 * np.abs(ratios - 1)
    return [
        f"{len(ratios)}", f"{errors.mean():.2f}", f"{np.median(errors):.2f}", f"{np.percentile(errors, 90):.1f}",
        f"{errors.max():.1f}", f"{100 * (np.median(ratios) - 1):+.1f}",
    ]  # fmt: skip


def straightness(kept: list[Row]) -> str:
    """How far runs that differ in layers and microbatches alone are from a plane through them."""
    alike: dict[Any, list[Row]] = {}
    for row in kept:
        layout = row.layouts[0]
        alike.setdefault((row.model.width, layout.tp, layout.dp, layout.pp, layout.microbatch), []).append(row)
    off: list[float] = []
    for group in alike.values():
        layout = group[0].layouts[0]
        points = [(row.model.layers, row.global_batch // layout.dp // (layout.microbatch or 1)) for row in group]
        terms = np.array([[layers * m, m, layers, 1] for layers, m in points], float)
        seconds = np.array([row.seconds for row in group])
        off += list(np.abs(terms @ np.linalg.lstsq(terms, seconds, rcond=None)[0] / seconds - 1))
    profiles = len({(width, tp, b) for width, tp, _, _, b in alike})
    return (
        f"Of vTrain's runs on one node those of one width, layout and microbatch are {np.median(off):.1g} "
        f"(median; 90th percentile {np.percentile(off, 90):.1g}) of their time off a straight line in layers and "
        f"microbatches, which {len(kept)} separate runs would not be: they look put together from profiles of "
        f"{profiles} blocks."
    )


def growth(group: Group) -> list[list[str]]:
    """What the same work on a device takes longer where there are more of them, measured and predicted."""
    alike: dict[Any, list[Row]] = {}
    for row in group.rows:
        layout = row.layouts[0]
        each = dataclasses.replace(layout, dp=1), row.global_batch // layout.dp
        alike.setdefault((row.model, *each), []).append(row)
    lines = []
    for rows_ in alike.values():
        few, many = min(rows_, key=lambda r: r.layouts[0].dp), max(rows_, key=lambda r: r.layouts[0].dp)
        if many.layouts[0].dp < 4 * few.layouts[0].dp:
            continue
        measured = many.seconds / few.seconds
        planned = [
            predict(group.cluster, row.model, row.layouts[0], row.global_batch, FITTED).seconds for row in (few, many)
        ]
        what = few.label.split(",")[0]
        lines.append([group.name, what, f"{few.layouts[0].dp} to {many.layouts[0].dp}", f"{100 * (measured - 1):.1f}",
                      f"{100 * (planned[1] / planned[0] - 1):.1f}"])  # fmt: skip
    return lines


def fits(group: Group) -> list[str]:
    """Runs planned to need more than there is, and how far plans are from what was allocated, where that is told."""
    planned, limit = memory(group), group.cluster.device.memory / GIB
    over = [gib - limit for gib in planned if gib > limit]
    overhead = group.cluster.stack.overhead / GIB  # no part of what is allocated
    off = [100 * abs((gib - overhead) / row.gib - 1) for gib, row in zip(planned, group.rows) if row.gib]
    largest = f"{max(off):.1f} %" if off else ""
    return [group.name, f"{len(planned)}", f"{len(over)}", f"{max(over, default=0):.1f}", largest]


HEAD = ["runs", "rows", "judged", "mean", "median", "90th percentile", "largest", "median off", "multiplier"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("vtrain", "foundry", "simumax"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="CLONE")
    parser.add_argument("--data", type=Path, default=DATA, help="the files whose rows are left out")
    parser.add_argument("--rows", action="store_true", help="list every row")
    options = parser.parse_args()
    groups = [
        *vtrain(options.vtrain, options.data), *foundry(options.foundry, options.data), *simumax(options.simumax),
        *megatron_turing(),
    ]  # fmt: skip
    lines, worst, ranked = [], [], []
    across = [judged(FITTED, rows(options.data)["vtrain_multi"])[1]]
    for group in groups:
        kept, ratios, used = off(group)
        errors = 100 * np.abs(ratios - 1)
        lines.append([group.name, f"{len(group.rows)}", *figures(ratios), f"{used:.3g}"])
        order = range(len(kept)) if options.rows else np.argsort(-errors)[:3]
        worst += [[group.name, kept[i].label, f"{kept[i].seconds:.3f}", f"{100 * (ratios[i] - 1):+.1f}"] for i in order]
        if kept[0].source == "vtrain_multi":
            across.append(ratios)
            ranked.append(ranking(group, kept, ratios))
    every = np.concatenate(across)
    lines.append(["vTrain across nodes, all", f"{len(every)}", *figures(every), "0.99"])
    parts = [
        "Errors are |predicted/measured − 1| in per cent. `median off` has the sign: where it is far from 0 the "
        "software is another one than the multiplier is of, and the rest of the error is the model's. The last line is "
        "of 3.6B and 39.1B, too, by the half of their runs that planner_accuracy judges by.",
        table(HEAD, lines),
        "Where the model is furthest off:" if not options.rows else "Every row:",
        table(["runs", "run", "measured s", "off %"], worst),
        straightness(groups[0].rows),
        "Ranking of layouts; regret: what the predicted best costs against the fastest measured:",
        table(["runs", "layouts", "rank correlation", "regret %"], ranked),
        "The same work on each device, with more of them: how much longer a step takes, in per cent:",
        table(["runs", "model", "GPUs", "measured", "predicted"],
              [line for group in groups if group.rows[0].source == "mpt" for line in growth(group)]),
        "Memory. All of these ran: how many are planned to need more than the device has, and by how much; where the "
        "source states what was allocated, how far the plan is from it:",
        table(["runs", "rows", "planned not to fit", "by GiB", "largest error"],
              [fits(group) for group in groups if group.rows[0].source in ("mpt", "simumax")]),
    ]  # fmt: skip
    write_result("planner_unseen", "The planner against runs it has never seen", "\n\n".join(parts))


if __name__ == "__main__":
    main()
