"""What the benchmark scripts share: the machine's description, running our command, and writing a result page."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradatim.config.settings import ModelConfig
    from gradatim.models.neural import NeuralLanguageModel

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor, cores and memory in one line."""
    info = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
        flags = info.read_text()
        named = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
        model += next((f" with {name}" for flag, name in named.items() if flag in flags), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.machine()}"


def python_version() -> str:
    """Of the interpreter, whose documentation is the embedded corpus."""
    return platform.python_version()


def versions(*packages: str) -> str:
    """Python and the named packages."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return ", ".join(found)


def gradatim(*arguments: object, threads: int | None = None) -> dict[str, Any]:
    """Run ``gradatim … --json`` in a process of its own; its answer, with the wall time of the process added."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "gradatim", *map(str, arguments), "--json"]
    started = time.perf_counter()
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{process.stdout}")
    answer = json.loads(process.stdout)
    return {**answer, "wall_seconds": seconds} if isinstance(answer, dict) else {"answer": answer}


def language_model(config: ModelConfig, vocab_size: int, context: int, seed: int = 0) -> NeuralLanguageModel:
    """One of our networks that say the next word, with its initial weights."""
    from gradatim.models import build_model
    from gradatim.models.neural import NeuralLanguageModel

    model = build_model(config, vocab_size, context, seed)
    assert isinstance(model, NeuralLanguageModel)
    return model


class Kept:
    """Measurements of a benchmark that is run in pieces: each is saved at once, and the last piece reports them all."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))

    def add(self, **row: Any) -> None:
        """Keep one measurement; of several threads, one after the other."""
        with self.lock:
            self.rows.append(row)
            if self.path is not None:
                self.path.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 10_000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def spread(values: Sequence[float]) -> str:
    """Median and range of several runs."""

    def shown(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    return f"{shown(statistics.median(values))} ({shown(min(values))}-{shown(max(values))})"


def _unplaced(argument: str) -> str:
    """Where somebody keeps a checkout is nobody else's business."""
    return "PATH" if argument.startswith(("/", "~")) else argument


def write_result(name: str, title: str, body: str, *packages: str) -> None:
    """Print a result and keep it as ``benchmarks/results/NAME.md`` with date, machine and versions."""
    head = [
        f"# {title}",
        "",
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- machine: {machine()}",
        f"- versions: {versions('gradatim', 'torch', 'numpy', *packages)}",
        f"- command: `python {' '.join([Path(sys.argv[0]).name, *map(_unplaced, sys.argv[1:])])}`",
    ]
    text = "\n".join(head) + "\n\n" + body.strip() + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
