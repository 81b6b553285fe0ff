"""Generation against one that keeps nothing: before every token the text, as far as it is in view, is read anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig, TokenizerConfig, WindowConfig
from gradatim.decode.generate import Completion, generate, next_tokens
from gradatim.decode.prompt import read_prompt
from gradatim.decode.sampling import Sampling, choose
from gradatim.errors import ConfigError
from gradatim.evaluate.score import score_sentences
from gradatim.models import build_model
from gradatim.models.ngram import fit_ngram
from gradatim.text.vocabulary import train_tokenizer

TEXT = ["abcd dcba abba cddc", "bad cab", "dad", "a cad", "", "cab cab"]
CHAR = train_tokenizer(TokenizerConfig(kind="char"), TEXT)
VOCAB, CONTEXT = CHAR.vocab_size, 8
TINY = {"d_model": 8, "n_layers": 2, "n_heads": 2, "vocab_multiple": 8}
CONFIGS = {
    "learned": GptConfig(**TINY),
    "rotary": GptConfig(**TINY, n_kv_heads=1, positions="rotary", norm="rms", activation="swiglu", bias=False),
    "lstm": RecurrentConfig(kind="lstm", d_model=8, n_layers=2),
    "window": WindowConfig(window=4, d_model=8, d_ff=12),
    "ngram": NgramConfig(order=4, discount_fallback=True),
}
LIMITED = ["learned", "rotary"]


def build(name, context=CONTEXT):
    """A model whose answers depend on all it reads: n-grams are counted, other weights large."""
    config = CONFIGS[name]
    if isinstance(config, NgramConfig):
        ids = [token for text in TEXT for token in [*CHAR.encode(text), CHAR.boundary]]
        return fit_ngram(config, np.array(ids), VOCAB, CHAR.boundary)
    model = build_model(config, VOCAB, context).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5, generator=generator)
    return model


MODELS = {name: build(name) for name in CONFIGS}


class Anew:
    """A text of which, once a limited context is full, the last half of the context stays in view."""

    def __init__(self, model, prompt):
        self.model, self.ids = model, [CHAR.boundary, *CHAR.encode(prompt)]
        self.first = self.dropped = max(0, len(self.ids) - (model.context or len(self.ids)))

    def log_probs(self):
        return self.model(torch.tensor([self.ids[self.first :]]), self.model.start(1))[0][:, -1]

    def push(self, token):
        self.ids.append(token)
        if self.model.context is not None and len(self.ids) - self.first > self.model.context:
            self.first = len(self.ids) - max(1, self.model.context // 2)


def complete_anew(model, prompt, max_new, sampling, row=0):
    text, total, found = Anew(model, prompt), 0.0, []
    for position in range(max_new):
        log_probs = text.log_probs()
        seen = torch.tensor([text.ids])
        token = choose(log_probs, sampling, torch.tensor([row]), position, seen, CHAR.boundary).item()
        total += log_probs[0, token].item()
        found.append(token)
        if token == CHAR.boundary:
            break
        text.push(token)
    return Completion(CHAR.decode(found), total, len(found), found[-1] == CHAR.boundary)


def check_equal(found, expected):
    assert (found.text, found.tokens, found.ended) == (expected.text, expected.tokens, expected.ended)
    assert found.log_probability == pytest.approx(expected.log_probability, rel=1e-11, abs=1e-12)


every_model = pytest.mark.parametrize("name", list(CONFIGS))
prompts = st.text("abcd ?", max_size=CONTEXT + 5)
sampled = Sampling(temperature=1.2, repetition_penalty=1.1, top_k=6, top_p=0.97, min_p=0.01)


# --------------------------------------------------------------------------- kept state against none


@every_model
@settings(deadline=None, max_examples=30)
@given(prompt=prompts, ids=st.lists(st.integers(0, VOCAB - 1), max_size=3 * CONTEXT))
def test_the_distribution_after_every_token_is_that_of_reading_anew(name, prompt, ids):
    reader, log_probs = read_prompt(MODELS[name], CHAR, prompt)
    anew = Anew(MODELS[name], prompt)
    torch.testing.assert_close(log_probs, anew.log_probs(), rtol=1e-11, atol=1e-12)
    for token in ids:
        log_probs = reader.push(torch.tensor([token]))
        anew.push(token)
        torch.testing.assert_close(log_probs, anew.log_probs(), rtol=1e-11, atol=1e-12)
    assert reader.ids.tolist() == [anew.ids]
    assert reader.dropped == anew.dropped


@pytest.mark.parametrize("context", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", LIMITED)
def test_every_context_however_short_is_enough(kind, context):
    model = build(kind, context)
    for prompt in ("", "a", "abc", "abcdabcdabcd"):
        (found,), dropped = generate(model, CHAR, prompt, max_new=20, sampling=sampled)
        check_equal(found, complete_anew(model, prompt, 20, sampled))
        assert dropped == max(0, len(prompt) + 1 - context)


@every_model
@settings(deadline=None, max_examples=30)
@given(prompt=prompts, data=st.data())
def test_rows_of_a_reader_go_on_as_if_alone(name, prompt, data):
    """Rows are left out, repeated and exchanged between tokens, as beams do."""
    model = MODELS[name]
    reader, log_probs = read_prompt(model, CHAR, prompt, 3)
    texts = [Anew(model, prompt) for _ in range(3)]
    for _ in range(data.draw(st.integers(1, 12))):
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
        tokens = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=len(rows), max_size=len(rows)))
        reader.select(torch.tensor(rows))
        log_probs = reader.push(torch.tensor(tokens))
        kept = []
        for row, token in zip(rows, tokens):
            text = Anew(model, prompt)
            text.ids, text.first = list(texts[row].ids), texts[row].first
            text.push(token)
            kept.append(text)
        texts = kept
    expected = torch.cat([text.log_probs() for text in texts])
    torch.testing.assert_close(log_probs, expected, rtol=1e-11, atol=1e-12)


# --------------------------------------------------------------------------- greedy and sampled


@every_model
@settings(deadline=None, max_examples=30)
@given(prompt=prompts, max_new=st.integers(1, 3 * CONTEXT))
def test_greedy_is_the_argmax_read_anew(name, prompt, max_new):
    (found,), dropped = generate(MODELS[name], CHAR, prompt, max_new=max_new)
    text, total = Anew(MODELS[name], prompt), 0.0
    while len(text.ids) < 1 + len(prompt) + max_new:
        best, token = text.log_probs()[0].max(0)
        total += best.item()
        text.push(token.item())
        if token == CHAR.boundary:
            break
    new = text.ids[1 + len(prompt) :]
    check_equal(found, Completion(CHAR.decode(new), total, len(new), new[-1] == CHAR.boundary))
    assert dropped == text.dropped


@every_model
@settings(deadline=None, max_examples=30)
@given(prompt=prompts, n=st.integers(1, 5), seed=st.integers(-(2**40), 2**40), max_new=st.integers(1, 2 * CONTEXT))
def test_each_row_of_a_batch_is_what_it_would_be_alone(name, prompt, n, seed, max_new):
    """Rows end at different times, so that the batch shrinks under those that go on."""
    sampling = Sampling(temperature=1.2, repetition_penalty=1.1, top_k=6, top_p=0.97, min_p=0.01, seed=seed)
    found, _ = generate(MODELS[name], CHAR, prompt, max_new=max_new, n=n, sampling=sampling)
    assert len(found) == n
    for row, completion in enumerate(found):
        check_equal(completion, complete_anew(MODELS[name], prompt, max_new, sampling, row))


@every_model
def test_a_seed_reproduces_and_another_differs(name):
    def texts(seed, n=6):
        sampling = Sampling(temperature=1.0, seed=seed)
        return [c.text for c in generate(MODELS[name], CHAR, "a", max_new=24, n=n, sampling=sampling)[0]]

    assert texts(3) == texts(3)
    assert texts(3)[:2] == texts(3, n=2)
    assert texts(3) != texts(4)
    assert len(set(texts(3))) > 1


@every_model
def test_greedy_rows_are_all_alike(name):
    found, _ = generate(MODELS[name], CHAR, "ab", max_new=12, n=3)
    assert found[0].text == found[1].text == found[2].text


@every_model
def test_the_log_probability_is_the_model_s_not_the_filters(name):
    """Complete texts from nothing get the score that scoring them gives."""
    sampling = Sampling(temperature=3.0, top_k=5, repetition_penalty=1.2)
    found, _ = generate(MODELS[name], CHAR, "", max_new=CONTEXT, n=30, sampling=sampling)
    whole = {c.text: c for c in found if c.ended and "\ufffd" not in c.text}
    assert len(whole) > 2
    for score in score_sentences(MODELS[name], CHAR, list(whole)):
        completion = whole[score.text]
        assert completion.log_probability == pytest.approx(score.log_probability, rel=1e-11)
        assert completion.tokens == score.tokens


# --------------------------------------------------------------------------- prompts, ends, limits


@every_model
def test_the_empty_prompt_opens_a_document(name):
    model = MODELS[name]
    reader, log_probs = read_prompt(model, CHAR, "")
    assert reader.ids.tolist() == [[CHAR.boundary]]
    expected, _ = model(torch.tensor([[CHAR.boundary]]), model.start(1))
    torch.testing.assert_close(log_probs, expected[:, -1], rtol=0, atol=0)


@every_model
@pytest.mark.parametrize("length", [CONTEXT - 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, 5 * CONTEXT])
def test_a_prompt_longer_than_the_context_loses_its_beginning(name, length):
    """The opening boundary counts as the oldest token; models without a limit drop nothing."""
    prompt = ("abcd ab" * length)[:length]
    _, dropped = generate(MODELS[name], CHAR, prompt, max_new=1)
    assert dropped == (max(0, length + 1 - CONTEXT) if name in LIMITED else 0)
    other = "d" + prompt[1:]
    same = next_tokens(MODELS[name], CHAR, prompt) == next_tokens(MODELS[name], CHAR, other)
    assert same is (name in ("window", "ngram") or dropped >= 2)


def test_the_end_of_the_text_ends_it_and_is_counted():
    model = MODELS["ngram"]
    (found,), _ = generate(model, CHAR, "bad ca", max_new=64)
    assert found.ended and found.text == "b" and found.tokens == 2
    shown: list[tuple[int, str]] = []
    (again,), _ = generate(model, CHAR, "bad ca", max_new=64, show=lambda *what: shown.append(what))
    assert again == found
    assert shown == [(0, "b")]
    # One token earlier the limit ends it, which the model did not.
    (cut,), _ = generate(model, CHAR, "bad ca", max_new=1)
    assert (cut.text, cut.tokens, cut.ended) == ("b", 1, False)
    end = dict(next_tokens(model, CHAR, "bad cab"))[CHAR.boundary]
    assert found.log_probability == pytest.approx(cut.log_probability + math.log(end))


@every_model
def test_a_row_that_stops_leaves_the_others_alone(name):
    sampling = Sampling(temperature=1.5, seed=11)
    shown = [""] * 8

    def show(row, text):
        shown[row] += text

    free, _ = generate(MODELS[name], CHAR, "a", max_new=20, n=8, sampling=sampling)
    found, _ = generate(MODELS[name], CHAR, "a", max_new=20, n=8, sampling=sampling, stop=("b", "cd"), show=show)
    assert [completion.text for completion in found] == shown
    stopped = 0
    for before, after in zip(free, found):
        places = [place + len(stop) for stop in ("b", "cd") if (place := before.text.find(stop)) >= 0]
        if places:
            stopped += 1
            assert (after.tokens, after.ended) == (min(places), False)
            assert before.text.startswith(after.text) and "b" not in after.text and "cd" not in after.text
            assert after.log_probability > before.log_probability
        else:
            check_equal(after, before)
    assert stopped > 0


@every_model
def test_next_tokens_are_the_likeliest_first(name):
    log_probs = Anew(MODELS[name], "abc").log_probs()[0]
    found = next_tokens(MODELS[name], CHAR, "abc", top=VOCAB + 5)
    assert sorted(token for token, _ in found) == list(range(VOCAB))
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert sum(p for _, p in found) == pytest.approx(1.0, abs=1e-6)
    for token, probability in found:
        assert probability == pytest.approx(log_probs[token].exp().item(), rel=1e-11)
    assert next_tokens(MODELS[name], CHAR, "abc", top=3) == found[:3]


def test_settings_out_of_range_are_refused_before_anything_is_read():
    def never(*_):
        raise AssertionError("the model was asked")

    model = build("lstm")
    model.forward = model.log_prob = model.start = never
    with pytest.raises(ConfigError, match="--top-p"):
        generate(model, CHAR, "a", sampling=Sampling(temperature=1.0, top_p=0.0))
