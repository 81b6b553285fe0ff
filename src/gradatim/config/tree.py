"""A recipe as a tree: the mapping that YAML spells, each value with the place it came from.

Overrides merge into the tree before it is decoded (``decode.py``), so a recipe that is only right with its
overrides passes, and both are judged alike. Scalars stay text until a declared type says what they are:
PyYAML alone reads ``1e-3`` as a string and ``on`` as True. Tags, aliases, keys given twice are refused beside
whatever else is wrong; deep nesting, huge files and what is no YAML leave nothing else to judge.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from gradatim.errors import ConfigError, Problem

LARGEST = 1 << 20
"""Bytes of the largest recipe read (a packaged one has 500)."""
DEEPEST = 16
"""Levels of nesting beyond which a recipe is not read (a config has 3)."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ["str", "int", "float", "bool", "null", "seq", "map", "timestamp", "value", "merge"]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of the tree: text, a list of entries or a mapping; and where it stands."""

    value: str | list[Entry] | dict[str, Entry] | None
    """None: it cannot be told (an alias), which is reported where the tree is read."""
    where: str
    quoted: bool = False
    """Written in quotes: ``"null"`` is a word, ``null`` is nothing."""

    def at(self, *path: str) -> Entry | None:
        """The entry at a path of keys below this one; None where there is none."""
        entry: Entry | None = self
        for key in path:
            entry = entry.value.get(key) if entry is not None and isinstance(entry.value, dict) else None
        return entry

    def text(self) -> str:
        """The value as a message quotes it."""
        match self.value:
            case str():
                return repr(self.value) if self.quoted or not self.value else self.value
            case list():
                return f"a list of {len(self.value)}"
            case None:
                return "an alias"
            case _:
                return f"a section with {', '.join(self.value) or 'nothing'}"


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Written:
    """What a YAML file is called in messages, what its first line might be, and how to come by a sound one."""

    noun: str
    first: str
    attempt: str


RECIPE = Written("recipe", "steps: 100", "start from a recipe that is sound: gradatim check gpt > mine.yaml")


def read_tree(text: bytes, name: str, problems: list[Problem] | None = None, what: Written = RECIPE) -> Entry:
    """Parse a recipe (or ``what`` it is) into a tree. Raises ConfigError for what is no YAML, or none we care to read.

    Faults beside which the rest can be judged (keys given twice, tags, aliases) go to ``problems`` where it is given.
    """
    noted: list[Problem] = []
    try:
        tree = _read_tree(text, name, noted, what)
    except ConfigError as error:
        raise ConfigError(*noted, *error.problems) from None
    if noted and problems is None:
        raise ConfigError(*noted)
    if problems is not None:
        problems += noted
    return tree


