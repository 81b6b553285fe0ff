"""Tokenizers: characters, words, byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), WordPiece.

All are kept as a ``tokenizer.json`` that the ``tokenizers`` library reads with the same ids; it also trains the
vocabularies (one exception: given the boundary's name as a whole word, the library answers with the special id, we
never do). Encoding takes whichever engine is quickest: a dictionary for characters and words, ``tiktoken`` for byte
pairs.

A *boundary* token closes every document. Text never becomes it: ``encode("<|endoftext|>")`` is thirteen characters of
text, so nobody can end a document by writing its name.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from gradatim.errors import DataError, Problem
from gradatim.text.words import LIBRARY_SPACE, LIBRARY_WORDS, lower, split_words

BOUNDARY, UNKNOWN = "<|endoftext|>", "<unk>"
Ids = NDArray[np.int64]

# GPT-2's pre-tokenisation: contractions, then runs of letters, digits or others with the space before them.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ANY_CHARACTER = r"[\s\S]"


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids with which BERT lays out a row: ``[CLS] A [SEP] B [SEP] [PAD] …``, with [MASK] for blanks."""

    pad: int
    begin: int
    """[CLS]"""
    end: int
    """[SEP]"""
    blank: int
    """[MASK]"""
    unknown: int


class Tokenizer(ABC):
    """Text to ids and back."""

    kind: Literal["char", "word", "bpe", "wordpiece"]
    """What a config calls it."""
    marks: Marks | None = None
    """What BERT needs besides words; None where a tokenizer has no such tokens."""

    lossless: bool
    """Whether decoding returns every text whose encoding has no unknown token."""
    lowercase: bool = False
    """Whether text is folded to lower case first."""
    prepends: bool = False
    """Whether a space is put before every text, also before one that begins with a space."""

    def __init__(self, engine: tokenizers.Tokenizer, boundary: str, unknown: str | None) -> None:
        self.engine = engine
        self.vocab_size: int = engine.get_vocab_size(with_added_tokens=True)
        self.boundary = _id(engine, boundary)
        self.opening = self.boundary
        """What is read before a text that begins; of Llama a token of its own."""
        self.unknown: int | None = None if unknown is None else _id(engine, unknown)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without boundary."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; boundaries are left out."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of several texts."""
        return [np.asarray(self.encode(text), np.int64) for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids."""
        return self.decode(ids).encode()

    def token_text(self, token: int) -> str:
        """One token as text for people; the boundary and unknown by name."""
        return str(self.engine.id_to_token(token))

    def token_bytes(self, token: int) -> bytes | None:
        """The bytes one token stands for wherever it occurs, or None where that depends on its neighbours."""
        return None

    def unseen(self, text: str) -> list[str]:
        """What of a text became the unknown token, where the pieces of a text are known by name."""
        return []

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer.json's content, however it is laid out."""
        content = json.dumps(json.loads(self.engine.to_str()), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self.engine.to_str(pretty=False) + "\n", encoding="utf-8")


class _TableTokenizer(Tokenizer):
    """Pieces looked up in a dictionary, unknown ones becoming one token."""

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        super().__init__(engine, BOUNDARY, UNKNOWN)
        self.ids: dict[str, int] = engine.get_vocab(with_added_tokens=False)
        # Text that happens to read like a special token is text: unknown, unless it is in the table in its own right.
        self.ids = {piece: number for piece, number in self.ids.items() if piece not in (BOUNDARY, UNKNOWN)}
        self.pieces = [str(engine.id_to_token(number)) for number in range(self.vocab_size)]

    def _look_up(self, pieces: Iterable[str]) -> list[int]:
        get, unknown = self.ids.get, self.unknown
        return [get(piece, unknown) for piece in pieces]  # type: ignore[misc]  # unknown is an int here


