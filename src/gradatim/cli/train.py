"""``gradatim train RECIPE``: train a model in a run directory, or go on where it stopped.

A layout of several ranks starts its own workers; under torchrun or Slurm each rank runs this command, and the first
speaks for all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradatim.cli.auto import nproc_option, settled
from gradatim.cli.output import PROBLEMS, RecipeVerb, Table, emit, json_option, overrides_argument, say
from gradatim.cli.seeds import read_seeds, seeds_table, train_seeds
from gradatim.cli.starting import source_model
from gradatim.config import load
from gradatim.config.derived import world_size
from gradatim.config.origin import is_run, nothing_to_start_from
from gradatim.config.rules import problems
from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError, ConfigError, GradatimError, Problem
from gradatim.parallel.place import Place, before_torch, given_place, refuse_other_world

if TYPE_CHECKING:
    from gradatim.train import TrainResult

PATIENCE = 3.0
"""Seconds that other ranks leave the first one to say what is wrong: launchers end all as soon as one ends."""


@click.command(cls=RecipeVerb)
@click.argument("recipe")
@click.option(
    "--run", "directory", type=click.Path(path_type=Path), help="Where the run is kept [a new one under runs/]."
)
@click.option("--resume", is_flag=True, help="Continue the run in --run; starts afresh where it has no checkpoint.")
@click.option(
    "--seeds", "seeds_text", metavar="N,N", help="Train under each seed in a folder of its own; mean and deviation."
)
@nproc_option
@overrides_argument
@json_option
@click.pass_context
def command(
    ctx: click.Context, recipe: str, directory: Path | None, resume: bool, seeds_text: str | None, nproc: str | None,
    overrides: dict[str, str], as_json: bool,
) -> None:  # fmt: skip
    """Train RECIPE, a packaged recipe or a YAML file.

    Any field of the config is an option, as in ``--model.d_model 384 --steps 500``. Under torchrun, two dashes keep it
    from reading these options as its own: torchrun --nproc-per-node 2 -m -- gradatim train RECIPE --run DIR.
    """
    place = given_place()
    with _one_voice(place):
        loaded = load(recipe, overrides, source_model=source_model)
        if wrong := (*ctx.meta[PROBLEMS], *loaded.problems):
            raise ConfigError(*wrong)
        tell = say if place is None or place.rank == 0 else _nobody
        config = settled(loaded, nproc, tell, place=place, run=directory if resume else None)
        goes_on = resume and directory is not None and is_run(directory)
        source = None if goes_on else config.init_from
        if source is not None and (nothing := nothing_to_start_from(Path(source))) is not None:
            raise CheckpointError(nothing)
        for note in (*loaded.notes, *loaded.idle):
            tell(f"note: {note}")
        if resume and directory is None:
            raise ConfigError(Problem(where="--resume", what="which run is to go on?", attempt="--run DIR --resume"))
        seeds = None if seeds_text is None else read_seeds(seeds_text)
        if seeds is not None and (place is not None or "seed" in overrides):
            what = "ranks that are there already make one run" if place is not None else "the seed is given twice"
            raise ConfigError(Problem(where="--seeds", what=what, attempt="--seed N, run by run"))
    with _one_voice(place, everywhere=True):
        if place is not None:
            refuse_other_world(config.layout, place)
            before_torch(place)

    from gradatim.train import Run, train
    from gradatim.train.run_directory import new_directory

    def choose() -> tuple[Path, RunConfig]:
        """The run's directory, and the settings that a run which goes on keeps."""
        return kept(config, directory or new_directory(Path(recipe).stem))

    shortened = list(loaded.shortened)  # told once, of whichever run is the first that begins

    def kept(config: RunConfig, chosen: Path) -> tuple[Path, RunConfig]:
        if not resume or not Run(chosen).exists:
            while shortened:
                say(f"note: {shortened.pop(0)}")
            return chosen, config
        # --steps shortens a warm-up that was not asked for; a run that goes on keeps the one it began with.
        began = {
            name: getattr(Run(chosen).config.optimizer, name)
            for name in ("warmup", "decay_steps")
            if f"optimizer.{name}" not in overrides
        }
        whole = replace(config, optimizer=replace(config.optimizer, **began))
        if whole != config and problems(whole):
            what = "the run keeps the warm-up and final fall with which it began, and they are longer than this"
            fall = began.get("decay_steps") if config.optimizer.schedule == "warmup-stable-decay" else 0
            least = whole.optimizer.warmup + (fall or 0)
            allowed = f"at least {least}"
            raise ConfigError(Problem(where="--steps", what=what, got=str(config.steps), allowed=allowed,
                                      attempt=f"--steps {least}, or another --run"))  # fmt: skip
        for name, value in began.items():
            if value != getattr(config.optimizer, name):
                say(f"the run keeps optimizer.{name} {value}, with which it began")
        return chosen, whole

    def here(config: RunConfig, directory: Path) -> TrainResult:
        """A run of this process, or of workers that it starts."""
        directory, config = kept(config, directory)
        say(f"run directory: {directory}")
        if world_size(config.layout) == 1:
            return train(config, directory, resume=resume, say=say)
        from gradatim.parallel.run import run_training

        return run_training(config, directory, resume, say)

    if seeds is not None:
        found = train_seeds(config, directory or new_directory(Path(recipe).stem), seeds, here)
        emit(found, as_json, lambda: seeds_table(found))
        return
    result: TrainResult | None
    if place is not None and place.world > 1:
        from gradatim.parallel.run import join_training

        result = join_training(place, choose, config, resume, say)
        if result is None:  # the first rank answers
            return
    else:
        result = here(config, directory or new_directory(Path(recipe).stem))

    def table() -> Table:
        shown = {
            "run": result.run,
            "parameters": result.parameters,
            "steps": result.step,
            "training loss": result.loss,
            "validation loss": result.valid_loss,
            "tokens": result.tokens,
            "tokens/s": result.tokens_per_second,
            "seconds": result.seconds,
        }
        return Table(["", "value"], [[name, value] for name, value in shown.items() if value is not None])

    emit(asdict(result), as_json, table)


def _nobody(_: str) -> None:
    """What ranks say that are not the first."""


@contextlib.contextmanager
def _one_voice(place: Place | None, everywhere: bool = False) -> Iterator[None]:
    """Ranks find the same mistakes, and the first one tells them: another machine's, a missing file say, come after.

    ``everywhere``: a mistake that all find for sure.
    """
    try:
        yield
    except GradatimError as error:
        if place is None or place.rank == 0:
            raise
        time.sleep(PATIENCE)
        if place.local_rank == 0 and not everywhere:
            say(f"rank {place.rank}: {error}")
        raise SystemExit(error.exit_code) from None
