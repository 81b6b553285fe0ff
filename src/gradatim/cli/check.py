"""``gradatim check RECIPE``: every problem of a recipe and its overrides at once, without torch, in a moment.

What passes is printed as YAML, every field written out, so ``gradatim check gpt --steps 500 > mine.yaml``
makes a recipe of one's own. A layout of several ranks is followed by the map of them, as comments.
"""

from __future__ import annotations

from typing import Any

import click

from gradatim.cli.output import Verb, emit, json_option, overrides_argument, say, show_problems
from gradatim.config import config_to_yaml, load
from gradatim.config.derived import world_size
from gradatim.config.grid import rank_map
from gradatim.config.settings import RunConfig
from gradatim.errors import ConfigError


@click.command(cls=Verb)
@click.argument("recipe")
@overrides_argument
@json_option
@click.pass_context
def command(ctx: click.Context, recipe: str, overrides: dict[str, str], as_json: bool) -> None:
    """Check RECIPE, a packaged recipe or a YAML file, with its overrides; print it with every field."""
    loaded = load(recipe, overrides)
    if loaded.problems:
        document: dict[str, Any] = {"ok": False, "problems": [p.as_json() for p in loaded.problems]}
        emit(document, as_json, lambda: show_problems(loaded.problems, exit_code=2, as_json=False))
        ctx.exit(ConfigError.exit_code)
    notes = [*loaded.notes, *loaded.idle]
    document = {"ok": True, **({"notes": notes} if notes else {})}
    for note in () if as_json else notes:
        say(f"note: {note}")
    emit(document, as_json, lambda: _recipe(recipe, loaded.config))


def _recipe(name: str, config: RunConfig) -> str:
    return f"# {name}: no problems\n{config_to_yaml(config)}{_ranks(config)}".rstrip()


def _ranks(config: RunConfig) -> str:
    """The map of ranks as comments; a split by cost depends on the vocabulary, which training has yet to make."""
    if world_size(config.layout) == 1:
        return ""
    from gradatim.shapes.split import layers_of_chunks

    layers = None if config.layout.split == "by-cost" else layers_of_chunks(config, vocab_size=0)
    return "".join(f"# {line}\n" for line in rank_map(config.layout, layers))
