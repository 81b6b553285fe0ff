"""Sentence pairs: aligned files, tables (.tsv, .jsonl, .parquet, Hugging Face data sets), the embedded phrasebook.

What is odd is mended as in plain text (``sources.py``), and counted: pairs with an empty side are dropped. A corpus
that says everything several ways ("Run!" with two translations, "Cours !" of two sentences) leaks through any random
split; ``component`` takes the graph whose edges are the pairs and holds out whole connected components of it.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gradatim.config.rules_pairs import PAIR_CORPORA
from gradatim.config.settings import DataConfig
from gradatim.errors import DataError, Problem
from gradatim.text.sources import Tally, files_of, json_rows, lines_of, mend, package, refuse_binary

Pair = tuple[str, str]
MODULES = {"phrasebook": "gradatim.text.phrasebook"}
"""Embedded pairs: a module with ``LANGUAGES`` and ``corpus() -> {split: [(first, second), …]}``."""


def brings_its_own_parts(data: DataConfig) -> bool:
    """Whether all training pairs are embedded ones, which have validation and test parts."""
    given = data.valid or data.test or data.valid_source or data.test_source
    return bool(data.train) and not given and all(name in PAIR_CORPORA for name in data.train)


def read_pairs(data: DataConfig, split: str, tally: Tally) -> list[Pair]:
    """The (source, target) pairs of a split, in order; those of a split that is not named are none.

    Raises:
        DataError: a file is missing, lacks a language, or the two of a pair differ in length.
        LaunchError: a package that this kind of source needs is not installed.
    """
    return read_splits(data, [split], {split: tally, "train": tally})[split]


def read_splits(data: DataConfig, splits: Sequence[str], tallies: Mapping[str, Tally]) -> dict[str, list[Pair]]:
    """The pairs of several splits; of one corpus that is shared out, ``train``'s tally counts what it lacks.

    Raises:
        DataError, LaunchError: as ``read_pairs``.
    """
    if data.split != "component":
        return {split: list(_kept(_named(data, split, tallies[split]), tallies[split])) for split in splits}
    everything = list(_kept(_named(data, "train", tallies["train"]), tallies["train"]))
    shared: dict[str, list[Pair]] = {split: [] for split in splits}
    for pair, part in zip(everything, parts(everything, data.held_out), strict=True):
        if part in shared:
            shared[part].append(pair)
    return shared


def embedded_pairs(name: str) -> dict[str, list[Pair]]:
    """The parts of embedded pairs, in the order of the module's languages."""
    found: dict[str, list[Pair]] = importlib.import_module(MODULES[name]).corpus()
    return found


def _kept(pairs: Iterator[Pair], tally: Tally) -> Iterator[Pair]:
    for source, target in pairs:
        source, target = source.strip(), target.strip()
        if source.strip("\ufeff") and target.strip("\ufeff"):
            tally.documents += 1
            tally.bytes += len(target.encode()) + 1
            yield source, target
        elif source or target:
            tally.dropped["pairs with an empty side"] += 1
        else:
            tally.dropped["empty pairs"] += 1


def _named(data: DataConfig, split: str, tally: Tally) -> Iterator[Pair]:
    sources, targets = getattr(data, f"{split}_source"), getattr(data, f"{split}_target")
    for source, target in zip(sources, targets, strict=True):
        yield from _aligned(split, source, target, tally)
    names = data.train if brings_its_own_parts(data) else getattr(data, split)
    for name in names:
        yield from _table(name, split, data, tally)


# --------------------------------------------------------------------------- two files


def _aligned(split: str, source: str, target: str, tally: Tally) -> Iterator[Pair]:
    files = []
    for side, name in (("source", source), ("target", target)):
        found = files_of(name)
        if len(found) != 1:
            raise DataError(Problem(where=f"data.{split}_{side}", what="there is no such file" if not found
                                    else "aligned files are named one by one", got=name,
                                    allowed="one text file, a sentence a line", attempt="check the path"))  # fmt: skip
        files.append(found[0])
    with files[0].open("rb") as first, files[1].open("rb") as second:
        refuse_binary(files[0], first)
        refuse_binary(files[1], second)
        lines = zip_longest(lines_of(first, tally), lines_of(second, tally))
        for number, (one, other) in enumerate(lines):
            if one is None or other is None:
                longer = number + 1 + sum(1 for _ in (first if other is None else second))
                lengths = (longer, number) if other is None else (number, longer)
                raise DataError(Problem(where=f"{source} and {target}", what="the two files are not aligned",
                                        got=f"{lengths[0]:,} and {lengths[1]:,} lines", allowed="equally many",
                                        attempt="line n of one must translate line n of the other"))  # fmt: skip
            yield one, other


# --------------------------------------------------------------------------- tables


def _table(name: str, split: str, data: DataConfig, tally: Tally) -> Iterator[Pair]:
    languages = (str(data.source_language), str(data.target_language))
    if name in MODULES:
        module = importlib.import_module(MODULES[name])
        places = [module.LANGUAGES.index(language) for language in languages]
        yield from ((pair[places[0]], pair[places[1]]) for pair in embedded_pairs(name)[split])
        return
    if name.startswith("hf:"):
        rows: Iterator[tuple[str, Any]] = ((name, row) for row in hugging_face_rows(name, split))
        yield from (_cells(row, languages, where, tally) for where, row in rows)
        return
    files = files_of(name)
    if not files:
        raise DataError(Problem(where=f"data.{split}", what="there is no such file or corpus of pairs", got=name,
                                allowed=f"a .tsv, .jsonl or .parquet file, hf:NAME, {', '.join(MODULES)}",
                                attempt="check the path, or name data.train_source and data.train_target"))  # fmt: skip
    for path in files:
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            yield from (_cells(row, languages, where, tally) for where, row in json_rows(path, tally))
        elif path.suffix == ".parquet":
            yield from (_cells(row, languages, str(path), tally) for row in parquet_rows(path))
        else:
            yield from _tabs(path, data.columns, languages, tally)


