"""Sampling against plain NumPy: what each filter keeps, in which order, and that draws follow what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, currently_in_test_context, given, settings
from hypothesis import strategies as st

from gradatim.decode.sampling import Sampling, choose, filtered, likeliest, uniform
from gradatim.errors import ConfigError

CLOSE = 1e-9  # a threshold that near is met or missed by rounding


def clear(condition: bool) -> None:
    """Only examples that rounding cannot decide."""
    if currently_in_test_context():
        assume(condition)


def reference(probabilities: np.ndarray, s: Sampling, seen: Sequence[int] = (), boundary: int = -1) -> np.ndarray:
    """The distribution that is drawn from, each filter on what the one before it left, renormalised."""
    logs = np.log(probabilities)
    for token in set(seen) - {boundary}:
        logs[token] = logs[token] * s.repetition_penalty
    p = np.exp(logs / s.temperature)
    p /= p.sum()
    if s.top_k is not None:
        least = np.sort(p)[::-1][min(s.top_k, len(p)) - 1]
        distinct = np.abs(p - least) > CLOSE * least
        clear(distinct.sum() == len(p) - 1)
        p = np.where(p >= least, p, 0.0)
        p /= p.sum()
    if s.top_p is not None:
        kept, held = [], 0.0
        for token in np.argsort(-p, kind="stable"):
            clear(abs(held - s.top_p) > CLOSE)
            if held < s.top_p:
                kept.append(token)
            held += p[token]
        p = np.where(np.isin(np.arange(len(p)), kept), p, 0.0)
        p /= p.sum()
    if s.min_p is not None:
        least = s.min_p * p.max()
        clear(s.min_p == 1.0 or (np.abs(p - least) > CLOSE * least).all())
        p = np.where(p >= least, p, 0.0)
        p /= p.sum()
    return np.asarray(p)


distributions = st.lists(st.integers(1, 1000), min_size=1, max_size=12, unique=True).map(
    lambda weights: np.array(weights) / sum(weights)
)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.2, 4.0),
    repetition_penalty=st.floats(1.0, 3.0),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
    seed=st.integers(-(2**70), 2**70),
)


def logs_of(*rows: np.ndarray | list[float]) -> torch.Tensor:
    return torch.from_numpy(np.log(np.array(rows, np.float64)))


def distribution(probabilities: np.ndarray | list[float], sampling: Sampling) -> np.ndarray:
    weights = filtered(logs_of(probabilities), sampling)[0].numpy()
    return np.asarray(weights / weights.sum())


@settings(deadline=None, max_examples=200)
@given(probabilities=distributions, sampling=samplings)
def test_what_is_drawn_from_is_the_reference(probabilities, sampling):
    found = distribution(probabilities, sampling)
    expected = reference(probabilities, sampling)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert found.argmax() == probabilities.argmax()  # no filter drops the likeliest


@settings(deadline=None, max_examples=200)
@given(probabilities=distributions, sampling=samplings, data=st.data())
def test_the_token_is_the_reference_s_quantile(probabilities, sampling, data):
    """With the penalty: the first token whose cumulated probability exceeds the row's uniform number."""
    tokens = st.integers(0, len(probabilities) - 1)
    seen, boundary = data.draw(st.lists(tokens, min_size=1, max_size=8)), data.draw(tokens)
    row, position = data.draw(st.integers(0, 2**40)), data.draw(st.integers(0, 2**20))
    expected = reference(probabilities, sampling, seen, boundary)
    rows = torch.tensor([row])
    (chosen,) = choose(logs_of(probabilities), sampling, rows, position, torch.tensor([seen]), boundary).tolist()
    assert expected[chosen] > 0
    edges = expected.cumsum()
    drawn = uniform(sampling.seed, rows, position).item()
    assume((np.abs(edges - drawn) > CLOSE).all())
    assert chosen == np.searchsorted(edges, drawn, side="right")


