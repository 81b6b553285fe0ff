"""One of the workers that ``launch.py`` starts: ``python -m gradatim.parallel.worker FOLDER``.

The folder holds the job; the first rank leaves the answer there. Standard output belongs to the launching process, so
whatever is printed here goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from gradatim.parallel.place import before_torch, given_place
from gradatim.streams import Lasting


def main(folder: Path) -> int:
    """Do the job as the rank that the environment says; the exit code, which only says that something failed."""
    os.dup2(2, 1)
    place = given_place()
    assert place is not None
    sys.stdout = sys.stderr = Lasting(sys.stderr)
    job = json.loads((folder / "job").read_text("utf-8"))
    if os.getppid() != job["launcher"]:  # it is gone already, and nobody would end this process
        return 5
    before_torch(place)
    sys.argv = job["command"]  # what a run is to remember, and not how its workers were started

    from gradatim.config.settings import LayoutConfig
    from gradatim.errors import Interrupted
    from gradatim.parallel.launch import RESULT, Failed, joined

    module, _, name = job["function"].partition(":")
    answer: dict[str, object]
    try:
        with joined(place, LayoutConfig(**job["layout"]), folder, launcher=job["launcher"]) as group:
            answer = {"value": getattr(import_module(module), name)(group, **job["arguments"])}
    except Interrupted as stopped:  # agreed upon: every rank is here
        answer = {"problems": [asdict(problem) for problem in stopped.problems]}
    except Failed:
        return 1
    except KeyboardInterrupt:
        return 130
    if place.rank == 0:
        draft = folder / "draft"
        draft.write_text(json.dumps(answer), encoding="utf-8")
        draft.replace(folder / RESULT)
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # groups with a dead peer may never come apart in order
