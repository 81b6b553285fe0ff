"""``gradatim prepare RECIPE|FILES… --out DIR``: the tokenizer and the token files, for this program or another.

The folder holds ``tokenizer.json``, a Megatron ``.bin/.idx`` pair with its ``.meta.json`` for each of train, valid
and test, and ``report.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradatim.cli.output import Table, Verb, emit, json_option, overrides_argument, say
from gradatim.config import load_config, recipe_names
from gradatim.errors import ConfigError, Problem

BASE = "gpt"  # whose data section files are prepared with, unless overridden


@click.command(cls=Verb)
@click.argument("sources", nargs=-1, required=True, metavar="RECIPE|FILES...")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where the files go.")
@overrides_argument
@json_option
def command(sources: tuple[str, ...], out: Path, overrides: dict[str, str], as_json: bool) -> None:
    """Train the tokenizer and write the token files of a recipe, or of FILES to learn from."""
    recipe = sources[0] if len(sources) == 1 and _is_recipe(sources[0]) else BASE
    if recipe == BASE and sources != (BASE,):
        if "data.train" in overrides:
            raise ConfigError(Problem(where="gradatim prepare", what="the text is named twice", got=" ".join(sources),
                                      allowed="files, or a recipe with --data.train",
                                      attempt="leave out --data.train"))  # fmt: skip
        if any("," in source for source in sources):
            raise ConfigError(Problem(where="gradatim prepare", what="a file name with a comma cannot be given here",
                                      got=" ".join(sources), attempt="a recipe that lists data.train"))  # fmt: skip
        overrides = {"data.train": ",".join(sources), **overrides}
    config = load_config(recipe, overrides, any_layout=True)
    if config.task.kind != "none":
        raise ConfigError(Problem(where="task.kind", what="a task's tables are read as they are, and not prepared",
                                  got=config.task.kind, allowed="none",
                                  attempt=f"gradatim train {recipe}"))  # fmt: skip
    from gradatim.text.prepare import prepare

    report = prepare(config.data, out, say).report
    emit(report, as_json, lambda: _tables(report, out))


def _is_recipe(name: str) -> bool:
    return name in recipe_names() or name.endswith((".yaml", ".yml"))


def _tables(report: dict[str, Any], out: Path) -> list[str | Table]:
    columns = ["documents", "tokens", "bytes", "unknown", "also in train"]
    rows = [[name, *(part[column] for column in columns)] for name, part in report["splits"].items()]
    answer: list[str | Table] = [Table(["part", *columns], rows)]
    answer += [f"{what}: {count:,}" for what, count in report["dropped"].items()]
    answer += [f"{name}: sha256 {value}" for name, value in report["sha256"].items()]
    return [*answer, f"{report['vocabulary']:,} entries in {out / 'tokenizer.json'}"]
