"""``gradatim check RECIPE``: every problem of a recipe and its overrides at once, without torch, in a moment.

What passes is printed as YAML, every field written out, so ``gradatim check gpt --steps 500 > mine.yaml``
makes a recipe of one's own; the layout ``auto`` is printed as the one that it stands for. A layout of several ranks is
followed by the map of them, as comments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gradatim.cli.auto import nproc_option, settled
from gradatim.cli.output import PROBLEMS, RecipeVerb, emit, json_option, overrides_argument, say, show_problems
from gradatim.cli.starting import source_model
from gradatim.config import config_to_yaml, load
from gradatim.config.derived import world_size
from gradatim.config.grid import rank_map
from gradatim.config.origin import nothing_to_start_from
from gradatim.config.settings import RunConfig
from gradatim.errors import ConfigError, Problem


@click.command(cls=RecipeVerb)
@click.argument("recipe")
@nproc_option
@overrides_argument
@json_option
@click.pass_context
def command(ctx: click.Context, recipe: str, nproc: str | None, overrides: dict[str, str], as_json: bool) -> None:
    """Check RECIPE, a packaged recipe or a YAML file, with its overrides; print it with every field."""
    loaded = load(recipe, overrides, source_model=source_model)
    problems: Sequence[Problem] = (*ctx.meta[PROBLEMS], *loaded.problems)
    said: list[str] = []
    if not problems:
        try:
            config = settled(loaded, nproc, said.append)
        except ConfigError as error:
            problems = error.problems
    if problems:
        document: dict[str, Any] = {"ok": False, "problems": [p.as_json() for p in problems]}
        emit(document, as_json, lambda: show_problems(problems, exit_code=2, as_json=False))
        ctx.exit(ConfigError.exit_code)
    notes = [*loaded.notes, *loaded.shortened, *loaded.idle, *_absent(config)]
    document = {"ok": True, **({"notes": notes} if notes else {})}
    if loaded.auto is not None:
        document |= {"layout": asdict(config.layout), "why": said[0]}
    for line in () if as_json else (*said, *(f"note: {note}" for note in notes)):
        say(line)
    emit(document, as_json, lambda: _recipe(recipe, config))


def _absent(config: RunConfig) -> list[str]:
    """Files that a recipe names and that are not here, which may be no mistake: it can be run elsewhere."""
    data, source = config.data, config.init_from
    nothing = None if source is None else nothing_to_start_from(Path(source))
    fields = [f"{split}{side}" for split in ("train", "valid", "test") for side in ("", "_source", "_target")]
    named = [(field, name) for field in fields for name in getattr(data, field)]
    return [
        *([f"init_from: {nothing.what} at {source}"] if nothing is not None else []),
        *(f"data.{field}: there is no {name} here"
        for field, name in named
        if ("/" in name or Path(name).suffix) and not name.startswith("hf:")
        and not any(mark in name for mark in "*?[") and not Path(name).exists()),
    ]  # fmt: skip


def _recipe(name: str, config: RunConfig) -> str:
    return f"# {name}: no problems\n{config_to_yaml(config)}{_ranks(config)}".rstrip()


def _ranks(config: RunConfig) -> str:
    """The map of ranks as comments; a split by cost depends on the vocabulary, which training has yet to make."""
    if world_size(config.layout) == 1:
        return ""
    from gradatim.shapes.split import layers_of_chunks

    layers = None if config.layout.split == "by-cost" else layers_of_chunks(config, vocab_size=0)
    unknown = "# layers of the stages by cost: known once training has its vocabulary, and then told\n"
    return ("" if layers else unknown) + "".join(f"# {line}\n" for line in rank_map(config.layout, layers))
