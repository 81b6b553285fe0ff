"""Text while it is generated: whole characters as soon as they are whole, and stop strings wherever tokens cut them."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradatim.config.settings import TokenizerConfig
from gradatim.decode.generate import generate
from gradatim.decode.stream import StopAt, TextStream
from gradatim.text.vocabulary import train_tokenizer

TEXT = ["the naïve café — 日本語, \U0001f642\U0001f642 e\u0301, don't stop, stopping the stop!"] * 3
TOKENIZERS = {
    "char": train_tokenizer(TokenizerConfig(kind="char"), TEXT),
    "word": train_tokenizer(TokenizerConfig(kind="word"), TEXT),
    "bpe": train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), TEXT),
    "wordpiece": train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=80), TEXT),
}


class Cuts:
    """A tokenizer whose tokens are the given bytes."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts

    def token_bytes(self, token: int) -> bytes:
        return self.parts[token]


class Script:
    """A model that is certain to say the given tokens."""

    context = None

    def __init__(self, tokens: list[int], vocab_size: int) -> None:
        self.tokens, self.vocab_size = tokens, vocab_size

    def start(self, batch, source=None):
        return ScriptState(batch, 0)

    def __call__(self, ids, state):
        log_probs = torch.full((*ids.shape, self.vocab_size), -torch.inf, dtype=torch.float64)
        after = state.read + ids.shape[1]
        log_probs[:, -1, self.tokens[after - 1]] = 0.0
        return log_probs, ScriptState(state.batch, after)


class ScriptState:
    def __init__(self, batch, read):
        self.batch, self.read = batch, read

    def select(self, rows):
        return ScriptState(len(rows), self.read)


def pieces(whole, places):
    """A text or bytes, cut at the given places."""
    edges = [0, *sorted({place % (len(whole) + 1) for place in places}), len(whole)]
    return [whole[a:b] for a, b in pairwise(edges)]


places = st.lists(st.integers(0, 200), max_size=30)
characters = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("aé日\U0001f642\u0301\ufffd\0"), max_size=30
)


# --------------------------------------------------------------------------- whole characters


@settings(deadline=None, max_examples=200)
@given(text=characters, cuts=places)
@example(text="\U0001f642", cuts=[1, 2, 3])
def test_characters_come_whole_and_as_soon_as_they_are(text, cuts):
    parts = pieces(text.encode(), cuts)
    stream = TextStream(Cuts(parts))
    shown, read = "", b""
    for token, part in enumerate(parts):
        shown, read = shown + stream.push(token), read + part
        assert shown == read.decode("utf-8", "ignore")  # what is not whole is at the end, and held back
    assert stream.end() == ""
    assert shown == text


@settings(deadline=None, max_examples=200)
@given(raw=st.binary(max_size=24), cuts=places)
@example(raw=b"\xf0\x9f\x99", cuts=[1])
@example(raw=b"\xe2\x82a\xff\xed\xa0\x80", cuts=[1, 2, 3, 4, 5])
def test_bytes_that_are_no_text_read_as_they_would_whole(raw, cuts):
    parts = pieces(raw, cuts)
    stream = TextStream(Cuts(parts))
    assert "".join(map(stream.push, range(len(parts)))) + stream.end() == raw.decode("utf-8", "replace")


def test_a_long_prompt_of_words_is_taken_up_in_no_time(monkeypatch):
    """Words are decoded behind the last few, not behind the whole prompt."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="word"), ["a b c"])
    counted = []
    monkeypatch.setattr(tokenizer, "decode", lambda ids: (counted.append(len(ids)), " ".join("a" for _ in ids))[1])
    stream = TextStream(tokenizer, [2] * 100_000)
    assert stream.push(2) == " a" and sum(counted) <= 64


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_joined_pieces_are_the_whole_text_of_any_tokens(kind, data):
    tokenizer = TOKENIZERS[kind]
    tokens = st.integers(0, tokenizer.vocab_size - 1).filter(lambda token: token != tokenizer.boundary)
    ids = data.draw(st.lists(tokens, max_size=40))
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.end() == tokenizer.decode(ids)
    if ids and tokenizer.token_bytes(ids[0]) is None:  # after a prompt, its words and pieces are gone on with
        cut = data.draw(st.integers(1, len(ids)))
        stream = TextStream(tokenizer, ids[:cut])
        assert tokenizer.decode(ids[:cut]) + "".join(map(stream.push, ids[cut:])) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_streamed_text_is_the_text(kind):
    tokenizer = TOKENIZERS[kind]
    stream = TextStream(tokenizer)
    ids = tokenizer.encode(TEXT[0])
    shown = [stream.push(token) for token in ids]
    assert "".join(shown) + stream.end() == tokenizer.decode(ids)
    if tokenizer.lossless:
        assert "".join(shown) == TEXT[0]
    else:  # a token that adds to the text is shown at once
        assert all(shown)


# --------------------------------------------------------------------------- stop strings


def stopped_at(text: str, stops: list[str]) -> tuple[str, bool]:
    """A character at a time: the stop that is complete first cuts the text, the longest where several are."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


