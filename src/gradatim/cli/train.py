"""``gradatim train RECIPE``: train a model in a run directory, or go on where it stopped."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click

from gradatim.cli.output import Table, Verb, emit, json_option, overrides_argument, say
from gradatim.config import load_config


@click.command(cls=Verb)
@click.argument("recipe")
@click.option(
    "--run", "directory", type=click.Path(path_type=Path), help="Where the run is kept [a new one under runs/]."
)
@click.option("--resume", is_flag=True, help="Continue the run in --run; starts afresh where it has no checkpoint.")
@overrides_argument
@json_option
def command(recipe: str, directory: Path | None, resume: bool, overrides: dict[str, str], as_json: bool) -> None:
    """Train RECIPE, a packaged recipe or a YAML file.

    Any field of the config is an option, as in ``--model.d_model 384 --steps 500``.
    """
    from gradatim.errors import ConfigError, Problem

    config = load_config(recipe, overrides)
    if resume and directory is None:
        raise ConfigError(Problem(where="--resume", what="which run is to go on?", attempt="--run DIR --resume"))

    from gradatim.train import Run, train
    from gradatim.train.run_directory import new_directory

    directory = directory or new_directory(Path(recipe).stem)
    if resume and Run(directory).exists:
        # --steps shortens a warm-up that was not asked for; a run that goes on keeps the one it began with.
        kept = {
            name: getattr(Run(directory).config.optimizer, name)
            for name in ("warmup", "decay_steps")
            if f"optimizer.{name}" not in overrides
        }
        config = replace(config, optimizer=replace(config.optimizer, **kept))
    say(f"run directory: {directory}")
    result = train(config, directory, resume=resume, say=say)

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
