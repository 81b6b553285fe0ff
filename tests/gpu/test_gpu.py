"""Tensors live where the weights live: models train, resume and answer on a device that is not the CPU.

No GPU is needed: ``pretend_gpu`` makes one up that refuses tensors of two devices. It has no recurrent cells, and shows
nothing of a GPU's kernels, streams or of NCCL.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def answer(script: str, *arguments: object) -> object:
    """What a script of this folder prints; a process of its own, as a device once made up stays in torch."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_training_and_answers_are_those_of_the_cpu(tmp_path: Path) -> None:
    found = answer("work_verbs.py", tmp_path)
    assert isinstance(found, dict) and len(found) == 7
    assert not {name: difference for name, difference in found.items() if difference}


def test_a_step_of_every_layout_meets_no_tensor_of_another_device() -> None:
    assert answer("work_layouts_gpu.py") == 34