letters = st.text("abc", max_size=24)
some_stops = st.lists(st.text("abc", max_size=5), max_size=3)


@settings(deadline=None, max_examples=400)
@given(text=letters, stops=some_stops, cuts=places)
@example(text="abab", stops=["abc", "b"], cuts=[])  # "b" is complete where "abc" only might have begun
@example(text="abc", stops=["abc", "b"], cuts=[])
@example(text="abc", stops=["abc", "b"], cuts=[1, 2])
@example(text="aabaac", stops=["aac", "baac"], cuts=[3])
@example(text="aaab", stops=["aab"], cuts=[1, 2, 3])
def test_a_stop_is_found_wherever_the_text_is_cut(text, stops, cuts):
    until = StopAt(tuple(stops))
    expected, found = stopped_at(text, stops)
    shown = ""
    for part in pieces(text, cuts):
        shown += until.push(part)
        assert expected.startswith(shown)  # nothing is shown that is taken back
    assert until.stopped is found
    assert shown + until.end() == expected
    assert until.end() == ""


@settings(deadline=None, max_examples=200)
@given(text=letters, stops=some_stops)
def test_nothing_is_held_back_without_need(text, stops):
    until = StopAt(tuple(stops))
    shown = ""
    for end, character in enumerate(text, start=1):
        shown += until.push(character)
        if until.stopped:
            assert until.push("abc") == "" == until.end()
            break
        held = text[len(shown) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        begun = [n for n in range(1, end + 1) if any(stop.startswith(text[end - n : end]) for stop in stops if stop)]
        assert len(held) == max(begun, default=0)


def test_empty_stops_stop_nothing():
    until = StopAt(("", ""))
    assert until.push("text") == "text"
    assert not until.stopped


# --------------------------------------------------------------------------- through generation


@settings(deadline=None, max_examples=80)
@given(text=characters, cuts=places, stop=st.text("aé日\U0001f642", min_size=1, max_size=3))
@example(text="a日é\U0001f642a", cuts=[], stop="é\U0001f642")
def test_generation_shows_what_it_returns(text, cuts, stop):
    """Whatever the model says, byte by byte or in longer tokens, and wherever a stop string begins."""
    tokenizer = TOKENIZERS["bpe"]
    raw = text.encode()
    ids = [token for part in pieces(raw, cuts) for token in tokenizer.encode_bytes(part)]
    expected, found = stopped_at(text, [stop])
    shown: list[str] = []
    model = Script([*ids, tokenizer.boundary], tokenizer.vocab_size)
    (completion,), dropped = generate(
        model, tokenizer, "", max_new=len(ids) + 1, stop=(stop,), show=lambda row, new: shown.append(new)
    )
    assert completion.text == "".join(shown) == expected
    assert all(shown)
    assert completion.ended is not found
    assert (completion.log_probability, dropped) == (0.0, 0)
    # Not a token more than the stop needs.
    end = len((expected + stop).encode())
    needed = next(n for n in range(len(ids) + 1) if len(tokenizer.decode_bytes(ids[:n])) >= end) if found else None
    assert completion.tokens == (needed if found else len(ids) + 1)


def test_a_character_cut_by_the_limit_is_replaced():
    tokenizer = TOKENIZERS["bpe"]
    ids = [tokenizer.single[byte] for byte in "a\U0001f642".encode()]
    shown: list[str] = []
    model = Script([*ids, tokenizer.boundary], tokenizer.vocab_size)
    (completion,), _ = generate(model, tokenizer, "", max_new=3, show=lambda row, new: shown.append(new))
    assert shown == ["a", "\ufffd"]
    assert (completion.text, completion.tokens, completion.ended) == ("a\ufffd", 3, False)


def test_the_beginning_of_a_stop_that_never_ends_is_shown():
    tokenizer = TOKENIZERS["char"]
    ids = tokenizer.encode("don't sto")
    model = Script([*ids, tokenizer.boundary], tokenizer.vocab_size)
    shown: list[str] = []
    (completion,), _ = generate(
        model, tokenizer, "", max_new=64, stop=("stop", "stones"), show=lambda row, new: shown.append(new)
    )
    assert completion.text == "don't sto" and completion.ended
    assert shown == [*"don't ", "sto"]


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_stop_in_the_middle_of_tokens_is_cut_off(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(TEXT[0])
    whole = tokenizer.decode(ids)
    stop = re.search(r"op.*?p", whole)[0]
    model = Script([*ids, tokenizer.boundary], tokenizer.vocab_size)
    (completion,), _ = generate(model, tokenizer, "", max_new=len(ids) + 1, stop=(stop, "never"))
    assert completion.text == whole[: whole.index(stop)]
    assert not completion.ended
    assert completion.tokens < len(ids)
