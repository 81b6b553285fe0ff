"""N-gram models against Kneser-Ney, additive and relative counts written out with dictionaries, word by word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradatim.config.settings import NgramConfig
from gradatim.errors import CheckpointError, DataError
from gradatim.models.ngram import NgramModel, fit_ngram
from gradatim.models.ngram.counts import count_ngrams
from gradatim.models.ngram.smoothing import smooth
from gradatim.models.protocol import LanguageModel

BOUNDARY, VOCAB = 0, 6
START, END = "<s>", 0  # the oracle keeps apart what is one id in our tables
Gram = tuple[int | str, ...]
Probability = Callable[[Gram, int], float]

documents = st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=9), min_size=1, max_size=14)
orders = st.integers(1, 5)


def tokens_of(texts: list[list[int]]) -> np.ndarray:
    return np.array([i for text in texts for i in [*text, BOUNDARY]])


def grams_of(texts: list[list[int]], order: int) -> list[Counter[Gram]]:
    counts: list[Counter[Gram]] = []
    for k in range(1, order + 1):
        found: Counter[Gram] = Counter()
        for text in texts:
            padded = [START, *text, END]
            found.update(tuple(padded[i : i + k]) for i in range(k == 1, len(padded) - k + 1))
        if found:
            counts.append(found)
    return counts


def discounts_of(counts: Counter[Gram], fallback: bool) -> list[float] | None:
    n = Counter(counts.values())
    if all(n[c] for c in (1, 2, 3)):
        y = n[1] / (n[1] + 2 * n[2])
        found = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
        if all(0 <= d <= c for c, d in enumerate(found, start=1)):
            return found
    return [0.5, 1.0, 1.5] if fallback else None


def kneser_ney(texts: list[list[int]], order: int, fallback: bool) -> Probability | None:
    """Chen and Goodman 1998, as recursion over dictionaries; None where there are no discounts."""
    plain = grams_of(texts, order)
    adjusted = [Counter(c) for c in plain]
    for k in range(len(plain) - 1):
        before: dict[Gram, set[int | str]] = {}
        for gram in plain[k + 1]:
            before.setdefault(gram[1:], set()).add(gram[0])
        for gram in adjusted[k]:
            if gram[0] != START:
                adjusted[k][gram] = len(before[gram])
    discounts = [discounts_of(c, fallback) for c in adjusted]
    if any(d is None for d in discounts):
        return None

    def probability(context: Gram, word: int) -> float:
        k = len(context)
        shorter = 1 / VOCAB if not context else probability(context[1:], word)
        follows = {gram[-1]: c for gram, c in adjusted[k].items() if gram[:-1] == context}
        if not follows:
            return shorter
        taken, total = discounts[k], sum(follows.values())
        assert taken is not None
        spared = sum(taken[min(c, 3) - 1] for c in follows.values()) / total
        own = follows.get(word, 0)
        return (own - taken[min(own, 3) - 1] if own else 0) / total + spared * shorter

    return probability


def relative(texts: list[list[int]], order: int, add: float) -> Probability:
    """(c + add) / (all + add V) after the longest context that has been seen."""
    counts = grams_of(texts, order)

    def probability(context: Gram, word: int) -> float:
        follows = {gram[-1]: c for gram, c in counts[len(context)].items() if gram[:-1] == context}
        if context and not follows:
            return probability(context[1:], word)
        return (follows.get(word, 0) + add) / (sum(follows.values()) + add * VOCAB)

    return probability


def contexts_of(ids: list[int], order: int) -> list[Gram]:
    """What the model may look back at, at each position: order-1 tokens, not past the document's opening boundary."""
    found = []
    for end in range(len(ids)):
        context: list[int | str] = []
        for i in range(end, max(-1, end - order + 1), -1):
            context.insert(0, START if ids[i] == BOUNDARY else ids[i])
            if ids[i] == BOUNDARY:
                break
        found.append(tuple(context))
    return found


def check_against(model: NgramModel, probability: Probability, ids: list[int]) -> None:
    given_ids = torch.tensor([ids])
    log_probs, _ = model(given_ids, model.start(1))
    for position, context in enumerate(contexts_of(ids, model.order)):
        expected = [probability(context, word) for word in range(VOCAB)]
        assert log_probs[0, position].exp().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12), context