class CharTokenizer(_TableTokenizer):
    """A token is a Unicode character."""

    kind = "char"
    lossless = True

    def encode(self, text: str) -> list[int]:
        """One id a character."""
        return self._look_up(text)

    def unseen(self, text: str) -> list[str]:
        """Characters outside the vocabulary."""
        return [character for character in text if character not in self.ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters; an unknown one becomes U+FFFD."""
        pieces = self.pieces
        return "".join("\ufffd" if i == self.unknown else pieces[i] for i in ids if i != self.boundary)

    def token_bytes(self, token: int) -> bytes | None:
        """UTF-8 of the character."""
        return self.decode([token]).encode()


class WordTokenizer(_TableTokenizer):
    """A token is a word; white space (and, with ``split: words``, punctuation) is lost."""

    kind = "word"
    lossless = False

    def __init__(self, engine: tokenizers.Tokenizer, split: str, lowercase: bool) -> None:
        super().__init__(engine)
        self.split, self.lowercase = split, lowercase

    def encode(self, text: str) -> list[int]:
        """One id a word."""
        return self._look_up(split_words(text, self.split, self.lowercase))

    def unseen(self, text: str) -> list[str]:
        """Words outside the vocabulary."""
        return [word for word in split_words(text, self.split, self.lowercase) if word not in self.ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Words separated by spaces."""
        return " ".join(self.pieces[i] for i in ids if i != self.boundary)


class BpeTokenizer(Tokenizer):
    """Byte-level byte-pair encoding: any bytes go in and come out again.

    ``tiktoken`` merges the adjacent pair whose *joined bytes* have the lowest id, ``tokenizers`` the pair named by
    the lowest merge. They agree when (a) merges are numbered in the order of their results' ids, each after its
    parts, and (b) every token is what merging its own bytes gives. For suppose both have merged alike up to token z
    and tiktoken now joins an adjacent p and q to the bytes of z: no merge has crossed the edges of that span, so
    inside it the same happened as when z's bytes stand alone, where by (b) the two parts left are those of z's
    merge. Training gives tables with both properties; loading verifies them, so that another table is refused and
    never encoded differently.
    """

    kind = "bpe"

    def __init__(self, engine: tokenizers.Tokenizer, boundary: str, lowercase: bool = False) -> None:
        import tiktoken

        super().__init__(engine, boundary, None)
        self.lowercase, self.lossless = lowercase, not lowercase
        engine.encode_special_tokens = True  # the name of the boundary is text like any other
        facts = json.loads(engine.to_str())
        opening = template_opening(facts)
        self.opening = self.boundary if opening is None else opening
        added = {entry["content"]: entry for entry in facts["added_tokens"]}
        if any(not entry["special"] for entry in added.values()):
            raise DataError(foreign("it has added tokens that are not special"))
        vocabulary = {p: i for p, i in engine.get_vocab(with_added_tokens=False).items() if p not in added}
        _verify_merges(facts["model"], vocabulary, engine)
        to_byte = {character: byte for byte, character in byte_characters().items()}
        ranks = {bytes(to_byte[c] for c in piece): i for piece, i in vocabulary.items()}
        self.vocab_size = max([*ranks.values(), *(entry["id"] for entry in added.values())]) + 1  # ids may have holes
        self.bytes = [b""] * self.vocab_size
        for raw, number in ranks.items():
            self.bytes[number] = raw
        self.single = [ranks[bytes([value])] for value in range(256)]
        # Named so that tiktoken searches for one word (which, found, stays text) and does not stop at each character.
        specials = {boundary: self.boundary}
        self._fast = tiktoken.Encoding("gradatim", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=specials)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; surrogates, which are no characters, become U+FFFD as everywhere in Python's codecs."""
        return list(self._encode(text).tolist())

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of several texts, without a Python list in between."""
        return [self._encode(text).astype(np.int64) for text in texts]

    def _encode(self, text: str) -> NDArray[np.uint32]:
        if self.lowercase:
            text = lower(text)
        # No piece holds a space or line end after something else, so cutting there changes nothing and bounds memory.
        if len(text) <= SLICE:
            return self._encode_slice(text)
        parts, first = [], 0
        while first < len(text):
            end = first + SLICE
            if end < len(text):
                found = _WHITE_SPACE_BEGINS.search(text, end)
                end = found.start() + 1 if found else len(text)
            parts.append(self._encode_slice(text[first:end]))
            first = end
        return np.concatenate(parts)

    def _encode_slice(self, text: str) -> NDArray[np.uint32]:
        try:
            return self._fast.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # a megabyte of white space overflows its stack; the slower engine has none
            return np.asarray(self.engine.encode(characters(text), add_special_tokens=False).ids, np.uint32)

    def encode_bytes(self, raw: bytes) -> list[int]:
        """The ids of any bytes; those that are not UTF-8 become tokens of one byte."""
        text = raw.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for piece in re.split("([\udc80-\udcff])", text):
            if len(piece) == 1 and "\udc80" <= piece <= "\udcff":
                ids.append(self.single[ord(piece) - 0xDC00])
            else:
                ids += self.encode(piece)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes, exactly."""
        table = self.bytes
        return b"".join([table[int(i)] for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        """The text of a token; incomplete characters as escapes."""
        name = str(self.engine.id_to_token(token))  # of special ones, which stand for no bytes
        return self.bytes[token].decode("utf-8", "backslashreplace") or name

    def token_bytes(self, token: int) -> bytes:
        """The token's bytes."""
        return self.bytes[token]


class WordPieceTokenizer(Tokenizer):
    """BERT's sub-words: the longest known start of a word, then the longest known ``##`` continuations."""

    kind = "wordpiece"
    lossless = False

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        super().__init__(engine, "[SEP]", "[UNK]")
        engine.encode_special_tokens = True
        names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
        found = [token for name in names if (token := engine.token_to_id(name)) is not None]
        if len(found) == len(names):
            self.marks = Marks(*found)

    def encode(self, text: str) -> list[int]:
        """Ids by the library's own engine."""
        return list(self.engine.encode(characters(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids by the library's own engine, a batch at a time."""
        found = self.engine.encode_batch([characters(text) for text in texts], add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int64) for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Words put together again, separated by spaces."""
        return str(self.engine.decode([int(i) for i in ids if i != self.boundary], skip_special_tokens=False))


SLICE = 1 << 20
_WHITE_SPACE_BEGINS = re.compile(r"\S(?=[ \n])")  # white space in every dialect; Python's \s holds more than Rust's


def characters(text: str) -> str:
    """The text with U+FFFD for surrogates, which stand for bytes that are no UTF-8 in a command's arguments."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable Latin-1, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def _id(engine: tokenizers.Tokenizer, token: str) -> int:
    number = engine.token_to_id(token)
    if number is None:
        raise DataError(foreign(f"it has no token {token}"))
    return int(number)


def _verify_merges(model: dict[str, Any], vocabulary: dict[str, int], engine: tokenizers.Tokenizer) -> None:
    """Refuse a table for which ``BpeTokenizer``'s two engines could differ, or that cannot spell every byte."""
    if set(byte_characters().values()) - vocabulary.keys():
        raise DataError(foreign("its vocabulary lacks some of the 256 bytes"))
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise DataError(foreign("it uses merge dropout, prefixes or suffixes"))
    last = -1
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        parts, number = [vocabulary.get(left), vocabulary.get(right)], vocabulary.get(left + right)
        if number is None or None in parts or number <= last:
            raise DataError(foreign("its merges are not in the order of its ids"))
        if any(len(part) > 1 and vocabulary[part] >= number for part in (left, right)):
            raise DataError(foreign("a merge comes before its parts"))
        last = number
    for piece, number in vocabulary.items():
        if [token.id for token in engine.model.tokenize(piece)] != [number]:
            raise DataError(foreign(f"merging the bytes of its token {piece!r} does not give that token"))


# --------------------------------------------------------------------------- loading


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json: one of ours, or any byte-level or sentencepiece BPE with an end-of-text token.

    Raises:
        DataError: no such file, not a tokenizer, or a kind that we cannot reproduce exactly.
    """
    try:
        engine = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            Problem(where=str(path), what="there is no such tokenizer", attempt="name a tokenizer.json")
        ) from None
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise DataError(foreign(f"it cannot be read: {error}", str(path))) from None
    try:
        return wrap(engine)
    except DataError as error:
        raise DataError(*(replace(problem, where=str(path)) for problem in error.problems)) from None


def wrap(engine: tokenizers.Tokenizer) -> Tokenizer:
    """The tokenizer that encodes as ``engine`` does, by whichever means is quickest; texts whole, and not filled up."""
    engine.no_truncation()
    engine.no_padding()
    facts = json.loads(engine.to_str())
    kind, before = facts["model"]["type"], facts.get("pre_tokenizer") or {}
    lowercase = (facts.get("normalizer") or {}).get("type") == "Lowercase"
    if kind == "WordLevel" and engine.token_to_id(BOUNDARY) is not None:
        pattern = (before.get("pattern") or {}).get("Regex")
        if pattern == ANY_CHARACTER:
            return CharTokenizer(engine)
        if pattern == LIBRARY_SPACE:
            return WordTokenizer(engine, "whitespace", lowercase)
        if pattern == LIBRARY_WORDS:
            return WordTokenizer(engine, "words", lowercase)
    if kind == "WordPiece" and engine.token_to_id("[SEP]") is not None:
        return WordPieceTokenizer(engine)
    byte_level = (
        before.get("type") == "ByteLevel" and not before.get("add_prefix_space") and before.get("use_regex", True)
    )
    whole_words = facts["model"].get("ignore_merges")  # tokens that no merge makes, which BpeTokenizer has not
    if kind == "BPE" and byte_level and not whole_words and (facts.get("normalizer") is None or lowercase):
        for boundary in (BOUNDARY, "</s>", "<|end_of_text|>"):
            if engine.token_to_id(boundary) is not None:
                return BpeTokenizer(engine, boundary, lowercase)
        raise DataError(foreign("it has no end-of-text token"))
    if kind == "BPE":
        from gradatim.text.library import LibraryTokenizer

        return LibraryTokenizer(engine)
    raise DataError(foreign(f"its kind ({kind} after {before.get('type')}) is not supported"))


def steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or post-processor, whether it is one or a sequence."""
    if step is None:
        return
    inner = next((step[name] for name in ("normalizers", "pretokenizers", "processors") if name in step), None)
    if inner is None:
        yield step
    for each in inner or ():
        yield from steps(each)


def template_opening(facts: Mapping[str, Any]) -> int | None:
    """The token that the file's own template puts before a text."""
    for step in steps(facts.get("post_processor")):
        first = (step.get("single") or [{}])[0] if step.get("type") == "TemplateProcessing" else {}
        if "SpecialToken" in first:
            found: int = step["special_tokens"][first["SpecialToken"]["id"]]["ids"][0]
            return found
    return None


def foreign(what: str, where: str = "tokenizer.json") -> Problem:
    """What is to be said of a tokenizer that cannot be used."""
    return Problem(
        where=where,
        what=f"this tokenizer cannot be used: {what}",
        allowed="a tokenizer.json of gradatim, a WordPiece like BERT's, or a BPE, byte-level or of sentencepiece, with "
        "<|endoftext|> or </s>",
        attempt="train one: data.tokenizer.kind bpe",
    )
