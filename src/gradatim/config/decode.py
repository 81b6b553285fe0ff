"""A tree (``tree.py``) → the dataclasses of ``settings.py``, strictly, with every problem at once.

Each problem names its place, the nearest valid name, and got against allowed; a field of another kind of
model is told whose it is. The declared type of a field decides how its text is read: ``1e-3`` is a number
where a number is declared, ``5`` is text where text is.

Why no library: msgspec and dacite stop at the first error; pydantic and cattrs collect them, but from plain
dictionaries, which have lost the line; none names the nearest field or knows that ``order`` belongs to
another kind of model. Three branches and eight types are all there is to decode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from gradatim.config.describe import hints, option_names, type_text, variants
from gradatim.config.rules import RANGES, interval_text
from gradatim.config.tree import Entry, flow_sequence
from gradatim.errors import Problem


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The candidate most like ``name``, or an empty string when none is near."""
    return next(iter(difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)), "")


def likeliest(name: str, names: Iterable[str] | None = None) -> str:
    """The dotted field that ``name``, which is none, may have meant: of another section, or misspelt.

    ``names``: all dotted fields, by default the config's.
    """
    key, known = name.rpartition(".")[2], option_names() if names is None else tuple(names)
    if CALLED.get(key) in known:
        return CALLED[key]
    return next((path for path in known if path.rpartition(".")[2] == key), nearest(name, known))


CALLED = {
    "learning_rate": "optimizer.lr", "max_lr": "optimizer.lr", "warmup_steps": "optimizer.warmup",
    "warmup_iters": "optimizer.warmup", "batch_size": "global_batch", "train_batch_size": "global_batch",
    "micro_batch_size": "layout.microbatch", "block_size": "context", "seq_len": "context", "seq_length": "context",
    "max_steps": "steps", "max_iters": "steps", "train_iters": "steps", "n_embd": "model.d_model",
    "hidden_size": "model.d_model", "embed_dim": "model.d_model", "n_layer": "model.n_layers",
    "num_layers": "model.n_layers", "num_hidden_layers": "model.n_layers", "n_head": "model.n_heads",
    "num_heads": "model.n_heads", "num_attention_heads": "model.n_heads", "ffn_hidden_size": "model.d_ff",
    "intermediate_size": "model.d_ff", "beta1": "optimizer.betas", "beta2": "optimizer.betas",
    "resume_from": "init_from", "pretrained": "init_from",
}  # fmt: skip
"""What nanoGPT, Megatron-LM, transformers and others call our fields."""


_BROKEN: Any = object()
_NULLS = {"", "~", "null", "Null", "NULL"}
_PRECISIONS = {
    "fp16": "bf16", "float16": "bf16", "half": "bf16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64",
}  # fmt: skip
"""Other libraries' names; who asks for 16 bits of the older kind means 16 bits."""
_MEANT = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


class _WrongError(ValueError):
    """A value that its type does not admit; the argument is what to try, if anything."""


class _NotFiniteError(_WrongError):
    """A number that is none: infinite, or nan."""


