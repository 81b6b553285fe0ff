r"""ARPA files, the text format that n-gram toolkits exchange (KenLM, SRILM, IRSTLM).

    \data\                       log₁₀ probability ⇥ words separated by spaces ⇥ log₁₀ back-off weight
    ngram 1=…                    one section an order, weights absent at the highest
    \1-grams:                    <s>, </s> and <unk> are words like others; our boundary is both of the former
    …
    \end\

Words may hold no white space, so tokens are written in the alphabet of tokenizer.json (byte pairs: GPT-2's printable
bytes), white space and the names of special words percent-encoded. A word of running text stays as it is, unless it
looks percent-encoded itself: toolkits score text with our files without knowing of this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO
from urllib.parse import quote, unquote

import numpy as np

from gradatim.config.settings import DataConfig, NgramConfig, RunConfig, TokenizerConfig
from gradatim.errors import DataError, LaunchError, Problem
from gradatim.interop.beside import remembered
from gradatim.models.ngram.model import NgramModel, make_table
from gradatim.text.tokenizer import Tokenizer, load_tokenizer
from gradatim.text.vocabulary import train_tokenizer

START, END, UNK = "<s>", "</s>", "<unk>"
NEVER = -99.0
"""What toolkits write for log₁₀ of zero."""
LN10 = math.log(10.0)
Grams = dict[tuple[int, ...], tuple[float, float]]
"""Log-probability and weight, in nats, of every n-gram of one order."""
_AWKWARD = re.compile(r"[\s\0]|%(?=[0-9A-Fa-f]{2})")
_SPECIAL = (START, END, UNK, "<UNK>")  # KenLM takes the last for unknown, too


def write_arpa(model: NgramModel, tokenizer: Tokenizer, path: Path) -> None:
    """Write a model; whatever reads ARPA scores with it as we do.

    Raises:
        DataError: additive smoothing, whose unseen words share a uniform rest, has no back-off form.
        LaunchError: the file cannot be written.
    """
    if model.config.smoothing == "additive":
        what = "additive smoothing has no back-off form, so ARPA cannot hold it"
        attempt = "train with --model.smoothing kneser-ney"
        raise DataError(Problem(where=str(path), what=what, allowed="kneser-ney or mle", attempt=attempt))
    names = token_names(tokenizer)
    names[model.boundary] = END
    if tokenizer.unknown is not None:
        names[tokenizer.unknown] = UNK
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            _write(file, model, names)
        partial.replace(path)
    except OSError as error:
        what = f"the file cannot be written ({error.strerror})"
        with suppress(OSError):
            partial.unlink()
        raise LaunchError(Problem(where=str(path), what=what, attempt="choose another place")) from None


def _write(file: TextIO, model: NgramModel, names: list[str]) -> None:
    sizes = [len(table.word) for table in model.tables]
    sizes[0] += 1  # <s>
    file.write("\\data\\\n" + "".join(f"ngram {k}={size}\n" for k, size in enumerate(sizes, start=1)))
    before: list[str] = []  # what each shorter k-gram reads as in front of another word
    for k, table in enumerate(model.tables, start=1):
        file.write(f"\n\\{k}-grams:\n")
        context = np.repeat(np.arange(len(table.first) - 1), np.diff(table.first)).tolist()
        words = table.word.tolist()
        texts = [names[w] if k == 1 else f"{before[c]} {names[w]}" for c, w in zip(context, words, strict=True)]
        weights = [""] * len(words)
        if table.weight is not None:
            # What ends in the boundary is nobody's context; the weight of its unigram is that of <s>.
            weights = [
                "\t0" if w == model.boundary else f"\t{_decimal(x)}" for w, x in zip(words, table.weight.tolist())
            ]
            if k == 1:
                file.write(f"0\t{START}\t{_decimal(float(table.weight[model.boundary]))}\n")
        elif k == 1:
            file.write(f"0\t{START}\n")
        # Rounding may lift a probability above 1, which KenLM refuses.
        probabilities = np.minimum(table.log_prob, 0.0).tolist()
        rows = zip(probabilities, texts, weights, strict=True)
        file.writelines(f"{_decimal(log_prob)}\t{text}{weight}\n" for log_prob, text, weight in rows)
        before = texts if k > 1 else [START if w == model.boundary else t for w, t in zip(words, texts, strict=True)]
    file.write("\n\\end\\\n")


def token_names(tokenizer: Tokenizer) -> list[str]:
    """Every token as a word of an ARPA file, by id.

    Raises:
        DataError: an id has no token, or an empty one.
    """
    tokens = [tokenizer.engine.id_to_token(i) or "" for i in range(tokenizer.vocab_size)]
    empty = [i for i, token in enumerate(tokens) if not token]
    if empty:
        what = "an ARPA file cannot hold an empty token"
        raise DataError(
            Problem(where="tokenizer.json", what=what, got=f"id {empty[0]}", attempt="train another tokenizer")
        )
    return [escape(token) for token in tokens]


def _decimal(natural: float) -> str:
    return f"{max(natural / LN10, NEVER):.7g}"


def escape(token: str) -> str:
    """A token as a word without white space, never that of a special one; ``unescape`` inverts it."""
    text = _AWKWARD.sub(lambda found: quote(found[0], safe=""), token)
    return quote(text[0], safe="") + text[1:] if text in _SPECIAL else text


def unescape(word: str) -> str:
    """The token of an escaped word."""
    return unquote(word)


# --------------------------------------------------------------------------- reading


def read_words(path: Path) -> list[str]:
    """The unigrams of an ARPA file in its order, for making a tokenizer; without ``<s> </s> <unk>``."""
    words = []
    for k, _, columns in _rows(path):
        if k > 1:
            break
        words.append(columns[1])
    return [word for word in words if word not in _SPECIAL]


def read_arpa(path: Path, ids: dict[str, int], vocab_size: int, boundary: int, unknown: int | None) -> NgramModel:
    """Read a model whose words have the given ids.

    Raises:
        DataError: with file and line, for anything that is not ARPA.
    """
    ids = {**ids, START: boundary, END: boundary}
    if unknown is not None:
        ids |= {UNK: unknown, "<UNK>": unknown}
    collected: list[Grams] = []
    marks: set[str] = set()
    for k, line, columns in _rows(path):
        while len(collected) < k:
            collected.append({})
        words = columns[1].split(" ")
        if len(words) != k:
            raise _wrong(path, line, f"{len(words)} words in the section of {k}-grams", columns[1])
        if unknown is None and UNK in words:  # every text has tokens here: nothing is unknown
            continue
        missing = [word for word in words if word not in ids]
        if missing:
            raise _wrong(path, line, "a word that is no unigram of this vocabulary", missing[0])
        if START in words[1:] or END in words[:-1]:
            raise _wrong(path, line, f"{START} can only stand first and {END} only last", columns[1])
        log_prob, weight = _natural(columns[0]), _natural(columns[2]) if len(columns) > 2 else 0.0
        if log_prob > 0:
            raise _wrong(path, line, "a probability above 1", columns[0])
        gram, grams = tuple(ids[word] for word in words), collected[k - 1]
        if k == 1 and words[0] in (START, END):  # </s> gives the probability, <s> the weight
            seen, held = words[0] in marks, grams.get(gram, (-math.inf, 0.0))
            marks.add(words[0])
            grams[gram] = (held[0], weight) if words[0] == START else (log_prob, held[1])
        else:
            seen = gram in grams
            grams[gram] = (log_prob, weight)
        if seen:
            raise _wrong(path, line, "the same n-gram a second time", columns[1])
    if not collected:
        raise DataError(Problem(where=str(path), what="this ARPA file holds no n-grams"))
    return _build(path, collected, vocab_size, boundary)


def _natural(log10: str) -> float:
    value = float(log10)
    return value * LN10 if value > NEVER else -math.inf


def _build(path: Path, collected: list[Grams], vocab_size: int, boundary: int) -> NgramModel:
    """Tables from the n-grams of each order."""
    tables = []
    parents: dict[tuple[int, ...], int] = {(i,): i for i in range(vocab_size)}
    rows: list[tuple[tuple[int, ...], int, float, float]]
    for k, grams in enumerate(collected, start=1):
        if k == 1:
            rows = [((i,), 0, *grams.get((i,), (-math.inf, 0.0))) for i in range(vocab_size)]
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


def _rows(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """(order, line number, columns) of every n-gram; the header's numbers must agree with what follows.

    Raises:
        DataError: the file cannot be read, is not ARPA, or not whole.
    """
    promised: dict[int, int] = {}
    found: dict[int, int] = {}
    section, number = -1, 0
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.rstrip("\r\n")
                if section < 0 or not line.strip():
                    section = 0 if line.strip() == "\\data\\" else section
                elif line.rstrip() == "\\end\\":
                    if promised != found:
                        raise _not_whole(path, number, str(found), str(promised))
                    return
                elif heading := _HEADING.fullmatch(line.rstrip()):
                    if int(heading[1]) != section + 1:
                        raise _not_whole(path, number, line, f"\\{section + 1}-grams:")
                    section += 1
                    found[section] = 0
                elif section == 0 and (size := _SIZE.fullmatch(line.rstrip())):
                    promised[int(size[1])] = int(size[2])
                else:
                    columns = line.split("\t")
                    if section == 0 or len(columns) not in (2, 3) or not _is_number(columns[0], *columns[2:]):
                        raise _wrong(path, number, "this is no n-gram", line[:60])
                    found[section] += 1
                    yield section, number, columns
    except UnicodeDecodeError as error:
        raise DataError(
            Problem(where=f"{path}:{number + 1}", what=f"this is not UTF-8 text ({error.reason})")
        ) from None
    except OSError as error:
        raise DataError(Problem(where=str(path), what=f"the file cannot be read ({error.strerror})")) from None
    raise _not_whole(path, number, "no \\end\\" if section >= 0 else "no \\data\\", f"{promised or 'header'}, \\end\\")


def _not_whole(path: Path, line: int, got: str, allowed: str) -> DataError:
    what = "this is not a whole ARPA file"
    attempt = "copy or write the file again"
    return DataError(Problem(where=f"{path}:{line}", what=what, got=got, allowed=allowed, attempt=attempt))


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

_REMARK = """imported from {!r}: model.order and data.tokenizer describe that file
Who estimated it, how and from which text is not known: data.train is empty, model.smoothing only says
that it backs off, and all that concerns training is at its default."""


def import_arpa(
    path: Path, directory: Path, tokenizer_path: Path | None = None, document: str | None = None
) -> NgramModel:
    """Make a run directory of an ARPA file; its words are those of text unless a tokenizer is given.

    ``document``: what ends with the end of a sentence, as ``data.document``; None: what the file beside it remembers,
    or a line, as elsewhere.

    Raises:
        ConfigError: there is a run in the directory already.
        DataError: not a whole ARPA file, or of other tokens than the tokenizer's.
    """
    from gradatim.train.checkpoint import save_checkpoint
    from gradatim.train.continuing import training_hash
    from gradatim.train.manifest import Manifest
    from gradatim.train.run_directory import MODEL, Run, config_error_existing, config_error_foreign

    if Run(directory).exists:
        raise config_error_existing(directory, "name another RUN")
    if Run(directory).foreign:
        raise config_error_foreign(directory, "name a RUN that is empty or new")
    if tokenizer_path is not None:
        tokenizer = load_tokenizer(tokenizer_path)
        ids = {name: i for i, name in enumerate(token_names(tokenizer))}
        told = TokenizerConfig(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size, path=str(tokenizer_path))
    else:
        words = read_words(path)
        known = set(words)
        told = TokenizerConfig(kind="word", vocab_size=None)
        tokenizer = train_tokenizer(told, [" ".join(words)])
        ids = {word: i for word, i in tokenizer.engine.get_vocab(with_added_tokens=False).items() if word in known}
    model = read_arpa(path, ids, tokenizer.vocab_size, tokenizer.boundary, tokenizer.unknown)
    document = document or remembered(path.parent) or "line"
    data = DataConfig(train=(), document=document, tokenizer=told)  # type: ignore[arg-type]
    config = RunConfig(model=model.config, data=data)
    run = Run.create(directory, config, tokenizer, remark=_REMARK.format(str(path)))
    manifest = Manifest(step=1, tokens=0, samples=0, config_hash=training_hash(config), data_fingerprint="",
                        tokenizer_fingerprint=tokenizer.fingerprint)  # fmt: skip
    save_checkpoint(run.checkpoints, manifest, {MODEL + name: value for name, value in model.tensors().items()})
    return model
