"""The planner's memory against rehearsals of our own trainer, and against published measurements of others.

    python benchmarks/planner_memory.py [--only rehearsed|published] [--data ../shared/measurements]

Rehearsals: the first, a middle and the last rank of each layout, the real model and optimizer on fake devices.
Published: SimuMax's allocated bytes as they are; BLOOM's trials as nvidia-smi showed them, against the fullest rank and
one offset (context, communication library, allocator), which is the median difference.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from common import RESULTS, table
from gradatim.config import load_config
from gradatim.parallel.rehearse import rehearse
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import load_cluster
from gradatim.plan.memory import GIB, stage_memory
from gradatim.shapes import parameter_count
from planner_rows import DATA, Row, bloom, cluster, simumax

LLAMA = "positions=rotary norm=rms activation=swiglu bias=false tied=false"
SHAPES = {
    "llama-7b": f"n_layers=32 d_model=4096 n_heads=32 d_ff=11008 {LLAMA}",
    "llama-70b": f"n_layers=80 d_model=8192 n_heads=64 n_kv_heads=8 d_ff=28672 {LLAMA}",
}
"""Models that are no recipes, as overrides of gpt3-175b's."""
LAYOUTS = [
    ("gpt2-124m", 480, "microbatch=12"),
    ("gpt2-124m", 512, "dp=8 zero=1 microbatch=4 recompute=full"),
    ("gpt2-medium", 512, "tp=2 dp=4 microbatch=4"),
    ("gpt2-large", 512, "pp=4 dp=2 microbatch=2 recompute=selective"),
    ("gpt2-large", 512, "pp=4 dp=2 microbatch=8 schedule=gpipe recompute=full"),
    ("gpt2-large", 512, "tp=4 sequence_parallel=true dp=4 zero=1 microbatch=2"),
    ("gpt2-xl", 512, "pp=4 chunks=3 schedule=interleaved dp=2 microbatch=2"),
    ("gpt2-large", 512, "tp=2 pp=4 schedule=zero-bubble microbatch=2"),
    ("llama-7b", 1024, "tp=2 pp=4 dp=16 zero=1 microbatch=1"),
    ("llama-7b", 1024, "tp=8 sequence_parallel=true dp=32 zero=1 microbatch=2 recompute=selective"),
    ("llama-70b", 1024, "tp=8 pp=8 sequence_parallel=true dp=16 zero=1 microbatch=1 recompute=full"),
    ("llama-70b", 1024, "tp=8 pp=4 chunks=5 schedule=interleaved sequence_parallel=true dp=8 microbatch=1"),
    ("gpt3-175b", 1536, "tp=8 pp=8 dp=16 zero=1 sequence_parallel=true recompute=selective"),
    ("gpt3-175b", 1536, "tp=8 pp=12 dp=8 recompute=full"),
    ("gpt3-175b", 1536, "tp=8 pp=16 dp=12 schedule=zero-bubble sequence_parallel=true"),
    ("gpt3-175b", 1536, "tp=8 pp=8 chunks=3 schedule=interleaved dp=16 zero=1 sequence_parallel=true recompute=full"),
    ("gpt3-175b", 1536, "tp=4 pp=16 dp=16 zero=1 microbatch=2 recompute=full"),
    ("gpt3-1t", 3072, "tp=8 pp=64 dp=6 sequence_parallel=true recompute=full"),
    ("gpt3-1t", 3072, "tp=8 pp=64 dp=8 zero=1 sequence_parallel=true recompute=selective"),
    ("gpt3-1t", 3072, "tp=8 pp=32 chunks=2 schedule=interleaved dp=12 zero=1 sequence_parallel=true recompute=full"),
]
"""Model, global batch, layout; in bf16."""


