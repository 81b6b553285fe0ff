"""tinyshakespeare characters: every rung of the ladder, and nanoGPT's CPU recipe run side by side.

nanoGPT's README gives 1.88 nats for its CPU setting (4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps,
no dropout), estimated on 20 random batches. Here both programs train that shape as whole processes in turn, and both
are judged on the whole validation split: windows of 64 characters side by side (what training sees), and ours once with
stride 1 besides. Layers, width, context and batch are equal; our recipe takes a later block (rotary positions, RMSNorm,
SwiGLU), which costs more a step, a higher rate and 1,250 steps. A row with nanoGPT's block, rate and steps shows what
that is worth. The n-grams and the LSTM stand in the same table: a 6-gram needs seconds.

    python benchmarks/shakespeare_char.py --nanogpt PATH_TO_CHECKOUT
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import common

NANOGPT_CPU = [
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=250",
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0", "--dtype=float32",
]  # fmt: skip

NANOGPT_BLOCK = [
    "--model.positions", "learned", "--model.norm", "layer", "--model.activation", "gelu", "--optimizer.lr", "1e-3",
    "--steps", "2000",
]  # fmt: skip

NANOGPT, OURS = "nanoGPT, CPU recipe", "gradatim, recipe nanogpt-cpu"

# Its checkpoint is judged by its own model code, in its own process, on the whole split.
JUDGE = """
import sys, numpy, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])); model.load_state_dict(saved["model"]); model.eval()
ids = torch.from_numpy(numpy.fromfile(sys.argv[2], dtype=numpy.uint16).astype(numpy.int64))
context = saved["model_args"]["block_size"]; rows = (len(ids) - 1) // context; total = 0.0
with torch.no_grad():
    for first in range(0, rows, 64):
        x = ids[first * context : min(first + 64, rows) * context].view(-1, context)
        y = ids[first * context + 1 : min(first + 64, rows) * context + 1].view(-1, context)
        total += model(x, y)[1].item() * y.numel()
print(total / (rows * context))
"""


def run_nanogpt(checkout: Path, train: str, valid: str) -> tuple[float, float, float]:
    """Train with its own script: wall seconds, its own last estimate, nats per character on the whole split."""
    folder = checkout / "data" / "shakespeare_char"
    characters = sorted(set(train + valid))
    index = {character: i for i, character in enumerate(characters)}
    for name, text in (("train", train), ("val", valid)):
        np.array([index[c] for c in text], dtype=np.uint16).tofile(folder / f"{name}.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": index}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "train.py", *NANOGPT_CPU, f"--out_dir={out}"],
            cwd=checkout, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        estimates = [float(found) for found in re.findall(r"val loss ([\d.]+)", process.stdout)]
        judged = subprocess.run(
            [sys.executable, "-c", JUDGE, f"{out}/ckpt.pt", str(folder / "val.bin")],
            cwd=checkout, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."},
        )  # fmt: skip
    return seconds, estimates[-1], float(judged.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tinyshakespeare/input.txt"))
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--runs", type=int, default=3, help="paired runs of nanoGPT and our recipe")
    parser.add_argument("--parts", default="n-grams,pairs,block,lstm", help="which of these to train")
    parser.add_argument("--keep", type=Path, help="a file that collects the rows when parts are run one by one")
    options = parser.parse_args()
    text = options.data.read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    train, valid = text[:cut], text[cut:]

    parts = options.parts.split(",")
    kept = common.Kept(options.keep)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "train.txt").write_text(train, encoding="utf-8")
        (root / "valid.txt").write_text(valid, encoding="utf-8")
        data = ["--data.train", root / "train.txt", "--data.valid", root / "valid.txt", "--data.document", "file",
                "--data.cache", root / "cache", "--data.tokenizer.kind", "char"]  # fmt: skip

        def rung(name: str, recipe: object, *overrides: object, strides: tuple[int, ...] = (0,)) -> None:
            run = root / f"{name}-{len(list(root.iterdir()))}".replace("/", " ")
            trained = common.gradatim("train", recipe, "--run", run, *data, *overrides)
            losses = []
            for stride in strides:
                choice = ["--stride", stride] if stride else []
                losses.append(common.gradatim("evaluate", run, "--text", root / "valid.txt", *choice)["nats_per_token"])
            kept.add(rung=name, seconds=trained["wall_seconds"], losses=losses)

        if "n-grams" in parts:
            for order in (2, 4, 6):
                rung(f"Kneser-Ney {order}-gram", "ngram", "--model.order", order, "--model.discount_fallback", "true")
        done = sum(row["rung"] == OURS for row in kept.rows)
        for number in range(done, done + options.runs if "pairs" in parts else done):
            for name in (NANOGPT, OURS) if number % 2 == 0 else (OURS, NANOGPT):
                if name == OURS:
                    rung(OURS, "nanogpt-cpu", strides=(64,) if number else (64, 1))  # the losses repeat
                elif options.nanogpt:
                    seconds, estimate, loss = run_nanogpt(options.nanogpt, train, valid)
                    kept.add(rung=NANOGPT, seconds=seconds, losses=[loss], estimate=estimate)
        if "block" in parts:
            rung("gradatim, nanoGPT's own block, rate and steps", "nanogpt-cpu", *NANOGPT_BLOCK, strides=(64,))
        if "lstm" in parts:
            recipe = Path(__file__).parent / "recipes" / "shakespeare_lstm.yaml"
            rung("LSTM, recipes/shakespeare_lstm.yaml", recipe)
    rows = [[row["rung"], row["seconds"], *row["losses"], *[None] * (2 - len(row["losses"]))] for row in kept.rows]
    body = common.table(["rung", "wall seconds", "nats/character, whole split", "with stride 1"], rows)
    ours, theirs = ([row for row in kept.rows if row["rung"] == name] for name in (OURS, NANOGPT))
    if theirs:
        ratios = [own["seconds"] / peer["seconds"] for own, peer in zip(ours, theirs)]
        body += (
            f"\n\nWall time ours / nanoGPT, paired: {common.spread(ratios)};"
            f" nats ours {common.spread([row['losses'][0] for row in ours])},"
            f" nanoGPT {common.spread([row['losses'][0] for row in theirs])} on the whole split"
            f" (its own estimate on 20 random batches: {common.spread([row['estimate'] for row in theirs])})."
        )
    body += "\n\nA 6-gram with modified Kneser-Ney reaches 1.523 nats in seconds:"
    body += " a network that does not beat it has not earned its rung."
    common.write_result("shakespeare_char", "tinyshakespeare, characters", body)


if __name__ == "__main__":
    main()
