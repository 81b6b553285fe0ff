"""The planner on this machine: steps of a small GPT as predicted from a calibration, and as measured in training.

``gradatim calibrate`` measures the machine; ``gradatim plan``'s own functions predict layouts of one and two processes
of one thread each, and choose among all; then training's engines make steps under one layout after the other, on
random tokens. A shared machine is faster in one minute than in the next, so all of this is done in several rounds, each
with a calibration of its own, and the errors of a layout are told as their median and range.

    OMP_NUM_THREADS=1 python benchmarks/planner_calibrated.py --rounds 5
    OMP_NUM_THREADS=1 python benchmarks/planner_calibrated.py --rounds 2 --keep kept.json        # in pieces
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

from common import Kept, gradatim, spread, table, write_result
from gradatim.config.settings import GptConfig, LayoutConfig, RunConfig
from gradatim.parallel.engine import LayoutEngine, everybody
from gradatim.parallel.launch import Group, launch
from gradatim.parallel.mesh import create_mesh
from gradatim.plan.architecture import Architecture
from gradatim.plan.cluster import load_cluster
from gradatim.plan.predict import predict
from gradatim.plan.search import search
from gradatim.plan.words import layout_text
from gradatim.train.engine import SerialEngine

MODEL = GptConfig(d_model=384, n_layers=4, n_heads=6, vocab_multiple=64)
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
    """Seconds of each step under each layout, in a worker.

    Those of a layout follow one another, as in training: the memory of an engine that waits may be taken from it.
    """
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, 64 * BATCH * CONTEXT)
    meta = SimpleNamespace(boundary=0)
    file = SimpleNamespace(tokens=tokens, document_starts=np.array([0, len(tokens)]), meta=meta)
    tokenizer = SimpleNamespace(vocab_size=VOCABULARY, boundary=0, opening=0)
    text: Any = SimpleNamespace(tokenizer=tokenizer, source_tokenizer=None, train=file, valid=None)
    meshes: dict[tuple[int, int, int], Any] = {}
    seconds: list[list[float]] = []
    for fields in layouts:
        layout = LayoutConfig(**fields)
        config = RunConfig(model=MODEL, layout=layout, context=CONTEXT, global_batch=BATCH, steps=1000)
        grid = (layout.tp, layout.pp, layout.dp)
        if grid == (1, 1, 1):
            engine: Any = SerialEngine(config, text) if group.leads else None
        else:
            if grid not in meshes:
                meshes[grid] = create_mesh(layout)
            engine = LayoutEngine(config, text, meshes[grid])
        seconds.append([])
        for turn in range(turns + 2):
            everybody(group.mesh)
            started = time.perf_counter()
            if engine is not None:
                engine.step(turn)
                if engine.world > 1:
                    everybody(group.mesh)
            if turn >= 2:
                seconds[-1].append(time.perf_counter() - started)
    everybody(group.mesh)
    return seconds


def measure(model: Architecture, turns: int) -> dict[str, Any]:
    """A round: calibrate, predict, choose, and make steps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "here.yaml"
        calibrating = gradatim("calibrate", "--nproc", 2, "--out", path)["wall_seconds"]
        cluster = load_cluster(path)
    found = search(model, cluster, 2, BATCH)
    names = ("tp", "pp", "dp", "chunks", "schedule", "microbatch", "sequence_parallel", "recompute", "zero")
    pick = {name: getattr(found.best[0].layout, name) for name in names}
    layouts = [{**{name: getattr(LayoutConfig(), name) for name in names}, **fields} for fields in LAYOUTS]
    if pick not in layouts:
        layouts.append(pick)
    measured = launch("planner_calibrated:work", {"layouts": layouts, "turns": turns}, LayoutConfig(dp=2))
    rows = []
    for fields, seconds in zip(layouts, measured):
        predicted = predict(cluster, model, LayoutConfig(**fields), BATCH)
        parts = {name: part for name, part in predicted.breakdown.items() if part > 5e-4}
        rows.append({"layout": fields, "seconds": seconds, "predicted": predicted.seconds, "parts": parts})
    return {"calibrating": calibrating, "pick": pick, "considered": found.considered, "rows": rows}


def regret(round_: dict[str, Any]) -> float:
    """How much longer the chosen layout takes than the fastest of two processes, both as measured."""
    of_two = [
        (row["layout"] == round_["pick"], statistics.median(row["seconds"]))
        for row in round_["rows"]
        if row["layout"]["tp"] * row["layout"]["pp"] * row["layout"]["dp"] == 2
    ]
    return next(s for own, s in of_two if own) / min(s for _, s in of_two) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5, help="Steps of each layout in a round.")
    parser.add_argument("--keep", type=Path, help="Save each round here, and report those that are there already too.")
    options = parser.parse_args()
    model = Architecture(MODEL, VOCABULARY, CONTEXT)
    kept = Kept(options.keep)
    for _ in range(options.rounds):
        kept.add(**measure(model, options.turns))
    rounds = kept.rows
    table_rows, errors = [], []
    for fields in [row["layout"] for row in rounds[0]["rows"]]:
        own = [row for each in rounds for row in each["rows"] if row["layout"] == fields]
        found = [100 * (row["predicted"] / statistics.median(row["seconds"]) - 1) for row in own]
        errors.append(statistics.median(found))
        parts = ", ".join(f"{n} {1e3 * s:.0f}" for n, s in own[-1]["parts"].items())
        table_rows.append(
            [
                layout_text(LayoutConfig(**fields)), spread([1e3 * s for row in own for s in row["seconds"]]),
                spread([1e3 * row["predicted"] for row in own]),
                f"{errors[-1]:+.1f} ({min(found):+.1f} to {max(found):+.1f})", parts,
            ]
        )  # fmt: skip
    sizes = sorted(map(abs, errors))
    picks = sorted({layout_text(LayoutConfig(**each["pick"])) for each in rounds})
    columns = [
        "layout",
        "measured, ms",
        "predicted, ms",
        "error, %: median of rounds (range)",
        "last round's parts, ms",
    ]
    body = (
        f"GPT of {model.parameter_count / 1e6:.1f} M parameters ({MODEL.n_layers} layers of width "
        f"{MODEL.d_model}, {VOCABULARY:,} words), {BATCH} x {CONTEXT} tokens a step, fp32, processes of one thread; "
        f"{len(rounds)} rounds, each calibrated anew (which took {spread([each['calibrating'] for each in rounds])} s)"
        f" and then {options.turns} steps of each layout in a row, after two that are not counted.\n\n"
        + table(columns, table_rows)
        + f"\n\n|error|: median {statistics.median(sizes):.1f} %, largest {sizes[-1]:.1f} %. The layout that the "
        f"planner chooses among {rounds[0]['considered']} for two processes ({'; '.join(picks)}) takes "
        f"{spread([100 * regret(each) for each in rounds])} % longer than the fastest of two processes measured."
    )
    write_result("planner_calibrated", "The planner on this machine", body)


if __name__ == "__main__":
    main()
