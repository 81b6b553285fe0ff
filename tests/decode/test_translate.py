"""Translating many sentences at once equals each alone; one beam is greedy; attention follows the beams."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from translators import VOCAB, build, source_vocabulary

from gradatim.config.settings import TokenizerConfig
from gradatim.decode.prompt import Reader
from gradatim.decode.search import candidates, search
from gradatim.decode.translate import Translating, align, translate
from gradatim.text.pair_batches import stack
from gradatim.text.vocabulary import train_tokenizer

LETTERS = "abcdefghijklmnopqrs"


def tokenizer(size):
    return train_tokenizer(TokenizerConfig(kind="word", vocab_size=None), [" ".join(LETTERS[: size - 2])])


def translating(name):
    return Translating(
        model=build(name, sharp=True), source_tokenizer=tokenizer(source_vocabulary(name)), tokenizer=tokenizer(VOCAB),
        context=12,
    )  # fmt: skip


SENTENCES = ["a b c", "d e f g h a b", "", "c", "b a", "a b c zz", " ".join("abcdefghijkl" * 2)]
NAMES = ["lm-lstm", "lm-gpt-prefix", "plain", "additive", "general", "transformer", "rotary"]


@pytest.mark.parametrize("name", NAMES)
def test_together_is_as_alone(name):
    one = translating(name)
    for beams in (1, 4):
        found = translate(one, SENTENCES, beams=beams, n_best=beams)
        for sentence, each in zip(SENTENCES, found, strict=True):
            (alone,) = translate(one, [sentence], beams=beams, n_best=beams)
            assert [t.tokens for t in each.translations] == [t.tokens for t in alone.translations]
            values = [t.log_probability for t in each.translations]
            torch.testing.assert_close(values, [t.log_probability for t in alone.translations])
            worths = [t.log_probability / len(t.tokens) for t in each.translations]
            assert worths == sorted(worths, reverse=True)
        assert found[2].translations == []
        assert [each.cut for each in found] == [0] * 6 + [24 - 11]
        assert [each.unknown for each in found][5] == 1


@pytest.mark.parametrize("name", NAMES)
def test_one_beam_is_greedy_and_forced_decoding_agrees(name):
    one = translating(name)
    model, sentence = one.model, "d e f g h a b"
    (found,) = translate(one, [sentence], beams=1)
    (ids,), _ = one.encode([sentence])
    state, token, tokens, total = model.start(1, stack([ids], 0)), 0, [], 0.0
    while len(tokens) < len(found.translations[0].tokens):
        table, state = model(torch.tensor([[token]]), state)
        token = int(table[0, -1].argmax())
        tokens.append(token)
        total += float(table[0, -1, token])
    best = found.translations[0]
    assert best.tokens == tokens
    assert best.log_probability == pytest.approx(total)
    if best.ended:
        assert align(one, sentence, best.text).translations[0].log_probability == pytest.approx(total)


def exhaustive(model, ids, most):
    """The log-probability of every text of up to ``most`` tokens that ends, and of those that the limit ends."""
    found = {}

    def grow(tokens, total, table, state):
        for token in range(VOCAB):
            value = total + float(table[token])
            if token == 0 or len(tokens) + 1 == most:
                found[(*tokens, token)] = value
            else:
                following, after = model(torch.tensor([[token]]), state)
                grow((*tokens, token), value, following[0, -1], after)

    table, state = model(torch.tensor([[0]]), model.start(1, stack([ids], 0)))
    grow((), 0.0, table[0, -1], state)
    return found


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_a_beam_as_wide_as_everything_is_exhaustive(alpha):
    one = translating("transformer")
    sources, _ = one.encode(["a b", "c d e f"])
    everything = [exhaustive(one.model, ids, 2) for ids in sources]
    state = one.model.start(2, stack(sources, 0))
    reader = Reader(one.model, torch.zeros(2, 1, dtype=torch.int64), state)
    found = search(reader, reader.opening(), [2, 2], boundary=0, beams=VOCAB**2, n_best=9, alpha=alpha)
    for hypotheses, table in zip(found, everything, strict=True):
        assert sum(map(math.exp, table.values())) == pytest.approx(1.0)
        expected = sorted(((value / len(tokens) ** alpha, tokens) for tokens, value in table.items()), reverse=True)[:9]
        assert [tuple(h.tokens) for h in hypotheses] == [tokens for _, tokens in expected]
        torch.testing.assert_close([h.worth for h in hypotheses], [value for value, _ in expected])


def test_each_sentence_has_a_limit_of_its_own():
    one = translating("additive")
    sources, _ = one.encode(["a b", "c d e f", "g"])
    reader = Reader(one.model, torch.zeros(3, 1, dtype=torch.int64), one.model.start(3, stack(sources, 0)))
    for limits, hypotheses in zip((1, 5, 2), search(reader, reader.opening(), [1, 5, 2], boundary=0, beams=3)):
        assert all(len(h.tokens) <= limits for h in hypotheses)
        assert all(h.ended is (h.tokens[-1] == 0) for h in hypotheses)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["additive", "general", "transformer"])
def test_attention_follows_the_back_pointers(name, beams):
    """What a beam shows is what reading its own words shows."""
    one = translating(name)
    for each in translate(one, SENTENCES, beams=beams, n_best=beams, attention=True):
        for best in each.translations:
            assert best.attention.shape == (
                len(one.model.attention_names), len(best.tokens), len(each.source_tokens),
            )  # fmt: skip
            if best.ended and one.tokenizer.unknown not in best.tokens:
                forced = align(one, each.source, best.text)
                torch.testing.assert_close(forced.translations[0].attention, best.attention)
                assert forced.translations[0].log_probability == pytest.approx(best.log_probability)


@pytest.mark.parametrize("words", [5, 30, 2_000])  # the last in blocks, with words behind the last
@pytest.mark.parametrize("most", [1, 3, 7, 200])
def test_candidates_are_the_first_of_a_stable_sort(words, most):
    """Equals, of one beam or of several, are in the order of beam and token; impossible ways come last."""
    random = np.random.default_rng(words)
    for values in (9, 900, 10**6):
        table = torch.from_numpy(-random.integers(0, values, (40 * 3, words)).astype(np.float32))
        table[random.random(table.shape) < 0.1] = -torch.inf
        totals = torch.from_numpy(-random.integers(0, 4, (40, 3)).astype(np.float64))
        totals[::5, 1:] = -torch.inf
        every = (totals[:, :, None] + table.double().view(40, 3, words)).flatten(1)
        expected, order = every.sort(dim=1, descending=True, stable=True)
        sums, parents, tokens = candidates(totals, table, most)
        assert torch.equal(sums, expected[:, :most])
        possible = sums > -torch.inf
        assert torch.equal((parents * words + tokens)[possible], order[:, :most][possible])


def test_a_translation_longer_than_the_context_cannot_be_forced():
    with pytest.raises(ValueError, match="do not fit"):
        align(translating("transformer"), "a", " ".join("abcdefghijkl"))