def _read_tree(text: bytes, name: str, problems: list[Problem], what: Written = RECIPE) -> Entry:
    if len(text) > LARGEST:
        raise _unreadable(
            what, name, f"this file is too large for a {what.noun}", f"{len(text):,} bytes", f"{LARGEST:,} bytes"
        )
    try:
        decoded = text.decode("utf-8-sig")
        _refuse_bombs(decoded, name, problems, what)
        node = yaml.compose(io.StringIO(decoded), Loader=_LOADER)
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        byte = f"byte 0x{text[error.start]:02x}"
        raise _unreadable(what, f"{name}:{line}", "this is not UTF-8 text", byte) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{_line(mark)}" if mark else name
        raise _unreadable(what, place, f"this is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise _unreadable(what, name, f"this is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(node, yaml.MappingNode):
        got = "an empty file" if node is None else "no mapping"
        raise _unreadable(what, f"{name}:1", f"a {what.noun} is a mapping of fields", got, what.first)
    return _entry(node, name, problems, set(), what)


def _line(mark: Any) -> int:
    """The line of a mark of PyYAML, from 1."""
    return int(mark.line) + 1


def _unreadable(of: Written, where: str, what: str, got: str = "", allowed: str = "") -> ConfigError:
    return ConfigError(Problem(where=where, what=what, got=got, allowed=allowed, attempt=of.attempt))


def _refuse_bombs(text: str, name: str, problems: list[Problem], of: Written) -> None:
    """Note aliases (they can unfold without bound: none is followed), refuse deep nesting (it exhausts the stack)."""
    depth = 0
    for event in yaml.parse(io.StringIO(text), Loader=_LOADER):
        place = f"{name}:{_line(event.start_mark)}"
        if isinstance(event, yaml.AliasEvent):
            what, attempt = f"{of.noun}s have no aliases", f"write the value in place of *{event.anchor}"
            problems.append(Problem(where=place, what=what, got=f"*{event.anchor}", attempt=attempt))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise _unreadable(of, place, f"this {of.noun} is nested too deeply", allowed=f"at most {DEEPEST} levels")


def _entry(node: yaml.Node, name: str, problems: list[Problem], seen: set[int], of: Written) -> Entry:
    """The tree below a node. ``seen``: nodes met before, by identity; a node met again stands for an alias."""
    where = f"{name}:{_line(node.start_mark)}"
    if id(node) in seen:
        return Entry(None, where)
    seen.add(id(node))
    if node.tag not in _TAGS:
        problems.append(
            Problem(where=where, what=f"{of.noun}s hold plain values only", got=node.tag, attempt="leave the tag out")
        )
    if isinstance(node, yaml.ScalarNode):
        return Entry(node.value, where, quoted=node.style in ("'", '"', "|", ">"))
    if isinstance(node, yaml.SequenceNode):
        items = [_entry(item, name, problems, seen, of) for item in node.value]
        return Entry(None if any(item.value is None for item in items) else items, where)
    fields: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        known_key = id(key_node) in seen
        seen.add(id(key_node))
        place = f"{name}:{_line(key_node.start_mark)}"
        if known_key or (key == "<<" and id(value_node) in seen):  # an alias, reported already
            continue
        if key in fields:
            problems.append(
                Problem(
                    where=place,
                    what=f"{key} is given twice",
                    attempt=f"keep one (the first is {fields[key].where})",
                )
            )
        value = dataclasses.replace(_entry(value_node, name, problems, seen, of), where=place)
        before = fields[key].value if key in fields else None
        if isinstance(before, dict) and isinstance(value.value, dict):  # judge the fields of both
            value = dataclasses.replace(value, value={**before, **value.value})
        fields[key] = value
    return Entry(fields, where)


def flow_sequence(entry: Entry) -> list[Entry] | None:
    """The items of text such as ``[a, "b,c"]``, as an override may spell a list; None where it is none."""
    text = entry.value
    if not isinstance(text, str) or entry.quoted or not (text.startswith("[") and text.endswith("]")):
        return None
    found: list[Problem] = []
    try:
        tree = _read_tree(f"list: {text}".encode(), entry.where, found)
    except ConfigError:
        return None
    items = tree.at("list")
    if found or items is None or not isinstance(items.value, list):
        return None
    return [dataclasses.replace(item, where=entry.where) for item in items.value]


# --------------------------------------------------------------------------- overrides


def merge(tree: Entry, overrides: Mapping[str, str], problems: list[Problem]) -> Entry:
    """The tree with each dotted override put in (dashes count as underscores), making sections as needed."""
    for dotted, text in overrides.items():
        path = dotted.removeprefix("--").replace("-", "_")
        tree = _put(tree, path.split("."), Entry(text, f"--{path}"), problems)
    return tree


def _put(tree: Entry, path: list[str], leaf: Entry, problems: list[Problem]) -> Entry:
    if not path:
        return leaf
    if tree.value is None:  # reported already
        return tree
    if not isinstance(tree.value, dict):
        problems.append(
            Problem(
                where=leaf.where,
                what=f"what this would be set in ({tree.where}) is a value, not a section",
                got=tree.text(),
            )
        )
        return tree
    below = tree.value.get(path[0], Entry({}, leaf.where))
    return dataclasses.replace(tree, value={**tree.value, path[0]: _put(below, path[1:], leaf, problems)})
