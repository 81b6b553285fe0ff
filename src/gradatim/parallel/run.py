"""Training by a layout's ranks: as workers of this process, or as one rank of a group that is there already.

Text is prepared and refusals are made before the ranks depend on each other: in the launching process, or by the first
rank while the others wait without a clock running, since a tokenizer may take longer than any collective should.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from os import _exit
from pathlib import Path
from typing import Any

from gradatim.config import config_to_yaml, load_config
from gradatim.config.grid import rank_map
from gradatim.config.settings import RunConfig
from gradatim.errors import Interrupted
from gradatim.parallel.launch import Failed, Group, joined, keep_testimonies, launch
from gradatim.parallel.place import Place
from gradatim.parallel.verdict import verdict
from gradatim.parallel.watch import LINGER, first_testimony
from gradatim.shapes.split import layers_of_chunks
from gradatim.text.prepare_task import prepare_run
from gradatim.train import Run, TrainResult, train
from gradatim.train.continuing import refuse_changes
from gradatim.train.run_directory import config_error_existing, config_error_foreign

Say = Callable[[str], None]
Choose = Callable[[], tuple[Path, RunConfig]]
"""What names the run's directory and its final settings, where looking at the disk decides them."""


def run_training(config: RunConfig, directory: Path, resume: bool, say: Say) -> TrainResult:
    """Train in workers of our own, on this machine.

    Raises what ``train`` does, and:
        LaunchError: a rank died.
        HangError: a rank did not answer within ``layout.timeout``.
    """
    _ready(config, directory, resume, say)
    with tempfile.TemporaryDirectory(prefix="gradatim-config-") as folder:
        recipe = Path(folder) / "config.yaml"
        recipe.write_text(config_to_yaml(config), encoding="utf-8")
        arguments = {"recipe": str(recipe), "directory": str(directory.absolute()), "resume": resume}
        answer = launch("gradatim.parallel.run:work", arguments, config.layout, directory / "logs")
    return TrainResult(**{**answer, "run": str(directory)})


def work(group: Group, recipe: str, directory: str, resume: bool) -> dict[str, Any] | None:
    """A worker's part of ``run_training``; the first one's answer is the run's."""
    say = _to_people if group.leads else _nothing
    return asdict(train(load_config(recipe), Path(directory), resume=resume, say=say, mesh=group.mesh))


def join_training(place: Place, choose: Choose, layout_of: RunConfig, resume: bool, say: Say) -> TrainResult | None:
    """Train as one rank of a group that somebody else started; the answer on the first rank, None on the others.

    Args:
        choose: asked on the first rank alone.
        layout_of: the settings as this rank read them; of them only the layout is used before ``choose`` is heard.

    Raises:
        SystemExit: another rank tells why the run ended.
    """
    logs: Path | None = None
    choose = cache(choose)
    try:
        with joined(place, layout_of.layout, logs=lambda: choose()[0] / "logs") as group:
            chosen = json.loads(group.told("run", lambda: _chosen(choose)))
            directory, config = Path(chosen["directory"]), _config(chosen["config"])
            logs = directory / "logs"
            if group.leads:
                say(f"run directory: {directory}")
                _ready(config, directory, resume, say)
            group.told("ready", lambda: "yes")
            result = train(config, directory, resume=resume, say=say if group.leads else _nothing, mesh=group.mesh)
        return result if place.rank == 0 else None
    except Interrupted as stopped:
        if place.rank == 0:
            raise
        raise SystemExit(stopped.exit_code) from None
    except Failed as failed:
        told = first_testimony(failed.folder)
        code = told.exit_code if told else 5
        # Whatever the network's threads still wait for, this process ends.
        _end_soon(code)
        if not failed.first:
            time.sleep(LINGER)  # launchers end all ranks as soon as one ends; the first has something to say
            raise SystemExit(code) from None
        error = verdict(failed.folder, layout_of.layout)
        keep_testimonies(failed.folder, logs, error)
        raise error from None


def _chosen(choose: Choose) -> str:
    directory, config = choose()
    return json.dumps({"directory": str(directory.absolute()), "config": config_to_yaml(config)})


def _config(text: str) -> RunConfig:
    with tempfile.TemporaryDirectory(prefix="gradatim-config-") as folder:
        recipe = Path(folder) / "config.yaml"
        recipe.write_text(text, encoding="utf-8")
        return load_config(recipe)


def _ready(config: RunConfig, directory: Path, resume: bool, say: Say) -> None:
    """Refuse what ``train`` would refuse, prepare the text, and print who is to do what."""
    run = Run(directory)
    if run.exists and not resume:
        raise config_error_existing(directory)
    if run.foreign:
        raise config_error_foreign(directory)
    if run.exists:
        refuse_changes(run.config, config, directory / "config.yaml")
    prepared = prepare_run(config, say)
    for line in rank_map(config.layout, layers_of_chunks(config, prepared.tokenizer.vocab_size)):
        say(line)


def _end_soon(code: int, seconds: float = 2 * LINGER) -> None:
    timer = threading.Timer(seconds, _exit, [code])
    timer.daemon = True
    timer.start()


def _to_people(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _nothing(_: str) -> None:
    """What ranks say that do not lead."""