text_to_ask = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(texts=documents, order=orders, ids=text_to_ask)
@example(texts=[[]], order=3, ids=[0, 0])
@example(texts=[[1, 1, 1], [1]], order=4, ids=[0, 1, 1, 1, 0, 1])
def test_kneser_ney_is_chen_and_goodman_s(texts, order, ids):
    config = NgramConfig(order=order, discount_fallback=True)
    probability = kneser_ney(texts, order, fallback=True)
    assert probability is not None
    check_against(fit_ngram(config, tokens_of(texts), VOCAB, BOUNDARY), probability, ids)


@settings(deadline=None, max_examples=60)
@given(texts=documents, order=orders)
def test_smoothing_is_exact_before_it_is_stored(texts, order):
    counts = count_ngrams(tokens_of(texts), order, VOCAB, BOUNDARY)
    logs, _ = smooth(NgramConfig(order=order, discount_fallback=True), counts, VOCAB)
    probability = kneser_ney(texts, order, fallback=True)
    assert probability is not None
    before: list[Gram] = [()]
    for table, log_prob in zip(counts, logs):
        grams = [(*before[c], int(w)) for c, w in zip(table.context, table.word)]
        expected = [probability(gram[:-1], gram[-1]) for gram in grams]
        np.testing.assert_allclose(np.exp(log_prob), expected, rtol=1e-12, atol=1e-15)
        before = [tuple(START if i == 0 and w == BOUNDARY else w for i, w in enumerate(gram)) for gram in grams]


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=20), min_size=10, max_size=40),
    order=st.integers(1, 3),
)
def test_discounts_that_do_not_exist_are_refused_and_no_others(texts, order):
    config = NgramConfig(order=order)
    if kneser_ney(texts, order, fallback=False) is None:
        with pytest.raises(DataError, match="discount_fallback"):
            fit_ngram(config, tokens_of(texts), VOCAB, BOUNDARY)
    else:
        fit_ngram(config, tokens_of(texts), VOCAB, BOUNDARY)


@pytest.mark.parametrize(
    ("order", "where"),
    [(1, "1-grams"), (2, "1-grams and a longer order"), (3, "1-grams and 2 longer orders")],
)
def test_orders_without_discounts_are_one_problem(order, where):
    with pytest.raises(DataError) as caught:
        fit_ngram(NgramConfig(order=order), tokens_of([[1, 2, 1, 2, 3]]), VOCAB, BOUNDARY)
    (problem,) = caught.value.problems
    assert problem.where == where
    # The unigrams' adjusted counts are 2 (after <s> and 2), 1, 1 and 1.
    assert problem.got == "no 1-gram has adjusted count 3"


@settings(deadline=None, max_examples=40)
@given(texts=documents, order=orders, ids=text_to_ask, add=st.sampled_from([0.01, 1.0, 7.5]))
def test_additive(texts, order, ids, add):
    config = NgramConfig(order=order, smoothing="additive", additive_count=add)
    check_against(fit_ngram(config, tokens_of(texts), VOCAB, BOUNDARY), relative(texts, order, add), ids)


@settings(deadline=None, max_examples=40)
@given(texts=documents, order=orders, ids=text_to_ask)
def test_maximum_likelihood(texts, order, ids):
    config = NgramConfig(order=order, smoothing="mle")
    check_against(fit_ngram(config, tokens_of(texts), VOCAB, BOUNDARY), relative(texts, order, 0.0), ids)


any_config = st.builds(
    NgramConfig,
    order=orders,
    smoothing=st.sampled_from(["mle", "additive", "kneser-ney"]),
    discount_fallback=st.just(True),
)
rows_to_ask = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=7, max_size=7), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(config=any_config, texts=documents, rows=rows_to_ask, cut=st.integers(1, 6))
def test_all_ways_of_asking_agree(config, texts, rows, cut):
    model = fit_ngram(config, tokens_of(texts), VOCAB, BOUNDARY)
    assert isinstance(model, LanguageModel)
    ids = torch.tensor(rows)
    targets = ids.roll(-1, 1)
    targets[0, 2] = -100
    full, after = model(ids, model.start(len(rows)))
    assert full.exp().sum(-1).numpy() == pytest.approx(1.0, abs=1e-6)

    asked, same = model.log_prob(ids, targets, model.start(len(rows)))
    expected = full.gather(2, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets == -100, 0.0)
    assert torch.equal(asked, expected)
    assert torch.equal(after.recent, same.recent)

    first, state = model(ids[:, :cut], model.start(len(rows)))
    rest, _ = model(ids[:, cut:], state)
    assert torch.equal(torch.cat([first, rest], 1), full)

    backwards = list(range(len(rows)))[::-1]
    alone = [model(ids[i : i + 1, :cut], model.start(1))[1] for i in range(len(rows))]
    joined = type(state).join([alone[i] for i in backwards])
    assert torch.equal(joined.recent, state.select(torch.tensor(backwards)).recent)
    assert torch.equal(model(ids[backwards, cut:], joined)[0], rest[backwards])


