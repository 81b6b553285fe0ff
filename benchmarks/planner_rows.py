"""Published runs as the planner sees them: cluster, model, layout, batch and measured seconds; with the rules where a
source leaves something unstated.

Sources and traps are described beside the files (``--data``, by default ``../shared/measurements``).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gradatim.config.settings import GptConfig, LayoutConfig
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import Cluster, load_cluster

DATA = Path("../shared/measurements")


@dataclass(frozen=True)
class Row:
    """One published run."""

    source: str
    cluster: str
    model: Architecture
    layouts: tuple[LayoutConfig, ...]
    """The layout; several where microbatch and chunks are not stated: the rule takes the fastest that fits."""
    global_batch: int
    seconds: float
    group: str = ""
    """Rows of a group differ only in layout, so that their ranking can be judged."""
    gib: float | None = None
    """Measured memory of the device, where the source states it."""
    oom: bool = False
    """The run did not fit the device."""
    label: str = field(default="", compare=False)


@cache
def cluster(name: str) -> Cluster:
    return load_cluster(name)


@cache
def model(width: int, heads: int, layers: int, words: int, context: int, **more: Any) -> Architecture:
    return Architecture(
        GptConfig(d_model=width, n_layers=layers, n_heads=heads, vocab_multiple=1, **more), words, context
    )


def read(data: Path, name: str) -> list[dict[str, str]]:
    with (data / name).open(newline="") as file:
        return list(csv.DictReader(file))


def whole(row: dict[str, str], *names: str) -> list[int]:
    return [int(float(row[name])) for name in names]


def model_seconds(
    batch: int, context: int, layers: int, width: int, words: int, gpus: int, tflops: float, *, kind: str
) -> float:
    """A step's seconds from published TFLOP/s a GPU: ``hardware`` counts full recomputation, ``model`` does not."""
    per_layer, head = (96, 16) if kind == "hardware" else (72, 12)
    flops: float = per_layer * batch * context * layers * width**2
    flops *= 1 + context / (6 * width) + words / (head * layers * width)
    return flops / gpus / (tflops * 1e12)