@settings(deadline=None, max_examples=200)
@given(
    logits=st.lists(st.floats(-80, 80, width=32) | st.just(-math.inf), min_size=2, max_size=12),
    temperature=st.sampled_from([1e-300, 1e-46, 1e-39, 1e-5, 0.5, 1.0, 100.0, 1e30, 1e300]),
    sampling=samplings,
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_distribution_gives_a_token_that_can_occur(logits, temperature, sampling, dtype):
    assume(max(logits) > -math.inf)
    log_probs = torch.tensor([logits] * 3, dtype=dtype).log_softmax(-1)
    sampling = Sampling(temperature=temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
    weights = filtered(log_probs, sampling)
    assert torch.isfinite(weights).all() and (weights >= 0).all() and weights.amax() == 1
    chosen = choose(log_probs, sampling, torch.arange(3), 0)
    assert (weights.gather(1, chosen[:, None]) > 0).all()
    assert (log_probs.gather(1, chosen[:, None]) > -math.inf).all()


def test_draws_are_as_frequent_as_they_are_probable():
    """Ten thousand rows, each with its own number."""
    probabilities = np.array([0.02, 0.4, 0.08, 0.3, 0.2])
    n = 10_000
    log_probs = logs_of(probabilities).expand(n, -1)
    for sampling in (
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, seed=2),
        Sampling(temperature=2.0, top_k=4, seed=3),
        Sampling(temperature=1.0, top_p=0.85, seed=4),
        Sampling(temperature=1.0, min_p=0.15, seed=5),
    ):
        expected = reference(probabilities, sampling)
        counts = np.bincount(choose(log_probs, sampling, torch.arange(n), 7), minlength=5)
        assert not counts[expected == 0].any()
        assert (np.abs(counts - n * expected) <= 4.5 * np.sqrt(n * expected * (1 - expected))).all()


def test_positions_of_one_row_are_independent_draws():
    log_probs = logs_of([0.5, 0.5])
    sampling = Sampling(temperature=1.0)
    drawn = np.array([choose(log_probs, sampling, torch.tensor([3]), position).item() for position in range(2000)])
    assert abs(drawn.mean() - 0.5) < 0.05
    assert abs((drawn[1:] == drawn[:-1]).mean() - 0.5) < 0.05


# --------------------------------------------------------------------------- the order of the filters


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.5), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.39), {0}),
        (Sampling(temperature=1.0, top_p=1.0), {0, 1, 2, 3}),
        (Sampling(temperature=1.0, top_k=2, top_p=0.5), {0}),  # 4/7 ≥ 0.5; top-p first would leave two
        (Sampling(temperature=1.0, top_p=0.5, min_p=0.6), {0, 1}),  # min-p first would leave one, 4/7 ≥ 0.5
        (Sampling(temperature=2.0, top_p=0.5), {0, 1}),
        (Sampling(temperature=0.5, top_p=0.5), {0}),  # 16/30 ≥ 0.5: temperature comes before top-p
        (Sampling(temperature=0.5, min_p=0.6), {0}),  # (3/4)² < 0.6: and before min-p
        (Sampling(temperature=1.0, min_p=0.0), {0, 1, 2, 3}),
        (Sampling(temperature=1.0, min_p=1.0), {0}),
        (Sampling(temperature=1.0, top_k=9), {0, 1, 2, 3}),
    ],
)
def test_filters_apply_in_the_order_of_the_fields(sampling, kept):
    assert set(np.flatnonzero(distribution([0.4, 0.3, 0.2, 0.1], sampling)).tolist()) == kept


def test_the_penalty_comes_before_the_filters():
    log_probs, rows = logs_of([0.4, 0.3, 0.2, 0.1]).expand(50, -1), torch.arange(50)
    one = Sampling(temperature=1.0, top_k=1, repetition_penalty=1.5)
    seen = torch.zeros(50, 3, dtype=torch.int64)
    assert set(choose(log_probs, one, rows, 0, seen).tolist()) == {1}  # 0.4^1.5 = 0.25
    assert set(choose(log_probs, one, rows, 0, seen, boundary=0).tolist()) == {0}
    assert set(choose(log_probs, one, rows, 0).tolist()) == {0}


def test_tokens_as_likely_as_the_kth_are_all_kept():
    found = distribution([0.2, 0.3, 0.2, 0.2, 0.1], Sampling(temperature=1.0, top_k=2))
    np.testing.assert_allclose(found, np.array([2, 3, 2, 2, 0]) / 9)


def test_top_p_takes_equals_in_the_order_of_their_ids():
    found = distribution([0.25] * 4, Sampling(temperature=1.0, top_p=0.5))
    np.testing.assert_allclose(found, [0.5, 0.5, 0, 0])


# --------------------------------------------------------------------------- greedy, penalty, seeds


@settings(deadline=None)
@given(probabilities=distributions, penalty=st.floats(1.0, 3.0), data=st.data())
def test_greedy_takes_the_likeliest_after_the_penalty(probabilities, penalty, data):
    seen = data.draw(st.lists(st.integers(0, len(probabilities) - 1), max_size=8))
    sampling = Sampling(repetition_penalty=penalty, top_k=1, top_p=0.1, seed=data.draw(st.integers()))
    logs = np.log(probabilities)
    for token in set(seen) - {0}:
        logs[token] *= penalty
    ids = torch.tensor([seen], dtype=torch.int64)
    assert choose(logs_of(probabilities), sampling, torch.tensor([0]), 0, ids, 0).item() == logs.argmax()