@settings(deadline=None, max_examples=20)
@given(config=any_config, texts=documents, rows=rows_to_ask)
def test_a_checkpoint_gives_the_same_model(config, texts, rows):
    model = fit_ngram(config, tokens_of(texts), VOCAB, BOUNDARY)
    again = NgramModel.from_tensors(config, VOCAB, model.tensors())
    ids = torch.tensor(rows)
    assert torch.equal(again(ids, again.start(len(rows)))[0], model(ids, model.start(len(rows)))[0])
    assert again.parameter_count() == model.parameter_count()


def test_parameters_are_probabilities_and_weights():
    model = fit_ngram(NgramConfig(order=2, discount_fallback=True), tokens_of([[1, 2], [1, 3]]), VOCAB, BOUNDARY)
    # Six unigrams with a weight each; <s> 1, 1 2, 1 3, 2 </s>, 3 </s> without.
    assert model.parameter_count() == 2 * VOCAB + 5


def test_a_word_never_seen_gets_uniform_s_share():
    texts = [[1, 2, 1], [2, 1, 2, 2], [1]]
    model = fit_ngram(NgramConfig(order=1, discount_fallback=True), tokens_of(texts), VOCAB, BOUNDARY)
    log_probs, _ = model(torch.tensor([[BOUNDARY]]), model.start(1))
    # Counts 4, 4, 3 of eleven: 1.5 is taken off each, and a sixth of that goes to every id.
    assert log_probs[0, 0].exp()[3].item() == pytest.approx(4.5 / 11 / 6)
    assert log_probs[0, 0].exp()[1].item() == pytest.approx(2.5 / 11 + 4.5 / 11 / 6)


def test_maximum_likelihood_says_never():
    model = fit_ngram(NgramConfig(order=2, smoothing="mle"), tokens_of([[1, 2]]), VOCAB, BOUNDARY)
    found, _ = model.log_prob(torch.tensor([[0, 1, 1]]), torch.tensor([[1, 2, 1]]), model.start(1))
    assert found.tolist() == [[0.0, 0.0, -math.inf]]


def test_text_may_have_any_integer_type():
    tokens = tokens_of([[1, 2, 1], [2, 1]])
    config = NgramConfig(order=3, discount_fallback=True)
    models = [fit_ngram(config, tokens.astype(kind), VOCAB, BOUNDARY) for kind in (np.int64, np.int32, np.uint16)]
    assert all(torch.equal(models[0].tensors()[k], m.tensors()[k]) for m in models for k in m.tensors())


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_ids_outside_the_vocabulary_are_refused(wrong):
    config = NgramConfig(order=2, discount_fallback=True)
    model = fit_ngram(config, tokens_of([[1, 2]]), VOCAB, BOUNDARY)
    good, bad = torch.tensor([[1, 2]]), torch.tensor([[1, wrong]])
    for ask in (
        lambda: model(bad, model.start(1)),
        lambda: model.log_prob(bad, good, model.start(1)),
        lambda: model.log_prob(good, bad, model.start(1)),
        lambda: fit_ngram(config, np.array([1, wrong, BOUNDARY]), VOCAB, BOUNDARY),
    ):
        with pytest.raises(DataError, match="outside the vocabulary"):
            ask()


def test_no_text():
    with pytest.raises(DataError, match="no text"):
        fit_ngram(NgramConfig(), np.array([], np.uint16), VOCAB, BOUNDARY)


def test_tensors_of_another_model_are_refused():
    config = NgramConfig(order=3, discount_fallback=True)
    tensors = fit_ngram(config, tokens_of([[1, 2, 3]]), VOCAB, BOUNDARY).tensors()
    with pytest.raises(CheckpointError, match="unigrams"):
        NgramModel.from_tensors(config, VOCAB + 1, tensors)
    with pytest.raises(CheckpointError, match=r"at most model\.order 2"):
        NgramModel.from_tensors(NgramConfig(order=2), VOCAB, tensors)
    with pytest.raises(CheckpointError, match="n-gram tensors"):
        NgramModel.from_tensors(config, VOCAB, {"embed.tokens.weight": torch.zeros(3)})