def unstated(model: Architecture, batch: int, **layout: object) -> tuple[LayoutConfig, ...]:
    """All microbatches that divide the batch (1, 2, 4, 8, 16), all chunks that divide the stages' layers."""
    found = []
    pp, dp = int(layout["pp"]), int(layout["dp"])  # type: ignore[call-overload]
    for microbatch in (1, 2, 4, 8, 16):
        if batch % (dp * microbatch):
            continue
        for chunks in range(1, model.layers // pp + 1) if pp > 1 else (1,):
            if model.layers % (pp * chunks) or (chunks > 1 and batch // dp // microbatch % pp):
                continue
            schedule = "interleaved" if chunks > 1 else "1f1b"
            found.append(LayoutConfig(microbatch=microbatch, chunks=chunks, schedule=schedule, **layout))  # type: ignore[arg-type]
    return tuple(found)


def vtrain(data: Path, name: str) -> Iterator[Row]:
    """V = 51,200, as in the paper that it repeats (arXiv:2104.04473)."""
    for row in read(data, f"{name}.csv"):
        gpus, batch, b, width, heads, layers, context, tp, dp, pp = whole(
            row, "# GPUs", "global batch", "micro batch", "hidden size", "attention heads", "# layers",
            "sequence length", "tensor parallelism", "data parallelism", "pipeline parallelism",
        )  # fmt: skip
        layout = LayoutConfig(tp=tp, dp=dp, pp=pp, microbatch=b, recompute="full")
        yield Row(
            name, "vtrain-a100", model(width, heads, layers, 51200, context), (layout,), batch,
            float(row["iteration time (ms)"]) / 1e3, group=f"{width} {layers} {gpus} {batch}",
            label=f"h {width}, l {layers}, B {batch}, b {b}, t {tp}, p {pp}, d {dp}",
        )  # fmt: skip


def table1(data: Path, name: str) -> Iterator[Row]:
    for row in read(data, f"{name}.csv"):
        width, heads, layers, tp, pp, dp, batch, context, words, gpus = whole(
            row, "hidden", "heads", "layers", "tp", "pp", "dp", "batch", "seq", "vocab", "gpus"
        )
        what = model(width, heads, layers, words, context)
        layouts = unstated(what, batch, tp=tp, pp=pp, dp=dp, recompute="full")
        seconds = model_seconds(
            batch, context, layers, width, words, gpus, float(row["tflops_per_gpu"]), kind="hardware"
        )
        yield Row(
            name, "selene-2021", what, layouts, batch, seconds, label=f"{row['params_b']}B, t {tp}, p {pp}, d {dp}"
        )


CHUNKS_175B = 4
"""Of the interleaved curve, not stated: with two layers in each, as the paper's other figures of interleaving have."""


def interleaved_175b(data: Path, name: str) -> Iterator[Row]:
    for row in read(data, f"{name}.csv"):
        batch, looped = int(row["global_batch"]), row["schedule"] == "interleaved"
        what = model(12288, 96, 96, 51200, 2048)
        layout = LayoutConfig(
            tp=8, pp=12, microbatch=1, recompute="full", schedule=row["schedule"],  # type: ignore[arg-type]
            chunks=CHUNKS_175B if looped else 1,
        )  # fmt: skip
        seconds = model_seconds(batch, 2048, 96, 12288, 51200, 96, float(row["tflops_per_gpu"]), kind="hardware")
        yield Row(
            name,
            "selene-2021",
            what,
            (layout,),
            batch,
            seconds,
            group=str(batch),
            label=f"B {batch}, {row['schedule']}",
        )


def table5(data: Path, name: str) -> Iterator[Row]:
    for row in read(data, f"{name}.csv"):
        width, heads, layers, tp, pp, dp, batch, b, v, context, words = whole(
            row, "hidden", "heads", "layers", "tp", "pp", "dp", "batch", "microbatch", "v", "seq", "vocab"
        )
        full = row["mode"].startswith("full")
        layout = LayoutConfig(
            tp=tp, pp=pp, dp=dp, microbatch=b, chunks=v, schedule="interleaved" if v > 1 else "1f1b",
            recompute="full" if full else "selective", sequence_parallel=not full,
        )  # fmt: skip
        yield Row(
            name, "selene-2022", model(width, heads, layers, words, context), (layout,), batch, float(row["iter_s"]),
            label=f"{row['params_b']}B, {row['mode']}",
        )  # fmt: skip


def h100_weak(data: Path, name: str) -> Iterator[Row]:
    for row in read(data, f"{name}.csv"):
        width, heads, layers, tp, pp, dp, batch, context, words, gpus = whole(
            row, "hidden", "heads", "layers", "tp", "pp", "dp", "batch", "seq", "vocab", "gpus"
        )
        what = model(width, heads, layers, words, context)
        layouts = unstated(what, batch, tp=tp, pp=pp, dp=dp, sequence_parallel=tp > 1, zero=1)
        seconds = model_seconds(batch, context, layers, width, words, gpus, float(row["tflops_per_gpu"]), kind="model")
        yield Row(name, "eos-h100", what, layouts, batch, seconds, label=f"{row['model']}, t {tp}, p {pp}, d {dp}")


def embeddings_as_layers(layers: int, pp: int) -> tuple[int, ...]:
    """Blocks of each stage where embedding and head count as one each: all stages alike but for the first and last."""
    each = (layers + 2) // pp
    return (each - 1, *[each] * (pp - 2), layers - (pp - 1) * each + 1)


def bloom(data: Path, name: str, *, memory: bool = False) -> Iterator[Row]:
    """V = 250,880 (the final tokenizer, padded); heads that do not divide the width are read as 64, as it ends.

    Under "Rebalancing layers" the source says that software changed: sums of gradients in fp32 (4 bytes a parameter,
    not sharded), and embedding and head each in a layer's place when stages are cut (2 + layers = stages · a number).

    With ``memory``, runs that did not fit come along; they have no time.
    """
    for row in read(data, f"{name}.csv"):
        timed = (row["sec_per_it"] or "x").replace(".", "").isdecimal()
        if not timed and not (memory and row["mem"] == "OOM"):
            continue
        width, heads, layers, tp, pp, dp, batch, b, zero = whole(
            row, "hidden", "heads", "layers", "tp", "pp", "dp", "gbs", "mbs", "zero_stage"
        )
        heads = 64 if width % heads else heads
        late = row["section"] == "Rebalancing layers"
        split = embeddings_as_layers(layers, pp) if late else "uniform"
        layout = LayoutConfig(tp=tp, pp=pp, dp=dp, microbatch=b, recompute="full", zero=zero, split=split)  # type: ignore[arg-type]
        shown = row["mem"].removesuffix("GB")
        yield Row(
            name, "jean-zay-bf16" if late else "jean-zay-a100", model(width, heads, layers, 250880, 2048), (layout,),
            batch,
            float(row["sec_per_it"]) if timed else 0.0, gib=float(shown) if shown.isdecimal() else None,
            oom=row["mem"] == "OOM",
            label=f"h {width}, l {layers}, a {heads}, b {b}, t {tp}, p {pp}, d {dp}",
        )  # fmt: skip


SIMUMAX = {
    "n_kv_heads": 8, "d_ff": 28672, "tied": False, "positions": "rotary", "norm": "rms", "activation": "swiglu",
    "bias": False,
}  # fmt: skip


def simumax(data: Path, name: str) -> Iterator[Row]:
    """Context 4,096 and microbatch 1, as the source's strategy files say; sequence parallelism and ZeRO-1 likewise."""
    for row in read(data, f"{name}.csv"):
        tp, pp, dp, m = (int(re.search(rf"_{key}(\d+)", row["case"])[1]) for key in ("tp", "pp", "dp", "mbc"))  # type: ignore[index]
        layout = LayoutConfig(tp=tp, pp=pp, dp=dp, microbatch=1, sequence_parallel=tp > 1, zero=1)
        yield Row(
            name, "b200-8", model(8192, 64, 12, 128256, 4096, **SIMUMAX), (layout,), dp * m,
            float(row["real_ms"]) / 1e3, gib=float(row["real_alloc_gib"]), label=f"t {tp}, p {pp}, d {dp}, m {m}",
        )  # fmt: skip


MPT = {
    "125m": (768, 12, 12), "350m": (1024, 16, 24), "760m": (1536, 12, 24), "1b": (2048, 16, 24), "3b": (2560, 20, 32),
    "7b": (4096, 32, 32), "13b": (5120, 40, 40), "30b": (7168, 56, 48),
}  # fmt: skip
"""Width, heads, layers of llm-foundry's configurations; V = 50,368."""


def mpt(data: Path, name: str) -> Iterator[Row]:
    for row in read(data, f"{name}.csv"):
        width, heads, layers = MPT[row["Model"]]
        context, gpus, b, batch = whole(row, "SeqLen (T)", "# GPUs", "MicroBatchSize", "GlobalBatchSize")
        recompute = "full" if row["Activation Checkpointing"] == "True" else "none"
        layout = LayoutConfig(dp=gpus, microbatch=b, zero=3, recompute=recompute)  # type: ignore[arg-type]
        yield Row(
            name, "mpt-a100-80gb", model(width, heads, layers, 50368, context), (layout,), batch,
            batch * context / float(row["Throughput (T/s)"]), label=f"{row['Model']}, s {context}, b {b}, {recompute}",
        )  # fmt: skip


SOURCES: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    "vtrain_multi": vtrain,
    "vtrain_single": vtrain,
    "megatron_2104_table1": table1,
    "megatron_2104_interleaved_175b": interleaved_175b,
    "megatron_2205_table5": table5,
    "megatron_h100_weak": h100_weak,
    "bloom_prequel_a100": bloom,
    "simumax_b200": simumax,
    "mpt_a100_80gb": mpt,
}


def rows(data: Path = DATA) -> dict[str, list[Row]]:
    """All rows by source."""
    return {name: list(read_rows(data, name)) for name, read_rows in SOURCES.items()}


FITTED_SOURCES = ("vtrain_multi", "vtrain_single", "bloom_prequel_a100", "mpt_a100_80gb")
"""Sources of 20 rows and more: the constants are fitted on every other row of these alone."""


def halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows a multiplier is fitted on and those it is judged by: every other one, in the file's order."""
    return rows[::2], rows[1::2]
