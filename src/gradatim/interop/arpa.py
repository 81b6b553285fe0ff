"""ARPA files, the text format that n-gram toolkits exchange (KenLM, SRILM, IRSTLM).

    \\data\\                       log₁₀ probability ⇥ words separated by spaces ⇥ log₁₀ back-off weight
    ngram 1=…                    one section an order, weights absent at the highest
    \\1-grams:                    <s>, </s> and <unk> are words like others; our boundary is both of the former
    …
    \\end\\

Words may hold no white space, so tokens are written in the alphabet of tokenizer.json (byte pairs: GPT-2's printable bytes), and
characters that are white space, ``%`` and our own specials are percent-encoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from urllib.parse import quote, unquote

import numpy as np

from gradatim.config.settings import DataConfig, NgramConfig, RunConfig, TokenizerConfig
from gradatim.errors import DataError, Problem
from gradatim.models.ngram.model import NgramModel, make_table
from gradatim.text.tokenizer import Tokenizer, load_tokenizer
from gradatim.text.vocabulary import train_tokenizer

START, END, UNK = "<s>", "</s>", "<unk>"
NEVER = -99.0
"""What toolkits write for log₁₀ of zero."""
LN10 = math.log(10.0)
_AWKWARD = re.compile(r"[\s%]")


def write_arpa(model: NgramModel, tokenizer: Tokenizer, path: Path) -> None:
    """Write a model; whatever reads ARPA scores with it as we do.

    Raises:
        DataError: additive smoothing, whose unseen words share a uniform rest, has no back-off form.
    """
    if model.config.smoothing == "additive":
        raise DataError(Problem(where=str(path), what="additive smoothing has no back-off form, so ARPA cannot hold it",
                                allowed="kneser-ney or mle", attempt="train with --model.smoothing kneser-ney"))  # fmt: skip
    names = [escape(tokenizer.engine.id_to_token(i)) for i in range(model.vocab_size)]
    names[model.boundary] = END
    if tokenizer.unknown is not None:
        names[tokenizer.unknown] = UNK
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        _write(file, model, names)
    partial.replace(path)


def _write(file: TextIO, model: NgramModel, names: list[str]) -> None:
    sizes = [len(table.word) for table in model.tables]
    sizes[0] += 1  # <s>
    file.write("\\data\\\n" + "".join(f"ngram {k}={size}\n" for k, size in enumerate(sizes, start=1)))
    # What each k-gram reads as when it stands before another word: there the boundary is <s>.
    before: list[str] = []
    for k, table in enumerate(model.tables, start=1):
        file.write(f"\n\\{k}-grams:\n")
        context = np.repeat(np.arange(len(table.first) - 1), np.diff(table.first)).tolist()
        words, weights = table.word.tolist(), [] if table.weight is None else table.weight.tolist()
        texts = [names[w] if k == 1 else f"{before[c]} {names[w]}" for c, w in zip(context, words, strict=True)]
        for i, (text, log_prob) in enumerate(zip(texts, table.log_prob.tolist(), strict=True)):
            opens = k == 1 and words[i] == model.boundary
            if opens:  # one id, two roles: its weight as a context is <s>'s
                file.write(f"0\t{START}\t{_decimal(weights[i]) if weights else 0}\n")
            weight = (
                f"\t{_decimal(weights[i])}"
                if weights and not opens and words[i] != model.boundary
                else "\t0"
                if weights
                else ""
            )
            file.write(f"{_decimal(log_prob)}\t{text}{weight}\n")
        before = texts
        if k == 1:
            before = [START if w == model.boundary else t for w, t in zip(words, texts, strict=True)]
    file.write("\n\\end\\\n")


def _decimal(natural: float) -> str:
    return f"{max(natural / LN10, NEVER):.7g}"


def escape(token: str) -> str:
    """A token without white space; ``unescape`` inverts it."""
    text = _AWKWARD.sub(lambda found: quote(found[0], safe=""), token)
    return quote(text[0], safe="").replace("<", "%3C") + text[1:] if text in (START, END, UNK) else text


def unescape(word: str) -> str:
    """The token of an escaped word."""
    return unquote(word)


# --------------------------------------------------------------------------- reading


def read_words(path: Path) -> list[str]:
    """The unigrams of an ARPA file in its order, for making a tokenizer; without ``<s> </s> <unk>``."""
    words = []
    with path.open(encoding="utf-8") as file:
        for k, _, columns in _rows(path, file):
            if k > 1:
                break
            words.append(columns[1])
    return [word for word in words if word not in (START, END, UNK)]


def read_arpa(path: Path, ids: dict[str, int], vocab_size: int, boundary: int, unknown: int | None) -> NgramModel:
    """Read a model whose words have the given ids.

    Raises:
        DataError: with file and line, for anything that is not ARPA.
    """
    ids = {**ids, START: boundary, END: boundary} | ({} if unknown is None else {UNK: unknown})
    collected: list[dict[tuple[int, ...], tuple[float, float]]] = []
    with path.open(encoding="utf-8") as file:
        for k, line, columns in _rows(path, file):
            while len(collected) < k:
                collected.append({})
            words = columns[1].split(" ")
            if len(words) != k:
                raise _wrong(path, line, f"{len(words)} words in the section of {k}-grams", columns[1])
            if k == 1 and words == [UNK] and unknown is None:  # every text has tokens here, nothing is unknown
                continue
            missing = [word for word in words if word not in ids]
            if missing:
                raise _wrong(path, line, "a word that is no unigram", missing[0])
            log_prob, weight = float(columns[0]) * LN10, float(columns[2]) * LN10 if len(columns) > 2 else 0.0
            gram = tuple(ids[word] for word in words)
            held = collected[k - 1].get(gram)
            if k == 1 and gram[0] == boundary:  # </s> gives the probability, <s> the weight
                held = held or (0.0, 0.0)
                collected[0][gram] = (held[0], weight) if words[0] == START else (log_prob, held[1])
                continue
            collected[k - 1][gram] = (log_prob, weight)
    return _build(path, collected, vocab_size, boundary)


def _build(
    path: Path, collected: list[dict[tuple[int, ...], tuple[float, float]]], vocab_size: int, boundary: int
) -> NgramModel:
    """Tables from {(ids): (log-probability, weight)} of each order."""
    tables = []
    parents = {(i,): i for i in range(vocab_size)}
    for k, grams in enumerate(collected, start=1):
        if k == 1:
            rows = [((i,), 0, *grams.get((i,), (NEVER * LN10, 0.0))) for i in range(vocab_size)]
        else:
            orphans = [gram for gram in grams if gram[:-1] not in parents]
            if orphans:
                what = f"{len(orphans)} {k}-grams have a context that is no {k - 1}-gram"
                raise DataError(
                    Problem(where=str(path), what=what, attempt="write the file again without pruning contexts")
                )
            rows = sorted(
                ((g, parents[g[:-1]], *values) for g, values in grams.items()), key=lambda row: (row[1], row[0][-1])
            )
        contexts = np.array([row[1] for row in rows], np.int64)
        first = np.concatenate([[0], np.cumsum(np.bincount(contexts, minlength=1 if k == 1 else len(parents)))])
        values = np.array([row[2:] for row in rows], np.float32).reshape(-1, 2)
        word = np.array([row[0][-1] for row in rows], np.int32)
        weight = values[:, 1].copy() if k < len(collected) else None
        tables.append(make_table(first, word, values[:, 0].copy(), weight, vocab_size))
        if k > 1:
            parents = {row[0]: i for i, row in enumerate(rows)}
    return NgramModel(NgramConfig(order=len(collected), smoothing="kneser-ney"), vocab_size, boundary, tables)


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, int, list[str]]]:
    """(order, line number, columns) of every n-gram; the header's numbers must agree with what follows."""
    promised: dict[int, int] = {}
    found: dict[int, int] = {}
    section, ended = -1, False
    try:
        for number, raw in enumerate(file, start=1):
            line = raw.strip("\n\r")
            if not line.strip() or section < 0:
                if line.strip() == "\\data\\":
                    section = 0
                continue
            if line == "\\end\\":
                ended = True
                break
            if heading := _HEADING.fullmatch(line):
                section = int(heading[1])
                found[section] = 0
            elif section == 0 and (size := _SIZE.fullmatch(line)):
                promised[int(size[1])] = int(size[2])
            else:
                columns = line.split("\t")
                if section == 0 or len(columns) not in (2, 3) or not _is_number(columns[0], *columns[2:]):
                    raise _wrong(path, number, "this is no n-gram", line[:60])
                found[section] += 1
                yield section, number, columns
    except UnicodeDecodeError as error:
        raise DataError(Problem(where=str(path), what=f"this is not UTF-8 text ({error.reason})")) from None
    if not ended or promised != found:
        got = f"{found}, {'ended' if ended else 'no end mark'}"
        raise DataError(Problem(where=str(path), what="this is not a whole ARPA file", got=got, allowed=f"{promised} and \\end\\",
                                attempt="copy or write the file again"))  # fmt: skip


