"""What a run is made by: versions, machine and command, as a run directory's ``env.json`` keeps them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gradatim import __version__


def environment() -> dict[str, Any]:
    """What a result depends on besides the config: versions, machine, the command."""
    from importlib.metadata import version

    packages = ("torch", "numpy", "safetensors", "tokenizers", "tiktoken")
    return {
        "gradatim": __version__,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "machine": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "git": _git(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def processor_name() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git() -> str | None:
    """The commit of the source tree, for those who run from one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
