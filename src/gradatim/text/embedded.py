"""The corpora that come with every installation: documentation, read from source files and never imported.

``python-manual`` is ``pydoc_data.topics`` (chapters of the language reference) and the docstrings of the standard
library, about two megabytes of English; ``installed-docs`` adds the docstrings of NumPy and PyTorch. A document is
a topic or a module. Which part of a corpus a document belongs to follows from a hash of its name, so it never
moves, and the validation and test parts of the smaller corpus lie inside those of the larger. Paragraphs that occur
in an earlier part (train, then validation) are removed from the later ones: documentation copies itself.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SPLITS = ("train", "valid", "test")
CORPORA = {"python-manual": (), "installed-docs": ("numpy", "torch")}
"""Name of a corpus and the packages whose docstrings it adds to the manual."""

FORMAT = 1  # part of the cache's key: raise it when the reading below changes
SKIPPED = {"test", "tests", "testing", "_vendor", "idlelib", "idle_test", "lib2to3", "turtledemo", "site-packages",
           "dist-packages", "__pycache__", "pydoc_data"}  # fmt: skip
SHORT = 40
"""Paragraphs below this many characters are too common to count as copies."""

Documents = dict[str, str]


def corpus(name: str, cache: Path) -> dict[str, Documents]:
    """The three parts of an embedded corpus, each a mapping from document name to text in a fixed order.

    Reading a thousand source files takes seconds, so the result is kept in ``cache``, by versions.
    """
    packages = CORPORA[name]
    versions = [f"{package}-{importlib.metadata.version(package)}" for package in packages]
    key = hashlib.sha256(repr((FORMAT, platform.python_version(), versions)).encode()).hexdigest()[:12]
    path = cache / f"{name}-{key}.json"
    if path.is_file():
        kept: dict[str, Documents] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    parts = _split(dict(_documents(packages)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(parts), encoding="utf-8")
    partial.replace(path)
    return parts


def digest(parts: dict[str, Documents]) -> str:
    """sha256 of all names and texts, for the record of a run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def part_of(name: str) -> str:
    """Which part a document belongs to: 90 % train, 5 % validation, 5 % test, by its name alone."""
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % 100
    return "train" if number < 90 else "valid" if number < 95 else "test"


def _split(documents: Documents) -> dict[str, Documents]:
    parts: dict[str, Documents] = {split: {} for split in SPLITS}
    seen: set[str] = set()
    for split in SPLITS:
        mine: set[str] = set()
        for name, text in documents.items():
            if part_of(name) != split:
                continue
            paragraphs = text.split("\n\n")
            kept = [p for p in paragraphs if len(p.strip()) < SHORT or p.strip() not in seen]
            mine.update(p.strip() for p in kept)
            if any(len(p.strip()) >= SHORT for p in kept):
                parts[split][name] = "\n\n".join(kept)
        seen |= mine
    return parts


def _documents(packages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    yield from _topics(library / "pydoc_data" / "topics.py")
    yield from _docstrings("", library)
    for package in packages:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield from _docstrings(f"{package}.", Path(folder))


def _topics(path: Path) -> Iterator[tuple[str, str]]:
    """The chapters, a dictionary literal of strings."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None:
                    yield f"topic:{ast.literal_eval(key)}", str(ast.literal_eval(value)).strip()


def _docstrings(prefix: str, root: Path) -> Iterator[tuple[str, str]]:
    """Every module's docstrings, in source order, blank lines between."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(parts):
            continue
        texts = [
            inspect.cleandoc(found.value.value)
            for node in ast.walk(_parse(path))
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body
            if isinstance(found := node.body[0], ast.Expr) and isinstance(found.value, ast.Constant)
            if isinstance(found.value.value, str)
        ]
        text = "\n\n".join(text for text in texts if text)
        if text:
            yield prefix + ".".join(parts), text.encode("utf-8", "replace").decode()


def _parse(path: Path) -> ast.AST:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's source
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # a template or a file of another Python
        return ast.Module(body=[], type_ignores=[])