def test_the_penalty_is_exact_and_counts_a_token_once():
    log_probs = logs_of([0.7, 0.2, 0.1]).expand(2000, -1)
    seen = torch.tensor([[0, 0, 0, 2]]).expand(2000, -1)
    sampling, rows = Sampling(temperature=1.0, repetition_penalty=1.3), torch.arange(2000)
    own = log_probs.clone()
    own[:, 0], own[:, 2] = log_probs[:, 0] * 1.3, log_probs[:, 2] * 1.3
    expected = choose(own, Sampling(temperature=1.0), rows, 0)
    assert torch.equal(choose(log_probs, sampling, rows, 0, seen), expected)
    # A penalty between two neighbours of float32 decides as float64 does.
    third = math.log(0.2) / math.log(0.7)
    for penalty, best in ((third * (1 - 1e-12), 0), (third * (1 + 1e-12), 1)):
        greedy = Sampling(repetition_penalty=penalty)
        assert choose(log_probs[:1], greedy, rows[:1], 0, seen[:1]).item() == best


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_and_certain_tokens_survive_a_penalty(dtype):
    log_probs = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=dtype)
    sampling = Sampling(temperature=1.0, repetition_penalty=1e300)
    assert choose(log_probs, sampling, torch.tensor([0]), 0, torch.tensor([[0, 1]])).item() == 0


@settings(deadline=None)
@given(seed=st.integers(-(2**70), 2**70), position=st.integers(0, 2**40), n=st.integers(1, 20), data=st.data())
def test_a_draw_depends_on_seed_row_and_position_alone(seed, position, n, data):
    sampling = Sampling(temperature=1.0, seed=seed)
    log_probs = torch.randn(n, 50, generator=torch.Generator().manual_seed(n)).log_softmax(-1)
    rows = torch.arange(n)
    whole = choose(log_probs, sampling, rows, position)
    order = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n)))
    assert torch.equal(choose(log_probs[order], sampling, rows[order], position), whole[order])
    assert torch.equal(choose(log_probs, sampling, rows, position), whole)


def test_seeds_rows_and_positions_give_other_numbers():
    rows = torch.arange(1000)
    numbers = [uniform(seed, rows, position) for seed in (0, 1, -1) for position in (0, 1)]
    assert all(((x >= 0) & (x < 1)).all() for x in numbers)
    assert len(set(torch.cat(numbers).tolist())) == 6000
    together = torch.stack(numbers)
    assert torch.allclose(together.mean(1), torch.tensor(0.5, dtype=torch.float64), atol=0.05)
    assert torch.corrcoef(together).fill_diagonal_(0).abs().amax() < 0.15


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3) | st.just(-math.inf), min_size=1, max_size=30), st.integers(1, 40))
def test_of_equals_the_likeliest_are_the_first(values, most):
    found, places = likeliest(torch.tensor(values, dtype=torch.float64), most)
    expected = sorted(range(len(values)), key=lambda place: (-values[place], place))[:most]
    assert places.tolist() == expected
    assert found.tolist() == [values[place] for place in expected]


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("field", "flag", "bad", "good", "allowed"),
    [
        ("temperature", "--temperature", [-0.1, math.inf, math.nan], [0.0, 5.0], "0 or more, finite"),
        ("repetition_penalty", "--repetition-penalty", [0.99, -1.0, math.inf, math.nan], [1.0, 2.0], "1 or more"),
        ("top_k", "--top-k", [0, -3], [None, 1, 10**9], "1 or more"),
        ("top_p", "--top-p", [0.0, -0.5, 1.01, math.nan], [None, 1e-9, 1.0], "above 0, at most 1"),
        ("min_p", "--min-p", [-0.01, 1.01, math.nan], [None, 0.0, 1.0], "0 to 1"),
    ],
)
def test_what_is_out_of_range_is_named_with_what_is_allowed(field, flag, bad, good, allowed):
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            Sampling(**{field: value}).check()
        (problem,) = caught.value.problems
        assert (problem.where, problem.got) == (flag, str(value))
        assert problem.allowed.startswith(allowed)
    for value in good:
        Sampling(**{field: value}).check()


def test_every_setting_out_of_range_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-1, repetition_penalty=0, top_k=0, top_p=2, min_p=-1).check()
    flags = ["--temperature", "--repetition-penalty", "--top-k", "--top-p", "--min-p"]
    assert [problem.where for problem in caught.value.problems] == flags
