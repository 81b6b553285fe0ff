"""What there is to set, told from ``settings.py`` itself: names, values, defaults and sentences.

``--help`` prints it and the decoder's messages quote it, so neither can drift from the dataclasses. The
sentences are read from the source by ``ast`` (Python keeps no docstrings of fields).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gradatim.config.settings import RunConfig

_NAMES: dict[Any, str] = {int: "whole number", float: "number", bool: "true|false", str: "text"}
_METAVARS: dict[Any, str] = {int: "N", float: "X", bool: "true|false", str: "TEXT"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One leaf of the config."""

    path: str
    """Dotted name: ``model.d_model``."""
    allowed: str
    """What it may be, in words."""
    default: str
    """Its default, or what a recipe has in its place, as YAML shows it."""
    sentence: str
    """The sentence under the field."""
    metavar: str
    """The same as ``allowed``, short, as ``--help`` shows it after the flag."""


@cache
def hints(cls: type) -> dict[str, Any]:
    """The resolved annotation of each field of a dataclass, in order."""
    resolved = get_type_hints(cls)
    return {field.name: resolved[field.name] for field in dataclasses.fields(cls)}


@cache
def field_help(cls: type) -> dict[str, str]:
    """The sentence under each field of a dataclass; empty where it has none."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    sentences = dict.fromkeys(hints(cls), "")
    for statement, after in zip(body.body, body.body[1:], strict=False):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                sentences[name] = " ".join(text.split())
    return sentences


@cache
def variants(hint: Any) -> dict[str, type]:
    """The dataclasses of a union, by the values of their ``kind``; empty for any other type."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    if not members or not all(dataclasses.is_dataclass(member) for member in members):
        return {}
    return {kind: member for member in members for kind in get_args(hints(member)["kind"])}


def type_text(hint: Any) -> str:
    """What a field of this type may hold, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _NAMES:
        return _NAMES[hint]
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_text(arguments[0])}"
        return f"{len(arguments)} values ({', '.join(map(type_text, arguments))})"
    if arguments:  # X | None
        return " or ".join("null" if a is type(None) else type_text(a) for a in arguments)
    return "a section"


def _metavar(hint: Any) -> str:
    arguments = get_args(hint)
    if hint in _METAVARS:
        return _METAVARS[hint]
    if get_origin(hint) is tuple:
        return ",".join("…" if a is Ellipsis else _metavar(a) for a in arguments)
    if get_origin(hint) is Literal:
        return type_text(hint)
    return "|".join("null" if a is type(None) else _metavar(a) for a in arguments)


def scalar_text(value: object) -> str:
    """A default or a wrong value as YAML (and an override) would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(scalar_text, value)) or '""'
    return str(value)


def settings(cls: type = RunConfig, prefix: str = "", values: Any = None) -> Iterator[Setting]:
    """All leaves under a dataclass, depth first; a section that comes in kinds is left to ``variants``.

    ``values``, an instance, has what stands in the place of the defaults.
    """
    default = cls() if values is None else values
    for name, hint in hints(cls).items():
        value = getattr(default, name)
        if variants(hint):
            continue
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from settings(hint, f"{prefix}{name}.", value)
        else:
            yield Setting(
                path=prefix + name,
                allowed=type_text(hint),
                default=scalar_text(value),
                sentence=field_help(cls)[name],
                metavar=_metavar(hint),
            )


@cache
def model_settings() -> dict[str, dict[str, Setting]]:
    """The fields of each model kind, by bare name."""
    return {
        kind: {s.path.removeprefix("model."): s for s in settings(cls, "model.")}
        for kind, cls in variants(hints(RunConfig)["model"]).items()
    }


def top_level_names() -> frozenset[str]:
    """The first parts of all dotted names: ``seed``, ``model``, …"""
    return frozenset(hints(RunConfig))


@cache
def option_names() -> tuple[str, ...]:
    """Every dotted name there is, of all model kinds."""
    models = {s.path: None for fields in model_settings().values() for s in fields.values()}
    return (*(s.path for s in settings()), *models)


def sections(config: RunConfig | None = None) -> list[tuple[str, list[tuple[str, str]]]]:
    """All fields as ``--help`` lists them: title, then (flag, sentence with default) per field.

    Of a recipe's config, its own values instead, and the fields of its kind of model alone.
    """
    grouped: dict[str, list[Setting]] = {}
    for setting in settings(values=config):
        head, dot, _ = setting.path.partition(".")
        grouped.setdefault(f"Config: {head}" if dot else "Config", []).append(setting)
    kinds: dict[type, list[str]] = {}
    for kind, cls in variants(hints(RunConfig)["model"]).items():
        kinds.setdefault(cls, []).append(kind)
    for cls, names in kinds.items():
        model = None if config is None else config.model
        if model is None or type(model) is cls:
            grouped[f"Config: model of kind {', '.join(names)}"] = list(settings(cls, "model.", model))
    return [(title, [_row(setting) for setting in rows]) for title, rows in grouped.items()]


def _row(setting: Setting) -> tuple[str, str]:
    return f"--{setting.path} {setting.metavar}", f"{setting.sentence} [{setting.default}]"
