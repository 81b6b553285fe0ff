"""The verbs on the CPU, then on the pretend GPU: losses and answers are the same. Told a folder, and perhaps cases.

Attention has another kernel there, so sums may differ in their last bits; dropout draws otherwise, and is left out.
Recurrent networks are left out too: torch has their cells for the CPU and for GPUs that exist.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pretend_gpu import GPU

import gradatim.train.engine
import gradatim.train.loop
import gradatim.train.run_directory
from gradatim.cli.main import main
from gradatim.train import precision
from gradatim.train.metrics import read_metrics
from gradatim.train.run_directory import Run

SMALL = [
    "--optimizer.warmup=1",
    "--evaluation.every=2",
    "--checkpoint.every=2",
    "--model.d_model=16",
    "--model.dropout=0",
]
TEXT = [*SMALL, "--context=32", "--global_batch=4"]
PAIRS = [*SMALL, "--batch_tokens=200"]
TRANSFORMER = ["--model.n_layers=2", "--model.n_heads=2"]
CASES = {
    "gpt": ["gpt", *TEXT, *TRANSFORMER, "--layout.microbatch=2"],
    "llama": ["gpt", *TEXT, *TRANSFORMER, "--model.n_kv_heads=1", "--model.positions=rotary", "--model.norm=rms",
              "--model.activation=swiglu", "--layout.recompute=full"],
    "window": ["window", *TEXT],
    "bert": ["bert", *TEXT, *TRANSFORMER],
    "transformer": ["transformer", *PAIRS, *TRANSFORMER],
    "translate-lm": ["translate-lm", *PAIRS, *TRANSFORMER, "--model.body=gpt"],
    "lora": ["gpt", *TEXT, *TRANSFORMER, "--lora.rank=2", "--init_from=RUN"],
}  # fmt: skip
NUMBERS = ("loss", "grad_norm", "valid_loss")
TRANSLATORS = ("transformer", "translate-lm")


def said(*arguments: object) -> str:
    """What a verb prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main([str(argument) for argument in arguments])
    assert code == 0, (arguments, errors.getvalue()[-3000:])
    return out.getvalue()


def story(name: str, folder: Path) -> dict[str, Any]:
    """Train in two attempts, then ask; everything that should not depend on the device."""
    run, cache = folder / name, f"--data.cache={folder.parent / 'cache'}"
    told = [argument.replace("RUN", str(folder / "gpt")) for argument in CASES[name]] + ["--run", run, cache]
    said("train", *told, "--steps=3")
    said("train", *told, "--steps=4", "--resume")
    found: dict[str, Any] = {
        "numbers": [row[name] for row in read_metrics(run / "metrics.jsonl") for name in NUMBERS if name in row]
    }
    prompts = folder / "prompts.txt"
    prompts.write_text("je suis étudiant\n\nelle est petite\n", encoding="utf-8")
    if name in TRANSLATORS:
        found["beam"] = said("translate", run, prompts, "--beams=3", "--max-new=6")
        found["greedy"] = said("translate", run, prompts, "--beams=1", "--max-new=6")
    elif name != "bert":
        found["score"] = said("score", run, "I am a student", "she is small")
        found["sample"] = said("complete", run, "I am", "--max-new=5", "--seed=1")
        found["beam"] = said("complete", run, "I am", "--max-new=5", "--beams=2")
        found["next"] = said("next", run, "I am")
    return found


def compare(names: list[str], folder: Path) -> dict[str, str]:
    """By case: nothing where both devices say the same, or what they say."""
    answers = {}
    refuses_two_devices()
    for where in (torch.device("cpu"), GPU):
        for module in (precision, gradatim.train.engine, gradatim.train.loop, gradatim.train.run_directory):
            module.device = partial(torch.device, where)  # type: ignore[attr-defined]
        place = folder / where.type
        place.mkdir()
        answers[where.type] = {name: story(name, place) for name in names}
        for name in names:
            assert {weight.device for weight in Run.open(place / name).network().parameters()} == {where}, name
    cpu, gpu = answers["cpu"], answers["gpu"]
    return {name: "" if alike(cpu[name], gpu[name]) else f"{cpu[name]} against {gpu[name]}" for name in names}


def refuses_two_devices() -> None:
    """Otherwise nothing here would show anything."""
    try:
        torch.ones(2, device=GPU) + torch.ones(2)
    except RuntimeError:
        return
    raise AssertionError("the pretend GPU added a tensor of the CPU")


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal words, and numbers but for their last digits."""
    close = all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(one["numbers"], other["numbers"], strict=True))
    return close and {**one, "numbers": None} == {**other, "numbers": None}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(compare(sys.argv[2:] or list(CASES), Path(sys.argv[1]))))
