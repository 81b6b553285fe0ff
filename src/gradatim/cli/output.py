"""What the verbs share: options, overrides, and one way to answer people or, with ``--json``, programs.

A verb is one module, ``cli/<verb>.py`` (``cli/import_.py`` for ``import``), that holds ``command``. It
imports torch and everything that does inside the function, so that ``gradatim <verb> --help`` stays quick::

    import click
    from gradatim.cli.output import Table, Verb, emit, json_option, overrides_argument, say

    @click.command(cls=Verb)
    @click.argument("recipe")
    @click.option("--run", "directory", type=click.Path(path_type=Path), help="Where the run is kept.")
    @overrides_argument                       # collects --model.order 5 and --steps=10 for any config field
    @json_option                              # --json
    def command(recipe: str, directory: Path | None, overrides: dict[str, str], as_json: bool) -> None:
        '''Train RECIPE.'''
        from gradatim.train import train      # torch, only now

        config = load_config(recipe, overrides)            # raises ConfigError with every problem
        say("reading the corpus")                          # people's eyes: standard error
        result = train(config, directory)
        emit(asdict(result), as_json, lambda: Table(["step", "loss"], [[result.step, result.loss]]))

Mistakes are raised as ``GradatimError``; ``cli/main.py`` shows them as asked for and sets the exit code.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gradatim.errors import ConfigError, GradatimError, LaunchError, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from gradatim.config.settings import RunConfig

F = TypeVar("F", bound=Callable[..., Any])

OVERRIDE = "--override"
"""The hidden option that ``Verb`` rewrites ``--model.order 5`` to: ``--override model.order=5``."""


GIVEN = "gradatim.given"
"""Where a context keeps the arguments of its verb, rewritten, for ``--help``, which is read before they are."""
PROBLEMS = "gradatim.problems"
"""Where a context keeps what is wrong with overrides, for a verb that tells it together with what is wrong besides."""


# --------------------------------------------------------------------------- options


def json_option(function: F) -> F:
    """Add ``--json``; the verb receives ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")(function)


def overrides_argument(function: F) -> F:
    """Accept any config field as ``--section.field value``; a verb (``cls=Verb``) receives ``overrides``."""

    def collect(_ctx: click.Context, _param: click.Parameter, pairs: Iterable[str]) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in pairs)

    return click.option(OVERRIDE, "overrides", multiple=True, hidden=True, callback=collect)(function)


