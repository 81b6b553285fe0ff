"""The planner on this machine: steps of a small GPT as predicted from a calibration, and as measured in training.

``gradatim calibrate`` measures the machine; ``gradatim plan``'s own functions predict layouts of one and two processes
of one thread each, and choose among all; then training's engines make steps under every layout, in turns, on random
tokens.

    OMP_NUM_THREADS=1 python benchmarks/planner_calibrated.py
    python benchmarks/planner_calibrated.py --cluster here.yaml          # with a calibration made before
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from common import gradatim, spread, table, write_result
from gradatim.config.settings import GptConfig, LayoutConfig, RunConfig
from gradatim.parallel.engine import LayoutEngine, everybody
from gradatim.parallel.launch import Group, launch
from gradatim.parallel.mesh import create_mesh
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import load_cluster
from gradatim.plan.explain import layout_text
from gradatim.plan.predict import predict
from gradatim.plan.search import search
from gradatim.train.engine import SerialEngine

MODEL = {"d_model": 384, "n_layers": 4, "n_heads": 6, "vocab_multiple": 64}
VOCABULARY, CONTEXT, BATCH = 1024, 128, 16
LAYOUTS: list[dict[str, Any]] = [
    {"microbatch": 16},
    {"microbatch": 4},
    {"tp": 2, "microbatch": 16},
    {"tp": 2, "microbatch": 4},
    {"tp": 2, "microbatch": 16, "sequence_parallel": True},
    {"tp": 2, "microbatch": 4, "sequence_parallel": True},
    {"pp": 2, "microbatch": 8},
    {"pp": 2, "microbatch": 4},
    {"pp": 2, "microbatch": 2},
    {"pp": 2, "microbatch": 2, "schedule": "gpipe"},
    {"pp": 2, "microbatch": 2, "schedule": "zero-bubble"},
    {"pp": 2, "microbatch": 2, "schedule": "interleaved", "chunks": 2},
    {"pp": 2, "microbatch": 4, "schedule": "interleaved", "chunks": 2},
    {"dp": 2, "microbatch": 8},
    {"dp": 2, "microbatch": 2},
    {"dp": 2, "microbatch": 8, "zero": 1},
    {"dp": 2, "microbatch": 4, "zero": 1, "recompute": "full"},
    {"tp": 2, "microbatch": 8, "recompute": "selective"},
]


def work(group: Group, layouts: list[dict[str, Any]], turns: int) -> list[list[float]]:
    """Seconds of each turn under each layout, in a worker."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, 64 * BATCH * CONTEXT)
    file = SimpleNamespace(tokens=tokens, document_starts=np.array([0, len(tokens)]))
    tokenizer = SimpleNamespace(vocab_size=VOCABULARY, boundary=0)
    text: Any = SimpleNamespace(tokenizer=tokenizer, source_tokenizer=None, train=file, valid=None)
    meshes: dict[tuple[int, int, int], Any] = {}
    engines: list[Any] = []
    for fields in layouts:
        layout = LayoutConfig(**fields)
        config = RunConfig(model=GptConfig(**MODEL), layout=layout, context=CONTEXT, global_batch=BATCH, steps=1000)
        grid = (layout.tp, layout.pp, layout.dp)
        if grid == (1, 1, 1):
            engines.append(SerialEngine(config, text) if group.leads else None)
            continue
        if grid not in meshes:
            meshes[grid] = create_mesh(layout)
        engines.append(LayoutEngine(config, text, meshes[grid]))
    seconds: list[list[float]] = [[] for _ in layouts]
    for turn in range(turns + 2):
        for taken, engine in zip(seconds, engines):
            everybody(group.mesh)
            started = time.perf_counter()
            if engine is not None:
                engine.step(turn)
                if engine.world > 1:
                    everybody(group.mesh)
            if turn >= 2:
                taken.append(time.perf_counter() - started)
    everybody(group.mesh)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--cluster", type=Path, help="a file of gradatim calibrate's; by default it is made now")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, calibrating = options.cluster, None
        if path is None:
            path = Path(folder) / "here.yaml"
            calibrating = gradatim("calibrate", "--nproc", 2, "--out", path)["wall_seconds"]
        cluster = load_cluster(path)
    model = Architecture(GptConfig(**MODEL), VOCABULARY, CONTEXT)
    found = search(model, cluster, 2, BATCH)
    names = ("tp", "pp", "dp", "chunks", "schedule", "microbatch", "sequence_parallel", "recompute", "zero")
    pick = {name: getattr(found.best[0].layout, name) for name in names}
    layouts = [{**{name: getattr(LayoutConfig(), name) for name in names}, **fields} for fields in LAYOUTS]
    if pick not in layouts:
        layouts.append(pick)
    measured = launch("planner_calibrated:work", {"layouts": layouts, "turns": options.turns}, LayoutConfig(dp=2))
    rows, errors, of_two = [], [], []
    for fields, seconds in zip(layouts, measured):
        layout = LayoutConfig(**fields)
        predicted, median = predict(cluster, model, layout, BATCH), statistics.median(seconds)
        errors.append(predicted.seconds / median - 1)
        if layout.tp * layout.pp * layout.dp == 2:
            of_two.append((fields == pick, median))
        parts = ", ".join(f"{n} {1e3 * s:.0f}" for n, s in predicted.breakdown.items() if s > 5e-4)
        shown = spread([1e3 * s for s in seconds])
        rows.append([layout_text(layout), shown, round(1e3 * predicted.seconds), f"{100 * errors[-1]:+.1f}", parts])
    regret = next(s for own, s in of_two if own) / min(s for _, s in of_two) - 1
    sizes = sorted(map(abs, errors))
    took = f" Calibrating took {calibrating:.0f} s." if calibrating else ""
    body = (
        f"GPT of {model.parameter_count / 1e6:.1f} M parameters ({MODEL['n_layers']} layers of width "
        f"{MODEL['d_model']}, {VOCABULARY:,} words), {BATCH} x {CONTEXT} tokens a step, fp32, processes of one thread; "
        f"{options.turns} steps of each layout, in turns, after two that are not counted.{took}\n\n"
        + table(["layout", "measured, ms: median (range)", "predicted, ms", "error %", "predicted parts, ms"], rows)
        + f"\n\n|error|: median {100 * statistics.median(sizes):.1f} %, largest {100 * sizes[-1]:.1f} %. The layout "
        f"that the planner chooses among {found.considered} for two processes ({layout_text(found.best[0].layout)}) "
        f"takes {100 * regret:.1f} % longer than the fastest of two processes measured."
    )
    write_result("planner_calibrated", "The planner on this machine", body)


if __name__ == "__main__":
    main()