def against_rehearsals() -> str:
    stack = load_cluster("gradatim-h100").stack
    lines: list[list[str]] = []
    errors: dict[str, list[float]] = defaultdict(list)
    for name, batch, text in LAYOUTS:
        overrides = {"global_batch": str(batch), "precision": "bf16"}
        overrides |= {f"layout.{key}": value for key, value in (pair.split("=") for pair in text.split())}
        shape = SHAPES.get(name, "")
        overrides |= {f"model.{key}": value for key, value in (pair.split("=") for pair in shape.split())}
        config = load_config("gpt3-175b" if shape else name, overrides)
        words, layout = config.data.tokenizer.vocab_size, config.layout
        assert words
        planned = stage_memory(stack, Architecture(config.model, words, config.context), layout, batch)  # type: ignore[arg-type]
        size = parameter_count(config.model, words, config.context) / 1e9
        for stage in sorted({0, layout.pp // 2, layout.pp - 1}):
            real, mine = rehearse(config, words, stage * layout.tp * layout.dp), planned[stage]
            pairs = {
                "weights": (mine.weights, real.weights_bytes),
                "gradients": (mine.gradients, real.gradient_bytes),
                "optimizer": (mine.optimizer, real.optimizer_bytes),
                "peak activations": (mine.activations + mine.working, real.peak_activation_bytes),
            }
            off = {key: 100 * (said / counted - 1) for key, (said, counted) in pairs.items()}
            for key, value in off.items():
                errors[key].append(abs(value))
            shown = ("weights", "optimizer", "peak activations")
            where = [f"{name}, {size:.3g}B", text.replace("=true", "")] if stage == 0 else ["", ""]
            values = [f"{pairs[key][1] / GIB:.3f} ({off[key]:+.2f} %)" for key in shown]
            lines.append([*where, str(stage), *values, f"{real.seconds:.1f}"])
            print(" | ".join(lines[-1]), flush=True)
    kinds = [[key, f"{statistics.median(found):.2f}", f"{max(found):.2f}"] for key, found in errors.items()]
    return "\n".join([
        "## Against rehearsals of our own trainer", "",
        "First, middle and last stage: GiB that the rehearsal counts, and how far the plan is from that.", "",
        table(["model", "layout", "stage", "weights", "optimizer", "peak activations", "rehearsed in s"], lines), "",
        table(["part", "median error %", "largest error % (must: 3)"], kinds), "",
    ])  # fmt: skip


def fullest(row: Row, *, tensors: bool) -> float:
    """GiB of the fullest rank, with or without the stack's allowance for what is no tensor."""
    stages = stage_memory(cluster(row.cluster).stack, row.model, row.layouts[0], row.global_batch)
    return max(stage.total - (stage.overhead if tensors else 0.0) for stage in stages) / GIB


def against_simumax(data: Path) -> str:
    rows = {row.layouts[0]: row for row in simumax(data, "simumax_b200")}.values()
    off = {row: 100 * (fullest(row, tensors=True) / row.gib - 1) for row in rows if row.gib}
    lines = [
        [row.label.rpartition(",")[0], f"{row.gib:.2f}", f"{fullest(row, tensors=True):.2f}", f"{error:+.2f}"]
        for row, error in off.items()
    ]
    return "\n".join([
        "## simumax_b200", "", "GiB allocated; the number of microbatches changes neither column.", "",
        table(["layout", "measured", "planned", "error %"], lines), "",
        f"Largest error {max(map(abs, off.values())):.2f} % (must 3, aim 2).", "",
    ])  # fmt: skip


def against_bloom(data: Path) -> str:
    rows = list(bloom(data, "bloom_prequel_a100", memory=True))
    ran = [(row, row.gib) for row in rows if row.gib is not None]
    offset = statistics.median(gib - fullest(row, tensors=True) for row, gib in ran)
    off = [fullest(row, tensors=True) + offset - gib for row, gib in ran]
    errors = sorted(map(abs, off))
    lines = [[row.label, f"{gib:.0f}", f"{gib + error:.1f}", f"{error:+.1f}"] for (row, gib), error in zip(ran, off)]
    limit = load_cluster("jean-zay-a100").device.memory / GIB
    needed = {row: fullest(row, tensors=False) for row in rows}
    rejected = sum(need > limit for row, need in needed.items() if not row.oom)
    full = {row: need for row, need in needed.items() if row.oom}
    return "\n".join([
        "## bloom_prequel_a100", "",
        "What nvidia-smi showed (read as GiB), against the fullest rank and one offset.", "",
        table(["layout", "measured", "planned", "error"], lines), "",
        f"Offset {offset:.1f} GiB; median error {statistics.median(errors):.1f} (must 4, aim 3), "
        f"90th percentile {errors[int(0.9 * len(errors))]:.1f}, largest {errors[-1]:.1f}.", "",
        f"Of {len(rows) - len(full)} rows that ran, {rejected} are rejected at {limit:.1f} GiB. "
        f"Of {len(full)} that ran out of memory, {sum(need <= limit for need in full.values())} are accepted:", "",
        table(["layout", "planned"], [[row.label, f"{need:.1f}"] for row, need in full.items()]), "",
        "All three ran under DeepSpeed's BF16 optimizer, which keeps the gradients' sums in fp32 on every rank, with "
        "embedding and head in a layer's place each (jean-zay-bf16). What is accepted needs, by tensors, less than "
        "trials that ran (h 13824, l 78, t 4 took 75).", "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", choices=["rehearsed", "published"], help="print this part, write no page")
    options = parser.parse_args()
    parts = ["# The planner's memory\n\n`python benchmarks/planner_memory.py`\n"]
    if options.only != "published":
        parts.append(against_rehearsals())
    if options.only != "rehearsed":
        parts += [against_simumax(options.data), against_bloom(options.data)]
    text = "\n".join(parts)
    print(text)
    if options.only is None:
        (RESULTS / "planner_memory.md").write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
