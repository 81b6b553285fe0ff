"""The ladder of `gradatim demo`, as the table in README: six rungs, one text, one vocabulary, the same held-out bytes.

Runs the demo in a new folder as a user would, keeps its page beside (``--report FILE``) and writes the table between
the marks in README.md. Bits per byte repeat from run to run (steps and seeds are fixed); seconds are the machine's.

    python benchmarks/ladder.py
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import common

README = Path(__file__).parents[1] / "README.md"
MARKED = re.compile(r"(<!-- ladder table: begin -->\n).*(<!-- ladder table: end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="keep the demo's page here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ladder = common.gradatim("demo", "--run-root", Path(folder) / "demo")
        if options.report:
            shutil.copy(ladder["report"], options.report)
    rows = [
        [
            rung["name"],
            f"{rung['parameters']:,}",
            f"{rung['seconds']:.1f}",
            f"{rung['tokens_per_second']:,.0f}",
            f"{rung['perplexity']:.1f}",
            f"{rung['bits_per_byte']:.3f}",
        ]
        for rung in ladder["rungs"]
    ]
    columns = ["rung", "parameters", "training, s", "tokens/s", "perplexity", "bits per byte"]
    table = common.table(columns, rows)
    conditions = (
        f"python-manual of Python {common.python_version()} (sha256 {ladder['sha256'][:12]}…): "
        f"{ladder['train_bytes']:,} bytes to learn from, {ladder['test_bytes']:,} to be judged on, "
        f"{ladder['vocabulary']:,} byte pairs. "
        f"Training {sum(rung['seconds'] for rung in ladder['rungs']):.0f} s in all, the whole command "
        f"{ladder['wall_seconds']:.0f} s."
    )
    common.write_result("ladder", "The ladder of `gradatim demo`", f"{table}\n\n{conditions}")
    text = f"{table}\n\n{conditions} Machine: {common.machine()}.\n"
    README.write_text(MARKED.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
