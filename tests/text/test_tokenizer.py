"""Tokenizers: exact round trips, the ids of the library that defines the file, and no text that becomes special."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.config.settings import TokenizerConfig
from gradatim.errors import DataError
from gradatim.text.tokenizer import SLICE, BpeTokenizer, Tokenizer, load_tokenizer
from gradatim.text.vocabulary import pieces, train_tokenizer
from gradatim.text.words import split_words

TEXT = [
    "the more I read, the more I learn, and I like it more than anything else. " * 3,
    'def read(self, size=-1):\n    """Read at most size bytes."""\n\n    return self.data[:size]\n' * 3,
    "Größe, naïve café, 日本語の本, Ελληνικός ΣΟΦΟΣ, it's 1234 times 5678 — we'll see… 🙂🙂\r\n\t x" * 2,
    "<unk> and aaaaaaaaaaaaa aaaa aaaaaaa banana bananas ananas   spaces    here",
]
KINDS = {
    "char": TokenizerConfig(kind="char"),
    "word": TokenizerConfig(kind="word", min_count=2),
    "lower words": TokenizerConfig(kind="word", split="words", lowercase=True),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=500),
    "wordpiece": TokenizerConfig(kind="wordpiece", vocab_size=300),
}
TRAINED: dict[str, Tokenizer] = {name: train_tokenizer(config, TEXT) for name, config in KINDS.items()}
BPE = TRAINED["bpe"]
assert isinstance(BPE, BpeTokenizer)

ODD = ["\n", "  ", "'s", "<|endoftext|>", "\x1c", "\xa0"]

# Arbitrary characters, and strings that are made of what the vocabularies know.
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60),  # assigned: what is newer than this Python's
    # Unicode is a letter to the library only
    st.lists(st.sampled_from(" ".join(TEXT).split(" ") + ODD), max_size=30)
    .map(" ".join),
    st.lists(st.sampled_from("abn \n'slt1é日🙂\u0301"), max_size=60).map("".join),
)  # fmt: skip


def library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """What the library makes of the saved file."""
    return tokenizers.Tokenizer.from_str(tokenizer.engine.to_str())


ENGINES = {name: library(tokenizer) for name, tokenizer in TRAINED.items()}


@given(texts)
@settings(deadline=None, max_examples=300)
def test_bpe_round_trip_and_ids(text: str) -> None:
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert BPE.boundary not in ids
    assert BPE.encode_batch([text])[0].tolist() == ids
    assert b"".join(BPE.token_bytes(i) for i in ids) == text.encode()
    engine = ENGINES["bpe"]
    engine.encode_special_tokens = True  # the library's own switch for text that spells a special token
    assert engine.encode(text, add_special_tokens=False).ids == ids


@given(st.binary(max_size=80))
@settings(deadline=None, max_examples=300)
def test_bpe_round_trip_of_any_bytes(raw: bytes) -> None:
    assert BPE.decode_bytes(BPE.encode_bytes(raw)) == raw


@given(texts)
@settings(deadline=None, max_examples=150)
def test_char_round_trip(text: str) -> None:
    char = TRAINED["char"]
    known = "".join(c for c in text if char.unknown not in char.encode(c))
    assert char.decode(char.encode(known)) == known
    assert len(char.encode(text)) == len(text)


@pytest.mark.parametrize("name", ["char", "word", "lower words", "wordpiece"])
@given(text=texts)
@settings(deadline=None, max_examples=150)
def test_ids_equal_the_librarys(name: str, text: str) -> None:
    if name == "word":
        text = text.replace("<|endoftext|>", "end")  # the one word on which we differ: see the next test
    ids = TRAINED[name].encode(text)
    assert ENGINES[name].encode(text, add_special_tokens=False).ids == ids
    assert TRAINED[name].encode_batch([text])[0].tolist() == ids


@pytest.mark.parametrize("name", KINDS)
def test_special_names_are_text(name: str) -> None:
    tokenizer = TRAINED[name]
    for special in ("<|endoftext|>", "[SEP]", "a <|endoftext|> b [SEP] c"):
        ids = tokenizer.encode(special)
        assert ids
        assert tokenizer.boundary not in ids


def test_word_rules_agree_with_the_library_on_every_character() -> None:
    every = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    # Letters newer than this Python are letters to the library only.
    import unicodedata

    known = [c for c in every if unicodedata.category(c) != "Cn"]
    for name in ("word", "lower words"):
        split = ENGINES[name].pre_tokenizer
        for first in range(0, len(known), 8192):
            text = "!".join(c + "a" for c in known[first : first + 8192])
            expected = split_words(text, "whitespace" if name == "word" else "words")
            assert [piece for piece, _ in split.pre_tokenize_str(text)] == expected


@pytest.mark.parametrize("name", KINDS)
def test_training_and_saving_are_deterministic(name: str, tmp_path: Path) -> None:
    again = train_tokenizer(KINDS[name], iter(TEXT))
    assert again.engine.to_str() == TRAINED[name].engine.to_str()
    again.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(again)
    assert loaded.fingerprint == again.fingerprint == TRAINED[name].fingerprint
    assert loaded.encode(TEXT[2]) == again.encode(TEXT[2])


def test_word_settings() -> None:
    words = TRAINED["word"]
    assert words.unknown is not None
    assert words.decode(words.encode("the more zebra")) == "the more <unk>"
    assert not words.lossless
    assert split_words("Don't stop; it's 5 o’clock!", lowercase=True) == ["don't", "stop", "it's", "5", "o’clock"]
    limited = train_tokenizer(TokenizerConfig(kind="word", vocab_size=4), ["b a a c c c"])
    assert limited.decode(limited.encode("a b c")) == "a <unk> c"


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "ab" * SLICE, "x y" * SLICE, "\n" * 50_000 + "z"])
def test_long_lines_take_bounded_time(text: str) -> None:
    started = time.perf_counter()
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert time.perf_counter() - started < 30


def test_slicing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(TEXT) * 3 + "!\x1c\x1d x\u2003y  z\n\n"
    whole = BPE.encode(text)
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr("gradatim.text.tokenizer.SLICE", size)
        assert BPE.encode(text) == whole


def test_ids_are_integers_of_python() -> None:
    assert all(type(i) is int for i in BPE.encode("the more"))
    assert BPE.encode_batch(["", "the"])[0].dtype == np.int64


def _mended(change: dict[str, object]) -> str:
    content = json.loads(BPE.engine.to_str())
    for path, value in change.items():
        section, _, field = path.partition(".")
        if field:
            content[section][field] = value
        else:
            content[section] = value
    return json.dumps(content)


def test_tables_that_engines_would_read_differently_are_refused(tmp_path: Path) -> None:
    merges = json.loads(BPE.engine.to_str())["model"]["merges"]
    cases = [
        {"model.merges": merges[::-1]},
        {"model.merges": merges[:-5]},
        {"added_tokens": []},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model.dropout": 0.5},
    ]
    for number, change in enumerate(cases):
        path = tmp_path / f"{number}.json"
        path.write_text(_mended(change))
        with pytest.raises(DataError, match=path.name):
            load_tokenizer(path)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "\x00"])
def test_files_that_are_no_tokenizer(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match="cannot be used"):
        load_tokenizer(path)
    with pytest.raises(DataError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "absent.json")


def test_a_word_of_megabytes_is_learned_from_in_no_time() -> None:
    """The library's trainer takes minutes for a word of this length."""
    line = "ab" * 1_000_000
    started = time.perf_counter()
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), [line, "some words"])
    ids = tokenizer.encode(line)
    assert time.perf_counter() - started < 20
    assert tokenizer.decode(ids) == line
    assert len(ids) < len(line) / 64


def test_cutting_long_runs_loses_nothing() -> None:
    for text in ("", "a b", "x" * 1024, "x" * 5000 + " " * 3000 + "end", "word " * 1000):
        assert "".join(pieces(text)) == text
    assert list(pieces("word " * 1000)) == ["word " * 1000]


@pytest.mark.parametrize("name", KINDS)
def test_bytes_that_are_no_text_become_replacement_characters(name: str) -> None:
    """A command's arguments hold surrogates where their bytes are no UTF-8."""
    tokenizer = TRAINED[name]
    assert tokenizer.encode("a caf\udce9 b") == tokenizer.encode("a caf\ufffd b")
    assert tokenizer.encode_batch(["caf\udce9"])[0].tolist() == tokenizer.encode("caf\ufffd")