_HEADING = re.compile(r"\\(\d+)-grams:")
_SIZE = re.compile(r"ngram\s+(\d+)\s*=\s*(\d+)")


def _is_number(*texts: str) -> bool:
    try:
        return all(math.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


def _wrong(path: Path, line: int, what: str, got: str) -> DataError:
    return DataError(
        Problem(where=f"{path}:{line}", what=what, got=got, allowed="log10 probability, tab, words, tab, log10 weight")
    )


# --------------------------------------------------------------------------- a run of it


def import_arpa(path: Path, directory: Path, tokenizer_path: Path | None = None) -> NgramModel:
    """Make a run directory of an ARPA file; its words are those of text unless a tokenizer is given.

    Raises:
        ConfigError: there is a run in the directory already.
        DataError: not a whole ARPA file, or of other tokens than the tokenizer's.
    """
    from gradatim.train.checkpoint import save_checkpoint
    from gradatim.train.manifest import Manifest
    from gradatim.train.run_directory import MODEL, Run, config_error_existing, training_hash

    if Run(directory).exists:
        raise config_error_existing(directory)
    words = read_words(path)
    if tokenizer_path is not None:
        tokenizer = load_tokenizer(tokenizer_path)
        ids = {escape(tokenizer.engine.id_to_token(i)): i for i in range(tokenizer.vocab_size)}
    else:
        tokenizer = train_tokenizer(TokenizerConfig(kind="word", vocab_size=None), [" ".join(map(unescape, words))])
        ids = {escape(token): number for token, number in tokenizer.engine.get_vocab(with_added_tokens=False).items()}
        ids |= {word: ids[escape(unescape(word))] for word in words if escape(unescape(word)) in ids}
    model = read_arpa(path, ids, tokenizer.vocab_size, tokenizer.boundary, tokenizer.unknown)
    config = RunConfig(model=model.config, data=DataConfig(train=(str(path),), document="line"))
    run = Run.create(directory, config, tokenizer)
    manifest = Manifest(step=1, tokens=0, samples=0, config_hash=training_hash(config), data_fingerprint="",
                        tokenizer_fingerprint=tokenizer.fingerprint)  # fmt: skip
    save_checkpoint(run.checkpoints, manifest, {MODEL + name: value for name, value in model.tensors().items()})
    return model