@dataclass(slots=True)
class Decoder:
    """Reads a tree, ``Decoder().value(RunConfig, tree)``: what is wrong is listed and left at default."""

    problems: list[Problem] = dataclasses.field(default_factory=list)
    """Everything found wrong."""
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    """Dotted name → where it was set."""
    broken: set[str] = dataclasses.field(default_factory=set)
    """Dotted names whose value could not be read; rules leave them alone."""
    names: Callable[[], Iterable[str]] = option_names
    """All dotted names there are, of which hints for unknown ones are taken."""

    def value(self, hint: Any, entry: Entry, path: str = "", default: Any = None) -> Any:
        """The value of type ``hint`` (a field's, a section's) that ``entry`` spells."""
        self.places[path] = entry.where
        kinds = variants(hint)
        if entry.value is None:  # reported already
            self.broken.add(path)
            return _BROKEN
        if not kinds and not dataclasses.is_dataclass(hint):
            try:
                return _coerce(hint, entry)
            except ValueError as error:
                attempt = str(error) if isinstance(error, _WrongError) else ""
                allowed = type_text(hint)
                if isinstance(error, _NotFiniteError):
                    allowed += ", finite" + (f", {interval_text(RANGES[path])}" if path in RANGES else "")
                return self._wrong(path, entry, f"this value does not fit {path}", allowed, attempt)
        if not isinstance(entry.value, dict):
            attempt = f"{path}.kind {entry.value}" if isinstance(entry.value, str) and entry.value in kinds else ""
            allowed = "its fields, or auto" if path == "layout" else "its fields"
            return self._wrong(path, entry, f"{path} is a section, not a value", allowed, attempt)
        kind = ""
        if kinds:
            kind = self._kind(kinds, entry.value, path, default.kind)
            hint = kinds[kind]
        known = hints(hint)
        standard = hint()
        found = {}
        for key, item in entry.value.items():
            dotted = f"{path}.{key}".lstrip(".")
            if dotted in self.broken:  # a kind, reported already
                continue
            if key not in known:
                self._unknown(path, [key], item, hint, kind, kinds)
            elif (decoded := self.value(known[key], item, dotted, getattr(standard, key))) is not _BROKEN:
                found[key] = decoded
        return hint(**found)

    def _kind(self, kinds: dict[str, type], fields: dict[str, Entry], path: str, default: str) -> str:
        """The kind that is asked for, or the likeliest one, to judge the other fields by."""
        if "kind" not in fields:
            return default
        wanted = fields["kind"].value if isinstance(fields["kind"].value, str) else ""
        if wanted in kinds:
            return wanted
        guess = nearest(wanted, kinds)
        if fields["kind"].value is not None:
            self._wrong(f"{path}.kind", fields["kind"], f"there is no such kind of {path}", ", ".join(kinds), guess)
        self.broken.add(path)
        return guess or default

    def _wrong(self, path: str, entry: Entry, what: str, allowed: str, attempt: str = "") -> Any:
        self.broken.add(path)
        if attempt:
            attempt = f"--{attempt}" if " " in attempt else _assign(path, attempt, entry)
        self.problems.append(Problem(where=entry.where, what=what, got=entry.text(), allowed=allowed, attempt=attempt))
        return _BROKEN

    def _unknown(
        self, section: str, names: list[str], entry: Entry, cls: type, kind: str, kinds: dict[str, type]
    ) -> None:
        """Say what the first of ``names``, no field of ``cls``, may have meant: another kind's, misspelt, misplaced."""
        flag = "--" if entry.where.startswith("--") else ""
        if flag and isinstance(entry.value, dict):  # there is only what was set below it
            for below, item in entry.value.items():
                self._unknown(section, [*names, below], item, cls, kind, kinds)
            return
        key, path = names[0], ".".join([section, *names]).lstrip(".")
        owners = [owner for owner, other in kinds.items() if key in hints(other)]
        if owners:
            what = f"{section}.{key} belongs to kind {' and '.join(owners)}"
            attempt = f"--{section}.kind {owners[0]}, or leave it out"
            self.problems.append(
                Problem(
                    where=entry.where,
                    what=what,
                    got=f"kind {kind}",
                    allowed=", ".join(hints(cls)),
                    attempt=attempt,
                )
            )
            return
        there = tuple(self.names())
        elsewhere = CALLED.get(key) in there or (
            not section and any(dotted.rpartition(".")[2] == key for dotted in there)
        )
        guess = "" if elsewhere else nearest(key, hints(cls))
        guess = ".".join([section, guess, *names[1:]]).lstrip(".") if guess else ""
        if not guess or (len(names) > 1 and guess not in there):
            guess = likeliest(path, there)
            alike = nearest(names[-1], [guess.rpartition(".")[2]]) or guess == CALLED.get(names[-1])
            if section and not alike:  # but for the section
                guess = ""
        self.problems.append(
            Problem(
                where=entry.where,
                what="there is no such field",
                got=path,
                allowed=", ".join(hints(cls)),
                attempt=f"{flag}{guess}" if guess else "",
            )
        )


def _assign(path: str, value: str, entry: Entry) -> str:
    """How to write ``path = value`` where the entry stands: as an override or as YAML."""
    return f"--{path} {value}" if entry.where.startswith("--") else f"{path.rpartition('.')[2]}: {value}"


def _coerce(hint: Any, entry: Entry) -> Any:
    """The entry as a value of a type that is no section. Raises ValueError (with advice: _WrongError)."""
    origin, arguments, text = get_origin(hint), get_args(hint), entry.value
    nothing = isinstance(text, str) and text in _NULLS and not entry.quoted
    if origin in (Union, types.UnionType):
        if nothing and type(None) in arguments:
            return None
        first, *others = (a for a in arguments if a is not type(None))
        for other in others:  # a list besides words: tried before them, so that a wrong word is told the nearest one
            with contextlib.suppress(ValueError):
                return _coerce(other, entry)
        return _coerce(first, entry)
    if origin is tuple:
        listed = flow_sequence(entry)
        if listed is not None:
            text = listed
        elif isinstance(text, str):
            parts = [part.strip() for part in text.split(",")] if text else []
            if not all(parts):
                raise _WrongError(",".join(filter(None, parts)))
            text = [Entry(part, entry.where, quoted=True) for part in parts]
        if not isinstance(text, list):
            raise _WrongError("")
        of = [arguments[0]] * len(text) if arguments[-1] is Ellipsis else list(arguments)
        if len(of) != len(text):
            raise _WrongError("")
        return tuple(_coerce(item, part) for item, part in zip(of, text, strict=True))
    if not isinstance(text, str):
        raise _WrongError("")
    if origin is Literal:
        choices = {str(choice): choice for choice in arguments}
        if text not in choices:
            other = _PRECISIONS.get(text.lower())
            raise _WrongError(other if other in choices else nearest(text, choices))
        return choices[text]
    if hint is bool:
        answers = {"true": True, "false": False}
        if text.lower() not in answers:
            raise _WrongError(_MEANT.get(text.lower(), ""))
        return answers[text.lower()]
    if hint is int:
        if not re.fullmatch(r"[+-]?\d+(_\d+)*", text, re.ASCII):
            rounds = re.fullmatch(r"[+-]?\d{1,9}(\.\d*)?([eE]\+?\d)?", text, re.ASCII)
            raise _WrongError(str(int(float(text))) if rounds else "")
        return int(text)
    if hint is float:
        number = float(text)
        if not math.isfinite(number):
            raise _NotFiniteError("")
        return number
    if nothing:
        raise _WrongError("")
    return text
