"""Where networks overtake counting: more text (installed-docs, about 10 MB) and more time than the demo gives.

Kneser-Ney, the recipes `lstm` and `gpt`, and a wider LSTM at a lower rate read the docstrings of Python, NumPy and
PyTorch through one vocabulary and are judged on the same held-out bytes. The text is in every installation.

    python benchmarks/installed_docs.py
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import common

RUNGS: dict[str, list[str]] = {
    "Kneser-Ney 5-gram": ["ngram"],
    "LSTM, recipe lstm, 6,000 steps": ["lstm", "--steps=6000", "--evaluation.every=250"],
    "LSTM of width 512 in bf16, 2,500 steps": [
        "lstm",
        "--steps=2500",
        "--global-batch=32",
        "--model.d_model=512",
        "--optimizer.lr=5e-3",
        "--precision=bf16",
        "--evaluation.every=250",
    ],
    "GPT, recipe gpt in bf16, 1,500 steps": ["gpt", "--steps=1500", "--precision=bf16", "--evaluation.every=125"],
}


def points(run: Path, bytes_per_token: float) -> list[tuple[float, float]]:
    """Seconds of training and bits per byte of the validation text at each evaluation."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        (row["seconds"], row["valid_loss"] / math.log(2) / bytes_per_token)
        for row in rows
        if row.get("valid_loss") is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="shorten the networks' training, for a try")
    parser.add_argument("--until", type=int, help="train this many rungs and stop; --run-root then holds them")
    parser.add_argument("--run-root", type=Path, help="keep the runs here; those that are finished are not repeated")
    options = parser.parse_args()
    rows: list[list[object]] = []
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        root = options.run_root or Path(folder)
        # Whole documents for all: cut into lines an n-gram would drop the empty ones and predict less.
        shared = ["--data.train=installed-docs", "--data.document=file", f"--data.cache={root / 'cache'}"]
        level = math.inf
        for number, (name, arguments) in enumerate(RUNGS.items()):
            if number == options.until:
                return
            run = root / str(number)
            short = [f"--steps={options.steps}"] if options.steps and number else []
            trained = common.gradatim("train", *arguments, *shared, *short, "--run", run, "--resume")
            test = common.gradatim("evaluate", run)
            seconds = trained["seconds"]
            rows.append(
                [name, f"{trained['parameters']:,}", seconds, test["perplexity"], f"{test['bits_per_byte']:.3f}"]
            )
            meta = next(iter((root / "cache").rglob("valid.meta.json")))
            facts = json.loads(meta.read_text(encoding="utf-8"))
            curve = points(run, facts["bytes"] / facts["tokens"])
            if not number:
                level = curve[-1][1]
                continue
            below = [seconds for seconds, bits in curve if bits < level]
            bar = f"below the 5-gram's {level:.3f} bits per byte of the validation text"
            when = (
                f"goes {bar} after {below[0]:.0f} s of training" if below else f"does not go {bar} in {seconds:.0f} s"
            )
            said.append(f"{name}: {when}.")
    body = common.table(["rung", "parameters", "training, s", "test perplexity", "test bits per byte"], rows)
    common.write_result("installed_docs", "Where networks overtake counting", body + "\n\n" + "\n".join(said))


if __name__ == "__main__":
    main()
