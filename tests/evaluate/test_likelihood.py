"""Every token predicted exactly once, after as much text as the stride promises: against one token at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig, TokenizerConfig, WindowConfig
from gradatim.errors import ConfigError
from gradatim.evaluate import likelihood
from gradatim.evaluate.likelihood import Stopped, log_probs
from gradatim.evaluate.score import score_sentences
from gradatim.models import build_model
from gradatim.models.ngram import fit_ngram
from gradatim.text.vocabulary import train_tokenizer

TEXT = ["abcd dcba abba cddc", "bad cab", "dad", "a cad", "", "cab cab"]
CHAR = train_tokenizer(TokenizerConfig(kind="char"), TEXT)
VOCAB, CONTEXT, BOUNDARY = CHAR.vocab_size, 5, CHAR.boundary
TINY = {"d_model": 8, "n_layers": 2, "n_heads": 2, "vocab_multiple": 8}
CONFIGS = {
    "learned": GptConfig(**TINY),
    "rotary": GptConfig(**TINY, n_kv_heads=1, positions="rotary", norm="rms", activation="swiglu", bias=False),
    "lstm": RecurrentConfig(kind="lstm", d_model=8, n_layers=2),
    "gru": RecurrentConfig(kind="gru", d_model=8),
    "window": WindowConfig(window=3, d_model=8, d_ff=12),
    "ngram": NgramConfig(order=4, discount_fallback=True),
    "mle": NgramConfig(order=2, smoothing="mle"),
}
LIMITED = ["learned", "rotary"]
UNLIMITED = [name for name in CONFIGS if name not in LIMITED]


def row(texts):
    """Documents end to end, each closed by the boundary."""
    return np.array([token for text in texts for token in [*CHAR.encode(text), BOUNDARY]])


def build(name):
    """A model whose answers depend on all it reads, in float64: n-grams are counted, other weights large."""
    config = CONFIGS[name]
    if isinstance(config, NgramConfig):
        return fit_ngram(config, row(TEXT), VOCAB, BOUNDARY)
    model = build_model(config, VOCAB, CONTEXT).double().eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5, generator=generator)
    return model


MODELS = {name: build(name) for name in CONFIGS}
tokens_of_text = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)


def first_read(place, total, context, stride):
    """Where the window starts that counts the ``place``-th token (from 1) of ``total``."""
    context = min(context, total)
    end = context
    while end < place:
        end = min(end + min(stride, context), total)
    return end - context


def one_by_one(model, tokens, stride):
    """Each token after all that its window holds before it, read anew for each."""
    text = [BOUNDARY, *tokens.tolist()]
    found = []
    for place in range(1, len(text)):
        start = 0 if model.context is None else first_read(place, len(tokens), model.context, stride)
        table, _ = model(torch.tensor([text[start:place]]), model.start(1))
        found.append(table[0, -1, text[place]].item())
    return np.array(found)


@dataclass
class Read:
    """The state of ``HowMuch``: tokens read so far, and the last of them."""

    count: int
    last: torch.Tensor


class HowMuch:
    """A model whose log-probability says how many tokens it has read, and which token is asked after which."""

    vocab_size = 1 << 20

    def __init__(self, context):
        self.context, self.asked, self.calls = context, [], []

    def start(self, batch):
        return Read(0, torch.full((batch,), -1))

    def log_prob(self, ids, targets, state):
        self.calls.append(tuple(ids.shape))
        places = state.count + torch.arange(1, ids.shape[1] + 1)
        self.asked += [
            (a, b) for a, b in zip(ids.flatten().tolist(), targets.flatten().tolist(), strict=True) if b >= 0
        ]
        return places.double().expand(ids.shape).where(targets >= 0, 0.0), Read(state.count + ids.shape[1], ids[:, -1])


# --------------------------------------------------------------------------- the windows themselves


@settings(deadline=None, max_examples=200)
@given(total=st.integers(1, 70), context=st.integers(1, 20), stride=st.integers(1, 30) | st.none())
def test_each_token_is_asked_once_after_its_predecessor_with_the_context_its_window_holds(total, context, stride):
    model = HowMuch(context)
    tokens = np.arange(1, total + 1)  # all different, so that what was asked tells where
    read = log_probs(model, tokens, 0, stride)
    assert sorted(model.asked) == [(place - 1, place) for place in range(1, total + 1)]
    advance = max(1, context // 2) if stride is None else stride
    assert read.tolist() == [place - first_read(place, total, context, advance) for place in range(1, total + 1)]
    # The promise: everything before it, or at least context - stride tokens and itself asked last.
    assert (read >= np.minimum(tokens, min(context, total) - min(advance, context) + 1)).all()


@pytest.mark.parametrize("context", [1, 2, 7, 20])
def test_stride_one_gives_every_token_the_fullest_context(context):
    read = log_probs(HowMuch(context), np.arange(1, 21), 0, 1)
    assert read.tolist() == [min(place, context) for place in range(1, 21)]


@settings(deadline=None, max_examples=100)
@given(total=st.integers(1, 60), rows=st.integers(1, 9), at_once=st.integers(1, 40))
def test_an_unlimited_model_reads_the_row_once_in_pieces(total, rows, at_once):
    model = HowMuch(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "TOKENS_AT_ONCE", at_once)
        read = log_probs(model, np.arange(1, total + 1), 0, rows=rows)
    assert sorted(model.asked) == [(place - 1, place) for place in range(1, total + 1)]
    length = math.ceil(total / rows)
    assert read.tolist() == [place % length + 1 for place in range(total)]
    assert all(wide <= max(1, at_once // rows) for _, wide in model.calls)


@pytest.mark.parametrize("context", [None, 3, 20])
def test_a_text_is_opened_by_the_token_that_opens_documents(context):
    model = HowMuch(context)
    log_probs(model, np.array([1, 2, 0, 3, 0]), 0, stride=context, opening=9)
    assert sorted(model.asked) == [(1, 2), (2, 0), (3, 0), (9, 1), (9, 3)]


def test_windows_are_read_many_at_a_time_but_not_too_many(monkeypatch):
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 64)
    model = HowMuch(8)
    log_probs(model, np.arange(1, 1001), 0, 4)
    assert max(many * wide for many, wide in model.calls) == 64


def test_nothing_is_nothing():
    assert log_probs(HowMuch(None), np.zeros(0, np.int64), 0).shape == (0,)
    assert log_probs(HowMuch(4), np.zeros(0, np.uint16), 0).shape == (0,)


@pytest.mark.parametrize("name", ["learned", "lstm"])
def test_a_wish_to_stop_is_heard(name):
    with pytest.raises(Stopped):
        log_probs(MODELS[name], row(TEXT), BOUNDARY, stop=lambda: True)


# --------------------------------------------------------------------------- real models


@pytest.mark.parametrize("name", LIMITED)
@settings(deadline=None, max_examples=25)
@given(tokens=tokens_of_text, stride=st.integers(1, CONTEXT + 2))
def test_windows_equal_one_token_at_a_time(name, tokens, stride):
    tokens = np.array(tokens)
    found = log_probs(MODELS[name], tokens, BOUNDARY, stride)
    np.testing.assert_allclose(found, one_by_one(MODELS[name], tokens, stride), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", UNLIMITED)
@settings(deadline=None, max_examples=25)
@given(tokens=tokens_of_text, at_once=st.integers(1, 12))
def test_a_carried_state_equals_reading_anew(name, tokens, at_once):
    tokens = np.array(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "TOKENS_AT_ONCE", at_once)
        found = log_probs(MODELS[name], tokens, BOUNDARY, stride=2)  # a stride means nothing here
    np.testing.assert_allclose(found, one_by_one(MODELS[name], tokens, 1), rtol=1e-11, atol=1e-12)


def test_stored_integers_of_any_width_are_read_alike():
    expected = log_probs(MODELS["learned"], row(TEXT), BOUNDARY)
    for dtype in (np.uint16, np.int32):
        assert log_probs(MODELS["learned"], row(TEXT).astype(dtype), BOUNDARY).tolist() == expected.tolist()


def test_maximum_likelihood_bigrams_by_hand():
    tokens = row(["ab", "ab", "ac"])
    model = fit_ngram(NgramConfig(order=2, smoothing="mle"), tokens, VOCAB, BOUNDARY)
    third = math.log(1 / 3)
    expected = [0, math.log(2 / 3), 0, 0, math.log(2 / 3), 0, 0, third, 0]
    np.testing.assert_allclose(log_probs(model, tokens, BOUNDARY), expected, rtol=1e-6, atol=1e-7)
    assert log_probs(model, row(["ad"]), BOUNDARY)[1] == -math.inf


# --------------------------------------------------------------------------- document boundaries


def test_an_ngram_forgets_what_lies_before_a_boundary_and_a_carried_state_does_not():
    two = row(["abcd", "bad"])
    alone = log_probs(MODELS["ngram"], row(["bad"]), BOUNDARY)
    np.testing.assert_allclose(log_probs(MODELS["ngram"], two, BOUNDARY)[5:], alone, rtol=1e-12)
    alone = log_probs(MODELS["lstm"], row(["bad"]), BOUNDARY)
    assert (np.abs(log_probs(MODELS["lstm"], two, BOUNDARY)[5:] - alone) > 1e-6).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_end_of_a_document_is_a_token_like_any_other(name):
    closed = log_probs(MODELS[name], row(["ab"]), BOUNDARY, 1)
    table, _ = MODELS[name](torch.tensor([[BOUNDARY, *CHAR.encode("ab")]]), MODELS[name].start(1))
    assert len(closed) == 3
    assert closed[-1] == pytest.approx(table[0, -1, BOUNDARY].item(), rel=1e-11)


# --------------------------------------------------------------------------- whole sentences


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sentence_is_worth_the_sum_of_its_conditionals(name):
    model, sentences = MODELS[name], ["bad", "cab", "", "a?b"]  # ? is unknown
    scores = score_sentences(model, CHAR, sentences)
    assert sorted(score.text for score in scores) == sorted(sentences)
    for score in scores:
        expected = one_by_one(model, row([score.text]), 1)
        assert score.tokens == len(expected)
        assert score.log_probability == pytest.approx(expected.sum(), rel=1e-6 if name == "mle" else 1e-11)
        if math.isfinite(expected.sum()):
            assert score.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-9)
        else:
            assert score.perplexity is None
    values = [score.log_probability for score in scores]
    assert values == sorted(values, reverse=True)


def test_equals_stay_in_the_order_in_which_they_were_named():
    assert [score.text for score in score_sentences(MODELS["lstm"], CHAR, ["a?", "a!", "a%"])] == ["a?", "a!", "a%"]


def test_sentences_of_one_length_form_a_distribution():
    """Probabilities of all texts of up to two tokens and of what goes on: together 1."""
    model = MODELS["lstm"]
    letters = [piece for piece in CHAR.pieces if CHAR.ids.get(piece) is not None]
    ended = ["", *letters]
    total = sum(math.exp(score.log_probability) for score in score_sentences(model, CHAR, ended))
    first, state = model(torch.tensor([[BOUNDARY]]), model.start(1))
    for token in range(VOCAB):
        if token == BOUNDARY:
            continue
        second, _ = model(torch.tensor([[token]]), state)
        rest = second[0, -1].exp().sum() - second[0, -1, BOUNDARY].exp()
        if token == CHAR.unknown:
            rest = second[0, -1].exp().sum()
        total += (first[0, -1, token].exp() * rest).item()
    assert total == pytest.approx(1, rel=1e-12)


def test_sentences_that_do_not_fit_the_context_are_named_together():
    fits = "a" * (CONTEXT - 1)  # with its end as long as the context
    assert score_sentences(MODELS["learned"], CHAR, [fits])[0].tokens == CONTEXT
    with pytest.raises(ConfigError) as caught:
        score_sentences(MODELS["learned"], CHAR, [fits, fits + "a", fits + "bb"])
    assert [problem.where for problem in caught.value.problems] == [fits + "a", fits + "bb"]
    assert caught.value.problems[0].got == f"{CONTEXT + 1} tokens"
    assert caught.value.problems[0].allowed == str(CONTEXT)
