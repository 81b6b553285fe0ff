"""What click complains of, as problems of ours: what was got against what is allowed, and what to try."""

from __future__ import annotations

import re
from typing import Any

import click

from gradatim.errors import Problem


def usage_problem(failure: click.ClickException) -> Problem:
    """One of click's own complaints, as a problem of ours."""
    ctx = failure.ctx if isinstance(failure, click.UsageError) else None
    path = ctx.command_path if ctx else "gradatim"
    attempt, allowed = f"{path} --help", ""
    if isinstance(failure, click.NoSuchOption) and failure.possibilities:
        attempt = sorted(failure.possibilities)[0]
    if isinstance(failure, click.MissingParameter) and failure.param and failure.param.name == "recipe":
        from gradatim.config import recipe_names

        allowed = f"{', '.join(recipe_names())}, or a YAML file"
    what = failure.format_message().rstrip(".")
    if isinstance(failure, click.BadParameter) and failure.param and (found := _VALUE.match(failure.message)):
        value, what = found["value"].strip("'"), f"{found['why'].strip().rstrip('.')}"
        where = failure.param.opts[0] if isinstance(failure.param, click.Option) else failure.param.human_readable_name
        return Problem(where=where, what=f"this value is {_WHY.get(what, what)}", got=value,
                       allowed=_allowed(failure.param.type), attempt=attempt)  # fmt: skip
    return Problem(where=path, what=what[:1].lower() + what[1:], allowed=allowed, attempt=attempt)


_VALUE = re.compile(r"(?P<value>'.*'|\S+) is (?P<why>not (?:in the range|a valid \w+(?: range)?|one of)).*", re.S)
"""How click says that a value is none that an option takes."""
_WHY = {
    "not in the range": "out of range", "not one of": "none of the choices", "not a valid integer": "no whole number",
    "not a valid integer range": "no whole number", "not a valid float": "no number",
    "not a valid float range": "no number",
}  # fmt: skip


def _allowed(kind: click.ParamType[Any]) -> str:
    """What a kind of value can be."""
    if isinstance(kind, click.Choice):
        return ", ".join(map(str, kind.choices))
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        low, high = kind.min, kind.max
        if low is not None and high is not None:
            return f"{low:g} to {high:g}"
        if low is not None:
            return f"more than {low:g}" if kind.min_open else f"{low:g} or more"
        return f"less than {high:g}" if kind.max_open else f"{high:g} or less"
    return {"integer": "a whole number", "float": "a number", "boolean": "true or false"}.get(kind.name, "")
