"""Beam search against the list of all texts, against plain beams that never stop early, and against greedy decoding."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig, TokenizerConfig, WindowConfig
from gradatim.decode.beam import beam_search
from gradatim.decode.generate import generate
from gradatim.models import build_model
from gradatim.models.ngram import fit_ngram
from gradatim.text.vocabulary import train_tokenizer

TEXT = ["ab", "ba", "aab", "b", "", "abab"]
CHAR = train_tokenizer(TokenizerConfig(kind="char"), TEXT)  # the boundary, unknown, a and b
VOCAB, CONTEXT, END = CHAR.vocab_size, 16, CHAR.boundary
CONFIGS = {
    "gpt": GptConfig(d_model=8, n_layers=1, n_heads=2, vocab_multiple=8, positions="rotary"),
    "lstm": RecurrentConfig(kind="lstm", d_model=8),
    "window": WindowConfig(window=3, d_model=8, d_ff=12),
}
ALPHAS = [0.0, 0.6, 1.0, 2.0, -0.5, -3.0]
every_model = pytest.mark.parametrize("name", [*CONFIGS, "ngram"])


def build(name, seed=3, context=CONTEXT):
    if name == "ngram":
        ids = [token for text in TEXT for token in [*CHAR.encode(text), END]]
        return fit_ngram(NgramConfig(order=3, discount_fallback=True), torch.tensor(ids).numpy(), VOCAB, END)
    model = build_model(CONFIGS[name], VOCAB, context).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.0, generator=generator)
    return model


MODELS = {name: build(name) for name in [*CONFIGS, "ngram"]}


class Tree:
    """A model given by its distributions: ``table`` maps what was read, without the opening boundary, to one."""

    context, vocab_size = None, VOCAB

    def __init__(self, table):
        self.table = table

    def start(self, batch, source=None):
        return TreeState([()] * batch)

    def __call__(self, ids, state):
        read = [(*before, *new) for before, new in zip(state.read, ids.tolist())]
        ends = range(len(read[0]) - ids.shape[1], len(read[0]))
        rows = [[self.table(text[1 : end + 1]) for end in ends] for text in read]
        return torch.tensor(rows, dtype=torch.float64), TreeState(read)

    def log_prob(self, ids, targets, state):
        return None, self(ids, state)[1]  # beam search asks for the state alone


class TreeState:
    def __init__(self, read):
        self.read = read

    def select(self, rows):
        return TreeState([self.read[row] for row in rows.tolist()])


def log_prob(model, prompt, tokens):
    row = torch.tensor([[END, *CHAR.encode(prompt), *tokens]])
    found, _ = model(row[:, :-1], model.start(1))
    chosen = found.double().gather(2, row[:, 1:, None])[0, :, 0]
    return chosen[len(prompt) :].sum().item()


def texts_of(max_new):
    """Every way to end: by the boundary, or by the limit."""
    inner = [token for token in range(VOCAB) if token != END]
    for length in range(1, max_new + 1):
        for body in itertools.product(inner, repeat=length - 1):
            yield (*body, END)
    yield from itertools.product(inner, repeat=max_new)


@functools.lru_cache(maxsize=16)
def sums_of(model, prompt, max_new):
    return [(log_prob(model, prompt, tokens), tokens) for tokens in texts_of(max_new)]


def exhaustive(model, prompt, max_new, alpha):
    """All texts, best first: (sum / length^α, sum, tokens)."""
    found = [(total / len(tokens) ** alpha, total, tokens) for total, tokens in sums_of(model, prompt, max_new)]
    return sorted(found, key=lambda item: -item[0])


def plain_beams(model, prompt, beams, max_new, alpha):
    """Beam search that reads every text anew and goes on to the very end."""
    live, done, places = [(0.0, ())], [], beams
    for position in range(1, max_new + 1):
        grown = []
        for total, tokens in live:
            ids = torch.tensor([[END, *CHAR.encode(prompt), *tokens]])
            row = model(ids, model.start(1))[0][0, -1].double().tolist()
            grown += [(total + value, (*tokens, token)) for token, value in enumerate(row)]
        live = []
        for total, tokens in sorted(grown, key=lambda item: -item[0])[:places]:
            if tokens[-1] == END or position == max_new:
                done.append((total / position**alpha, total, tokens))
                places -= 1
            else:
                live.append((total, tokens))
    return sorted(done, key=lambda item: -item[0])


def check(found, expected, alpha):
    """Same texts in the same order, but for those whose worth is equal to rounding."""
    assert len(found) == len(expected)
    for completion, (worth, total, tokens) in zip(found, expected, strict=True):
        own = completion.log_probability / completion.tokens**alpha
        assert own == pytest.approx(worth, rel=1e-11)
        near = [t for w, _, t in expected if w == pytest.approx(worth, rel=1e-11)]
        same = [t for t in near if CHAR.decode(t) == completion.text and len(t) == completion.tokens]
        assert len(same) == 1 or len(near) > 1
        if len(near) == 1:
            assert completion.ended is (tokens[-1] == END)
            assert completion.log_probability == pytest.approx(total, rel=1e-11)


# --------------------------------------------------------------------------- against all texts


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
@every_model
def test_a_beam_as_wide_as_everything_is_exhaustive(name, alpha):
    model, most = MODELS[name], VOCAB**4
    for prompt in ("", "ba"):
        everything = exhaustive(model, prompt, 4, alpha)
        assert sum(math.exp(total) for _, total, _ in everything) == pytest.approx(1.0, rel=1e-6)
        for n_best in (1, 3, most):
            found, dropped = beam_search(model, CHAR, prompt, beams=most, max_new=4, n_best=n_best, alpha=alpha)
            check(found, everything[:n_best], alpha)
            assert dropped == 0


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 10**6), alpha=st.sampled_from(ALPHAS), n_best=st.integers(1, 6), sharp=st.floats(0.1, 4.0))
def test_stopping_early_loses_nothing(seed, alpha, n_best, sharp):
    """Any distribution after any text; a beam as wide as everything must still find the best of all."""
    model = Tree(random_table(seed, sharp))
    found, _ = beam_search(model, CHAR, "", beams=VOCAB**3, max_new=3, n_best=n_best, alpha=alpha)
    check(found, exhaustive(model, "", 3, alpha)[:n_best], alpha)


def random_table(seed, sharp):
    def table(read):
        generator = torch.Generator().manual_seed(hash((seed, read)) % 2**63)
        return (sharp * torch.randn(VOCAB, generator=generator, dtype=torch.float64)).log_softmax(0).tolist()

    return table


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    alpha=st.sampled_from(ALPHAS),
    beams=st.integers(1, 9),
    max_new=st.integers(1, 6),
    n_best=st.integers(1, 9),
    sharp=st.floats(0.1, 4.0),
)
@example(seed=0, alpha=-3.0, beams=3, max_new=6, n_best=1, sharp=1.0)
@example(seed=0, alpha=2.0, beams=3, max_new=6, n_best=1, sharp=1.0)
def test_narrow_beams_keep_what_plain_ones_keep(seed, alpha, beams, max_new, n_best, sharp):  # fmt: skip
    model = Tree(random_table(seed, sharp))
    expected = plain_beams(model, "ab", beams, max_new, alpha)
    found, _ = beam_search(model, CHAR, "ab", beams=beams, max_new=max_new, n_best=n_best, alpha=alpha)
    check(found, expected[: min(n_best, beams)], alpha)


@every_model
@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_models_with_kept_state_search_as_those_read_anew(name, alpha):
    """Beams exchange and repeat the rows of caches at almost every token."""
    for prompt, beams in (("", 2), ("ab", 3), ("bba", 7)):
        expected = plain_beams(MODELS[name], prompt, beams, 9, alpha)
        found, _ = beam_search(MODELS[name], CHAR, prompt, beams=beams, max_new=9, alpha=alpha)
        check(found, expected[:beams], alpha)


# --------------------------------------------------------------------------- one beam, several answers


@every_model
@pytest.mark.parametrize("alpha", [0.0, 1.0, -2.0])
def test_one_beam_is_greedy_decoding(name, alpha):
    for prompt in ("", "a", "ab", "abba", "bb", "?"):
        greedy, _ = generate(MODELS[name], CHAR, prompt, max_new=12)
        found, _ = beam_search(MODELS[name], CHAR, prompt, beams=1, max_new=12, alpha=alpha)
        assert [c.text for c in found] == [c.text for c in greedy]
        assert [(c.tokens, c.ended) for c in found] == [(c.tokens, c.ended) for c in greedy]
        assert found[0].log_probability == pytest.approx(greedy[0].log_probability, rel=1e-11)


def test_one_beam_is_greedy_where_tokens_are_equally_likely():
    third = [-math.inf, math.log(1 / 3), math.log(1 / 3), math.log(1 / 3)]
    end = [0.0, -math.inf, -math.inf, -math.inf]
    model = Tree(lambda read: third if len(read) < 3 else end)
    (greedy,), _ = generate(model, CHAR, "", max_new=12)
    (found,), _ = beam_search(model, CHAR, "", beams=1, max_new=12)
    assert (found.text, found.tokens) == (greedy.text, greedy.tokens) == ("\ufffd" * 3, 4)


@every_model
@pytest.mark.parametrize("alpha", [0.0, 1.0, -2.0])
def test_answers_are_sorted_distinct_and_each_worth_what_it_says(name, alpha):
    model = MODELS[name]
    found, _ = beam_search(model, CHAR, "a", beams=12, max_new=8, alpha=alpha)
    worths = [completion.log_probability / completion.tokens**alpha for completion in found]
    assert len(found) == 12
    assert worths == sorted(worths, reverse=True)
    assert len({(completion.text, completion.ended) for completion in found}) == 12
    for completion in found:
        assert len(completion.text) + completion.ended == completion.tokens <= 8
        if "\ufffd" not in completion.text:
            tokens = [*CHAR.encode(completion.text), END][: completion.tokens]
            assert completion.log_probability == pytest.approx(log_prob(model, "a", tokens), rel=1e-11)


@every_model
def test_the_best_of_many_are_the_many_s_first(name):
    whole, _ = beam_search(MODELS[name], CHAR, "b", beams=8, max_new=7)
    for n_best in (1, 2, 5, 8, 20):
        found, _ = beam_search(MODELS[name], CHAR, "b", beams=8, max_new=7, n_best=n_best)
        assert [c.text for c in found] == [c.text for c in whole[:n_best]]
        torch.testing.assert_close([c.log_probability for c in found], [c.log_probability for c in whole[:n_best]])


# --------------------------------------------------------------------------- ends, limits, contexts


def test_a_longer_text_that_is_worth_more_is_found():
    """Stopping at the first end, likeliest though it is, would answer the empty text."""
    half = math.log(0.5)
    sure = {(): [math.log(0.45), math.log(0.025), half, math.log(0.025)]}

    def table(read):
        return sure.get(read, [math.log(0.9) if len(read) > 2 else math.log(0.001)] + [math.log(0.3)] * 3)

    def best(alpha):
        return beam_search(Tree(table), CHAR, "", beams=64, max_new=4, n_best=1, alpha=alpha)[0][0]

    assert best(0.0).text == ""
    assert len(best(2.0).text) == 3


def test_a_prize_for_shortness_is_given_to_the_short():
    """With α below 0 the next token may be better than any end so far, but later ones count ever more against it."""
    table = {(): [0.3, 0.0, 0.7, 0.0], (2,): [0.999, 0.0, 0.001, 0.0]}
    model = Tree(lambda read: [math.log(p) if p else -math.inf for p in table.get(read, [1.0, 0.0, 0.0, 0.0])])
    for alpha in (-0.5, -1.5, -3.0):
        expected = exhaustive(model, "", 4, alpha)[0]
        (found,), _ = beam_search(model, CHAR, "", beams=4, max_new=4, n_best=1, alpha=alpha)
        assert found.log_probability == pytest.approx(expected[1])
        assert found.text == CHAR.decode(expected[2])


def test_impossible_texts_are_no_answers():
    """Two texts can occur; a beam for a hundred finds two."""
    table = {(): [-math.inf, -math.inf, math.log(0.25), math.log(0.75)]}
    model = Tree(lambda read: table.get(read, [0.0, -math.inf, -math.inf, -math.inf]))
    found, _ = beam_search(model, CHAR, "", beams=100, max_new=5)
    assert [(c.text, c.ended) for c in found] == [("b", True), ("a", True)]
    assert found[0].log_probability == pytest.approx(math.log(0.75))


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, 3 * CONTEXT])
def test_beams_outlive_the_context(length):
    """When it is full all beams go on from its last half, as greedy decoding does."""
    prompt = ("ab" * length)[:length]
    greedy, dropped = generate(MODELS["gpt"], CHAR, prompt, max_new=3 * CONTEXT)
    found, also_dropped = beam_search(MODELS["gpt"], CHAR, prompt, beams=1, max_new=3 * CONTEXT)
    assert found[0].text == greedy[0].text
    assert dropped == also_dropped == length + 1 - CONTEXT
    wide, _ = beam_search(MODELS["gpt"], CHAR, prompt, beams=4, max_new=3 * CONTEXT, alpha=0.0)
    assert wide[0].log_probability >= found[0].log_probability - 1e-9