class Verb(click.Command):
    """A command whose flags may be spelt with dashes or underscores, and which may take config overrides."""

    collects = False
    """Whether the verb itself tells what is wrong with overrides (``ctx.meta[PROBLEMS]``), beside a recipe's faults."""

    @property
    def takes_overrides(self) -> bool:
        """Whether the function is decorated with ``overrides_argument``."""
        return any(OVERRIDE in parameter.opts for parameter in self.params)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite overrides, then let click parse the rest."""
        problems: list[Problem] = []
        ctx.meta[GIVEN] = self._rewrite(ctx, args, problems)
        if problems and not self.collects:
            raise ConfigError(*problems)
        ctx.meta[PROBLEMS] = problems
        try:
            return super().parse_args(ctx, list(ctx.meta[GIVEN]))
        except click.UsageError as error:
            if not problems:
                raise
            what = error.format_message().rstrip(".")
            besides = Problem(
                where=ctx.command_path, what=what[:1].lower() + what[1:], attempt=f"{ctx.command_path} --help"
            )
            raise ConfigError(*problems, besides) from None

    def _rewrite(self, ctx: click.Context, args: list[str], problems: list[Problem]) -> list[str]:
        """Turn ``--model.order 5`` into ``--override model.order=5``; spell own flags with dashes."""
        own = {
            option: p
            for p in self.get_params(ctx)
            if isinstance(p, click.Option)
            for option in (*p.opts, *p.secondary_opts)
        }
        rewritten: list[str] = []
        given: dict[str, list[str]] = {}
        named = False  # whether the recipe has been met
        rest = iter(enumerate(args))
        for index, token in rest:
            if token == "--":
                rewritten += args[index:]
                break
            flag, equals, value = token.partition("=")
            dashed = "--" + flag[2:].replace("_", "-")
            if not flag.startswith("--"):
                rewritten.append(token)
                named = named or not flag.startswith("-")
            elif dashed in own and dashed != OVERRIDE:
                rewritten.append(dashed + equals + value)
                if not equals and not own[dashed].is_flag:
                    rewritten += [value for _, value in itertools.islice(rest, 1)]  # its value, whatever it looks like
            elif self.takes_overrides and is_override(flag):
                name = flag[2:].replace("-", "_")
                if not equals:
                    following = args[index + 1] if index + 1 < len(args) else "--"
                    if following.startswith("--"):
                        problems.append(Problem(where=flag, what="this override has no value", attempt=f"{flag} VALUE"))
                        continue
                    value = next(rest)[1]
                rewritten += [OVERRIDE, f"{name}={value}"]
                given.setdefault(name, []).append(value or '""')
            else:
                problems.append(self._unknown(ctx, flag, own))
                following = args[index + 1] if index + 1 < len(args) else "--"
                value_follows = not equals and not following.startswith("--")
                if self.collects and value_follows and (named or not _may_be_recipe(following)):
                    next(rest)
        problems += [
            Problem(where=f"--{name}", what="this override is given more than once", got=" and ".join(values),
                    allowed="one value", attempt=f"keep one: --{name} {values[-1]}")
            for name, values in given.items() if len(values) > 1
        ]  # fmt: skip
        return rewritten

    def _unknown(self, ctx: click.Context, flag: str, own: Iterable[str]) -> Problem:
        from gradatim.config.decode import CALLED, likeliest, nearest

        known = sorted(set(own) - {OVERRIDE})
        name = flag[2:].replace("-", "_")
        field = likeliest(name) if self.takes_overrides else ""
        fields = [f"--{field}"] if field else []
        exact = fields if field.rpartition(".")[2] == name or name in CALLED else []
        guess = next(iter(exact), "") or nearest(flag.replace("_", "-"), [*known, *fields])
        return Problem(
            where=ctx.command_path,
            what="there is no such option",
            got=flag,
            allowed=", ".join(known) + (", or any config field" if self.takes_overrides else ""),
            attempt=guess or f"{ctx.command_path} --help",
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and, where overrides are taken, every config field; with a recipe, its values."""
        super().format_options(ctx, formatter)
        if self.takes_overrides:
            from gradatim.config import recipe_names, recipe_summary
            from gradatim.config.describe import sections

            recipes = {name: recipe_summary(name) for name in recipe_names()}
            named, config = self._recipe(ctx)
            shown = recipes if config is None else {named: recipes.get(named, "the file's values")}
            for title, rows in [("Recipes" if config is None else "Recipe", [*shown.items()]), *sections(config)]:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _recipe(self, ctx: click.Context) -> tuple[str, RunConfig | None]:
        """The recipe that stands beside ``--help``, and what it says; None without one that can be read."""
        from gradatim.config import load

        values, _, _ = self.make_parser(ctx).parse_args(list(ctx.meta.get(GIVEN, ())))
        named = values.get("recipe")
        if not isinstance(named, str):
            return "", None
        try:
            loaded = load(named, to_train=False)
        except GradatimError:
            return named, None
        return named, None if loaded.problems else loaded.config


def _may_be_recipe(token: str) -> bool:
    from gradatim.config import recipe_names

    return token in recipe_names() or Path(token).is_file()


class RecipeVerb(Verb):
    """A verb that judges a recipe (``check``, ``train``): what is wrong with it and with its options comes at once."""

    collects = True


