"""One GPU training the 1.3-billion-parameter GPT of the talk: tokens/s and model FLOPs utilisation, eager and compiled.

    python benchmarks/one_gpu.py                                   # on a machine with a GPU; minutes
    python benchmarks/one_gpu.py --layers 2 --width 128 --context 64 --precision fp32        # anywhere: does it run?

Each run is ``gradatim train`` on the installed documentation, in a process of its own; the first steps, in which memory
is found and blocks are compiled, do not count. Which kernels computed the attention is read from a profile of a forward
and backward pass of one block: "flash" is in their names, or the page says that it was not used.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import common
from gradatim.config.settings import GptConfig
from gradatim.train.metrics import read_metrics
from gradatim.train.precision import arithmetic, device

WARM = 5
"""Steps that do not count."""


def attention_kernels(options: argparse.Namespace) -> list[str]:
    """Names of operators and kernels that mention attention, in a pass through one block."""
    config = GptConfig(d_model=options.width, n_layers=1, n_heads=options.heads, dropout=0.0)
    where = device()
    model = common.language_model(config, 256, options.context).to(where)
    ids = torch.zeros(1, options.context, dtype=torch.int64, device=where)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (where.type == "cuda")
    with profile(activities=activities) as seen:
        with arithmetic(options.precision, where):
            out, _ = model.hidden(ids)
        out.float().sum().backward()
    names = {event.key for event in seen.key_averages()}
    return sorted(name for name in names if "flash" in name.lower() or "attention" in name.lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--microbatch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    rows = []
    for recompute, compiled in (("none", "false"), ("none", "true"), ("selective", "false"), ("full", "false")):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            result = common.gradatim(
                "train", "gpt", "--model.n_layers", options.layers, "--model.d_model", options.width,
                "--model.n_heads", options.heads, "--model.dropout", "0", "--context", options.context,
                "--global_batch", options.batch, "--layout.microbatch", options.microbatch, "--steps", options.steps,
                "--data.train", "installed-docs", "--precision", options.precision, "--compile", compiled,
                "--layout.recompute", recompute, "--evaluation.every", options.steps + 1, "--checkpoint.every",
                options.steps, "--optimizer.warmup", "2", "--run", run, "--data.cache", Path(folder) / "cache",
            )  # fmt: skip
            metrics = read_metrics(run / "metrics.jsonl")
        rates = [row["tokens_per_second"] for row in metrics[WARM:]]
        used = result["mfu"] * statistics.median(rates) / result["tokens_per_second"] if result["mfu"] else None
        rows.append(
            [recompute, compiled, common.spread(rates), None if used is None else f"{used:.1%}", metrics[-1]["loss"]]
        )
    kernels = attention_kernels(options)
    flash = [name for name in kernels if "flash" in name.lower()]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    parts = [
        f"{result['parameters']:,} parameters, context {options.context}, batch {options.batch}, microbatch "
        f"{options.microbatch}, {options.precision}, {where}; medians of {options.steps - WARM} steps and their range.",
        common.table(["recompute", "compiled", "tokens/s", "of the peak", "last loss"], rows),
        f"Attention: {'flash' if flash else 'not flash'}: {', '.join(f'`{name}`' for name in flash or kernels)}.",
    ]
    common.write_result("one_gpu", "Training on one GPU", "\n\n".join(parts))


if __name__ == "__main__":
    main()
