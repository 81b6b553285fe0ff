"""A Hugging Face directory as a source of weights: verified by its headers, read one parameter at a time.

Only ``.safetensors`` is read. Pickled weights (``pytorch_model.bin``) can run any program when they are opened, so they
never are. Everything wrong with the tensors is found before the first one is read, and told at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradatim.config.settings import ModelConfig
from gradatim.errors import DataError, Problem
from gradatim.interop.huggingface.adapter_config import is_adapter_directory, read_adapter_config
from gradatim.interop.huggingface.adapters import Added, read_adapters
from gradatim.interop.huggingface.names import (
    IGNORED,
    PREFIXES,
    Architecture,
    Source,
    heads,
    join,
    modern,
    sources,
)
from gradatim.interop.huggingface.settings import read_settings
from gradatim.shapes import parameters

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
SAMPLES, SAMPLE_BYTES = 64, 1 << 14
"""Of a file of weights, by which it is told from others: its header is among them, its end too."""
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class HuggingFaceDirectory:
    """A directory whose tensors all fit; ``open_directory`` makes it."""

    path: Path
    architecture: Architecture
    config: ModelConfig
    context: int
    vocab_size: int
    """Rows of their embedding."""
    stored: dict[str, Stored]
    sources: dict[str, Source]
    absent: tuple[str, ...] = field(default=())
    """Our parameters that the directory has no tensors for, which it may lack."""
    added: Mapping[str, Added] = field(default_factory=dict)
    """What adapters add to which of their weights."""

    def names(self) -> list[str]:
        """Our parameters that can be read."""
        return [name for name in self.sources if name not in self.absent]

    def read(self, name: str, rows: int | None = None) -> Tensor:
        """One of our parameters, whole; with ``rows`` of words, zeros for those that theirs does not have."""
        source = self.sources[name]
        theirs = [self._tensor(self.stored[key]) for key in source.theirs]
        added = [self.added.get(key) for key in source.theirs]
        theirs = [more.to(tensor, source.turned) if more else tensor for more, tensor in zip(added, theirs)]
        ours = join(source, theirs, self.config)
        if source.words and rows is not None:
            ours = ours[:rows]
            if len(ours) < rows:
                ours = torch.cat([ours, ours.new_zeros(rows - len(ours), *ours.shape[1:])])
        return ours.contiguous()

    def digest(self) -> str:
        """A fingerprint of the weights: their headers, and samples of every file (reading all of it takes minutes)."""
        found = hashlib.sha256()
        files = {stored.file for stored in self.stored.values()} | {more.file for more in self.added.values()}
        for path in sorted(files):
            with path.open("rb") as file:
                size = path.stat().st_size
                found.update(f"{path.name} {size}".encode())
                for place in range(SAMPLES):
                    file.seek(max(0, size - SAMPLE_BYTES) * place // (SAMPLES - 1))
                    found.update(file.read(SAMPLE_BYTES))
        for key, more in sorted(self.added.items()):
            found.update(f"{key} {more.module} {more.scale!r}".encode())
        return found.hexdigest()

    def _tensor(self, stored: Stored) -> Tensor:
        with _opened(stored.file) as file:
            tensor: Tensor = file.get_tensor(stored.key)
        return tensor.clone()  # not a view of the file, whose alignment would change the order of sums


def open_directory(path: Path) -> HuggingFaceDirectory:
    """Read a directory's config and headers. One of adapters is its base with what they add.

    Raises:
        DataError: no such directory, another architecture, pickled weights only, missing, foreign or misshapen
            tensors: each named, with what was expected.
    """
    if is_adapter_directory(path):
        settings = read_adapter_config(path)
        base = open_directory(settings.base)
        shapes = {
            key: (base.stored[key].shape, source.turned)
            for name, source in base.sources.items()
            for key in source.theirs
            if name.startswith("blocks.") and len(base.stored[key].shape) > 1
        }
        return replace(base, added=read_adapters(path, settings, shapes, PREFIXES[base.architecture]))
    facts = _json(path / CONFIG, "a Hugging Face directory has a config.json")
    architecture, config, context, vocab_size = read_settings(path / CONFIG, facts)
    stored = _headers(path, architecture)
    found = {source.ours: source for source in sources(architecture, config, vocab_size, context)}
    absent = tuple(
        name for name, source in found.items() if source.optional and not any(key in stored for key in source.theirs)
    )
    directory = HuggingFaceDirectory(path, architecture, config, context, vocab_size, stored, found, absent)
    problems = [*_misfits(directory), *_foreign(directory)]
    if problems:
        raise DataError(*problems)
    return directory


def _misfits(directory: HuggingFaceDirectory) -> Iterator[Problem]:
    """Tensors that are missing or of another shape or type than the config says."""
    config, size = directory.config, directory.vocab_size
    shapes = {shape.name: shape.shape for shape in parameters(config, size, directory.context)}
    for name in directory.names():
        source = directory.sources[name]
        whole = (size, *shapes[name][1:]) if source.words else shapes[name]
        for number, key in enumerate(source.theirs):
            expected = _expected(source, whole, number, config)
            if key not in directory.stored:
                attempt = "is the directory complete?"
                what = f"there is no tensor {key}"
                yield Problem(where=str(directory.path), what=what, allowed=str(list(expected)), attempt=attempt)
                continue
            stored = directory.stored[key]
            if stored.shape != expected:
                attempt = f"does {CONFIG} belong to these weights?"
                what, got, allowed = f"{key} has another shape", str(list(stored.shape)), str(list(expected))
                yield Problem(where=str(stored.file), what=what, got=got, allowed=allowed, attempt=attempt)
            if stored.dtype not in FLOATS:
                what, attempt = f"{key} is of a type that no weight has", "weights that are not quantised"
                yield Problem(
                    where=str(stored.file), what=what, got=stored.dtype, allowed=", ".join(FLOATS), attempt=attempt
                )


def _expected(source: Source, whole: tuple[int, ...], number: int, config: ModelConfig) -> tuple[int, ...]:
    """The shape of one of the tensors that make up a parameter."""
    if source.attention and len(source.theirs) == 3:
        queries, kv = heads(config)
        rows = whole[0] // (queries + 2 * kv) * (queries if number == 0 else kv)
        return (rows, *whole[1:])
    return whole[::-1] if source.turned else whole


def _foreign(directory: HuggingFaceDirectory) -> Iterator[Problem]:
    """Tensors that belong to nothing."""
    known = {key for source in directory.sources.values() for key in source.theirs}
    ends = IGNORED[directory.architecture]
    for key, stored in directory.stored.items():
        if key in known or key.endswith(ends) or key == "lm_head.weight":  # a tied copy is not read
            continue
        what, attempt = f"the model has no place for {stored.key}", "a directory of the plain model, without additions"
        yield Problem(where=str(stored.file), what=what, got=str(list(stored.shape)), attempt=attempt)


# --------------------------------------------------------------------------- files


def _headers(path: Path, architecture: Architecture) -> dict[str, Stored]:
    """Every tensor by its full name of today."""
    if (path / INDEX).is_file():
        facts = _json(path / INDEX, "the list of weight files")
        listed = facts.get("weight_map")
        listed = listed if isinstance(listed, dict) else {"": ""}
        if any(not isinstance(name, str) or not name or Path(name).name != name for name in listed.values()):
            raise DataError(Problem(where=str(path / INDEX), what="its weight_map does not name files beside it"))
        files = [path / name for name in sorted(set(listed.values()))]
    elif (path / WEIGHTS).is_file():
        files = [path / WEIGHTS]
    else:
        pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
        what = "the weights are pickled, and opening a pickle can run any program; it was not opened"
        attempt = "save_pretrained(…, safe_serialization=True) where you trust the file"
        if not pickles:
            what, attempt = "there are no weights", f"{WEIGHTS}, or several files with {INDEX}"
        raise DataError(Problem(where=str(path), what=what, got=", ".join(pickles), allowed=WEIGHTS, attempt=attempt))
    missing = [file for file in files if not file.is_file()]
    if missing:
        what = "this file of weights is missing"
        raise DataError(*(Problem(where=str(file), what=what, attempt="fetch it again") for file in missing))
    found: dict[str, Stored] = {}
    for file in files:
        with _opened(file) as opened:
            for key in list(opened.keys()):
                piece = opened.get_slice(key)
                found[key] = Stored(file, key, tuple(piece.get_shape()), str(piece.get_dtype()))
    prefix = PREFIXES[architecture]
    body = any(key.startswith(prefix) for key in found)
    heads_of = ("lm_head.", "cls.")
    return {modern(key if body or key.startswith(heads_of) else prefix + key): stored for key, stored in found.items()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        what = f"this is not a readable safetensors file ({error})"
        raise DataError(Problem(where=str(path), what=what, attempt="fetch it again")) from None


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(Problem(where=str(path), what=f"there is no such file: {what}")) from None
    except (OSError, ValueError) as error:
        raise DataError(
            Problem(where=str(path), what=f"this is not JSON ({error})", attempt="fetch it again")
        ) from None
    if not isinstance(facts, dict):
        raise DataError(Problem(where=str(path), what="this is not a JSON object", attempt="fetch it again"))
    return facts


def in_parts(names: Sequence[str], sizes: dict[str, int], most: int) -> list[list[str]]:
    """Consecutive names in groups of at most so many bytes (one at least)."""
    groups: list[list[str]] = []
    held = 0
    for name in names:
        if not groups or held + sizes[name] > most:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += sizes[name]
    return groups