def is_override(flag: str) -> bool:
    """Whether a flag such as ``--model.order`` or ``--steps`` names a config field (or, dotted, tries to)."""
    from gradatim.config.describe import top_level_names

    name = flag.removeprefix("--").replace("-", "_")
    return "." in name or name in top_level_names()


# --------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings: drawn on a terminal, aligned columns elsewhere; floats to five digits."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""

    def cells(self) -> list[list[str]]:
        """All cells as text."""
        return [[_cell(value) for value in row] for row in self.rows]

    def right_aligned(self) -> list[bool]:
        """Which columns hold numbers only."""
        return [
            all(isinstance(row[i], (int, float, type(None))) for row in self.rows) for i in range(len(self.columns))
        ]

    def plain(self) -> str:
        """The table as aligned columns two spaces apart, nothing shortened."""
        lines = [list(self.columns), *self.cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        right = self.right_aligned()
        text = [
            "  ".join(
                cell.rjust(width) if r else cell.ljust(width)
                for cell, width, r in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join(([self.title] if self.title else []) + text)

    def rich(self) -> object:
        """The table as ``rich`` draws it."""
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(title=self.title or None, title_justify="left")
        for name, right in zip(self.columns, self.right_aligned(), strict=True):
            drawn.add_column(name, justify="right" if right else "left")
        for row in self.cells():
            drawn.add_row(*map(Text, row))
        return drawn


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


Answer = str | Table | Sequence["str | Table"] | None


def emit(document: object, as_json: bool, human: Callable[[], Answer]) -> None:
    """Answer: the document as JSON on standard output, or what ``human`` returns (text, tables) for people.

    ``human`` is only called when people are to read it; it may print by itself and return None. Dataclasses,
    paths, tuples, numpy's scalars become plain JSON; numbers that are not finite become null.
    """
    if as_json:
        print(json.dumps(jsonable(document), allow_nan=False, indent=2 if sys.stdout.isatty() else None))
        return
    answer = human()
    parts: Sequence[str | Table] = [] if answer is None else [answer] if isinstance(answer, (str, Table)) else answer
    for part in parts:
        if isinstance(part, str):
            print(part)
        elif sys.stdout.isatty():
            console().print(part.rich())
        else:
            print(part.plain())


def jsonable(value: object) -> Any:
    """Reduce a value to what JSON can hold. Raises TypeError for what has no plain form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays, without importing either
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} has no plain JSON form")


def visible(text: str) -> str:
    """The text on one line: line ends and the like as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def say(message: str) -> None:
    """Tell people something on standard error, where it never mixes with an answer."""
    print(message, file=sys.stderr, flush=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write what a verb was asked to leave behind, with the folders above it.

    Raises:
        LaunchError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        what = f"this file cannot be written ({error.strerror or error})"
        raise LaunchError(Problem(where=str(path), what=what, attempt="name another path")) from None


def console(*, stderr: bool = False) -> Console:
    """A ``rich`` console of the present width; import of rich is put off until somebody needs it."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


# --------------------------------------------------------------------------- problems


def show_problems(problems: Sequence[Problem], *, exit_code: int, as_json: bool, label: str = "error") -> None:
    """Show what went wrong: one JSON document on standard output, or readable text on standard error."""
    if as_json:
        document = {"error": {"exit_code": exit_code, "problems": [p.as_json() for p in problems]}}
        print(json.dumps(document))
        return
    if not sys.stderr.isatty():
        for problem in problems:
            say(f"{label}: {problem}")
        return
    from rich.text import Text

    screen = console(stderr=True)
    for problem in problems:
        text = Text.assemble((f"{label}: ", "bold red"), (problem.where, "bold"), ": " if problem.where else "")
        text.append(problem.what)
        for name, value in [("got", problem.got), ("allowed", problem.allowed), ("try", problem.attempt)]:
            if value:
                text.append(f"\n    {name}: ", "dim").append(value, "green" if name == "try" else "")
        screen.print(text)
