"""Every measurement of parallel training in one run: tensor, data and pipeline parallelism, each against its peer.

python benchmarks/parallel.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SECTIONS = ("tensor", "data", "pipeline")
"""Each is ``parallel_NAME.py``, which also runs alone and keeps its own result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=SECTIONS, default=SECTIONS)
    options = parser.parse_args()
    here = Path(__file__).parent
    for section in options.sections:
        subprocess.run([sys.executable, str(here / f"parallel_{section}.py")], cwd=here, check=True)


if __name__ == "__main__":
    main()