def _tabs(path: Path, columns: tuple[str, ...], languages: Pair, tally: Tally) -> Iterator[Pair]:
    with path.open("rb") as file:
        refuse_binary(path, file)
        places, width = _places(path, columns, languages), 0
        for number, line in enumerate(lines_of(file, tally), start=1):
            cells = line.rstrip("\n").split("\t")
            if number == 1 and set(languages) <= set(cells):
                tally.dropped["lines that name the columns"] += 1
                width = len(cells)
                continue
            if not line.strip():
                tally.dropped["empty pairs"] += 1
                continue
            if len(cells) <= max(places):
                raise DataError(Problem(where=f"{path}:{number}", what="this line lacks a column",
                                        got=f"{len(cells)} columns", allowed=f"{max(places) + 1} or more",
                                        attempt="columns are separated by tabs; one language a file is named by "
                                        "data.train_source and data.train_target"))  # fmt: skip
            width = width or len(cells)
            if len(cells) != width:
                tally.dropped["lines with another number of columns"] += 1
            yield cells[places[0]], cells[places[1]]


def _places(path: Path, columns: tuple[str, ...], languages: Pair) -> list[int]:
    """Which columns hold the languages: as the first line names them, or else the setting."""
    with path.open("rb") as file:
        first = next(lines_of(file, Tally()), "").rstrip("\n").split("\t")
    named = first if set(languages) <= set(first) else list(columns)
    if not set(languages) <= set(named):
        raise DataError(Problem(where=str(path), what="this table does not say which language its columns hold",
                                allowed=f"data.columns, or a first line, with {' and '.join(languages)}",
                                attempt=f"--data.columns {','.join(languages)}, or for one language a file "
                                "--data.train_source FILE --data.train_target FILE"))  # fmt: skip
    return [named.index(language) for language in languages]


def _cells(row: Any, languages: Pair, where: str, tally: Tally) -> Pair:
    """The two languages of a row, which may lie under ``translation`` as in Hugging Face's data sets."""
    inner = row.get("translation", row) if isinstance(row, dict) else row
    found = [inner.get(language) if isinstance(inner, dict) else None for language in languages]
    for language, text in zip(languages, found):
        if not isinstance(text, str):
            have = ", ".join(map(str, inner)) if isinstance(inner, dict) else type(inner).__name__
            raise DataError(Problem(where=where, what=f"there is no text in column {language!r}", got=have,
                                    allowed=" and ".join(languages),
                                    attempt="--data.source_language NAME --data.target_language NAME"))  # fmt: skip
    return mend(str(found[0]), tally), mend(str(found[1]), tally)


def parquet_rows(path: Path) -> Iterator[Any]:
    """The rows of a .parquet file. Raises DataError where it is none."""
    parquet = package("pyarrow.parquet", "hf")
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has a family of its own
        raise DataError(Problem(where=str(path), what=f"this is not a parquet file: {error}",
                                attempt="fetch the file again, or name a table .tsv")) from None  # fmt: skip
    for batch in file.iter_batches():
        yield from batch.to_pylist()


def hugging_face_rows(name: str, split: str) -> Iterator[Any]:
    """``hf:NAME``, ``hf:NAME:CONFIG`` or ``hf:NAME:CONFIG:SPLIT``."""
    datasets = package("datasets", "hf")
    parts = name.removeprefix("hf:").split(":")
    chosen = parts[2] if len(parts) > 2 else {"train": "train", "valid": "validation", "test": "test"}[split]
    try:
        rows = datasets.load_dataset(parts[0], parts[1] or None if len(parts) > 1 else None, split=chosen)
    except Exception as error:
        raise DataError(Problem(where=name, what=f"the data set cannot be loaded: {error}",
                                attempt="check its name and the network, or name files")) from None  # fmt: skip
    yield from rows


# --------------------------------------------------------------------------- splitting by component


def parts(pairs: list[Pair], held_out: tuple[float, float]) -> list[str]:
    """Which part each pair belongs to: whole connected components, in the order of a hash of their least sentence.

    A component larger than a tenth of the smaller part it could go to is training: some corpora hang together in one.
    """
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for source, target in pairs:
        one, other = root((0, source)), root((1, target))
        if one != other:
            parent[max(one, other)] = min(one, other)
    members: dict[tuple[int, str], list[int]] = {}
    for number, (source, _) in enumerate(pairs):
        members.setdefault(root((0, source)), []).append(number)
    valid, test = (round(share * len(pairs)) for share in held_out)
    largest = max(1, min(size for size in (valid, test, len(pairs)) if size) // 10)
    found = ["train"] * len(pairs)
    order = sorted(members, key=lambda node: hashlib.blake2b(node[1].encode("utf-8", "replace")).digest())
    left = {"test": test, "valid": valid}
    for node in order:
        part = next((name for name, room in left.items() if room >= len(members[node])), None)
        if part is None or len(members[node]) > largest:
            continue
        left[part] -= len(members[node])
        for number in members[node]:
            found[number] = part
    return found
