"""What every neural language model promises, whatever its kind."""

from __future__ import annotations

import pytest
import torch

from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig, WindowConfig
from gradatim.models import build_model
from gradatim.models.protocol import LanguageModel

VOCAB, CONTEXT = 21, 24

CONFIGS = {
    "window": WindowConfig(window=4, d_model=8, d_ff=12),
    "window-untied": WindowConfig(window=1, d_model=8, d_ff=12, tied=False),
    "rnn": RecurrentConfig(kind="rnn", d_model=8),
    "gru": RecurrentConfig(kind="gru", d_model=8, n_layers=2, tied=False),
    "lstm": RecurrentConfig(kind="lstm", d_model=8, d_embedding=6, n_layers=2),
    "gpt2": GptConfig(d_model=16, n_layers=2, n_heads=4, vocab_multiple=8),
    "llama": GptConfig(
        d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, positions="rotary", norm="rms", activation="swiglu",
        bias=False, tied=False, vocab_multiple=16,
    ),
}  # fmt: skip


def build(name, dtype=torch.float64):
    return build_model(CONFIGS[name], VOCAB, CONTEXT).to(dtype).eval()


@pytest.fixture(params=list(CONFIGS))
def name(request):
    return request.param


def some_ids(b=3, t=12, seed=0):
    return torch.randint(0, VOCAB, (b, t), generator=torch.Generator().manual_seed(seed))


def test_it_is_a_language_model_and_its_distributions_sum_to_one(name):
    model = build(name)
    assert isinstance(model, LanguageModel)
    log_probs, _ = model(some_ids(), model.start(3))
    assert log_probs.shape == (3, 12, VOCAB)
    assert not log_probs.requires_grad
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 12, dtype=torch.float64))


def test_reading_piece_by_piece_equals_reading_at_once(name):
    model, ids = build(name), some_ids()
    whole, _ = model(ids, model.start(3))
    for cuts in [(1,) * 12, (5, 7), (1, 4, 1, 6), (11, 1)]:
        state, pieces = model.start(3), []
        for piece in ids.split(cuts, dim=1):
            log_probs, state = model(piece, state)
            pieces.append(log_probs)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_nothing_depends_on_the_future(name):
    model, ids = build(name), some_ids()
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % VOCAB
    before, after = (model(x, model.start(3))[0] for x in (ids, changed))
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any()


def test_a_state_used_twice_answers_twice_the_same(name):
    model, ids = build(name), some_ids()
    _, state = model(ids[:, :5], model.start(3))
    one, grown = model(ids[:, 5:6], state)
    other, _ = model(ids[:, 8:9], state)  # another branch, which must not disturb the first
    again, _ = model(ids[:, 5:6], state)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    path = torch.cat([ids[:, :6], ids[:, 6:7]], 1)
    torch.testing.assert_close(model(ids[:, 6:7], grown)[0][:, 0], model(path, model.start(3))[0][:, -1])


def test_rows_can_be_selected_and_joined(name):
    model, ids = build(name), some_ids()
    whole, _ = model(ids, model.start(3))
    _, state = model(ids[:, :6], model.start(3))
    rows = torch.tensor([2, 0, 0])
    picked, _ = model(ids[rows, 6:], state.select(rows))
    torch.testing.assert_close(picked, whole[rows, 6:])
    halves = [model(ids[part, :6], model.start(len(part)))[1] for part in ([0], [1, 2])]
    joined, _ = model(ids[:, 6:], type(state).join(halves))
    torch.testing.assert_close(joined, whole[:, 6:])
    fresh = type(state).join([model.start(1), model.start(2)]).select(torch.tensor([0, 1]))
    torch.testing.assert_close(model(ids[:2], fresh)[0], whole[:2])


def test_log_prob_and_nll_are_the_table_s_entries(name):
    model, ids = build(name), some_ids()
    targets = some_ids(seed=1)
    targets[0, 3] = targets[2, 11] = -100
    table, _ = model(ids, model.start(3))
    expected = table.gather(2, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets == -100, 0.0)
    found, state = model.log_prob(ids, targets, model.start(3))
    torch.testing.assert_close(found, expected)
    following, _ = model(ids[:, :1], state)
    assert following.shape == (3, 1, VOCAB)
    hidden, _ = model.hidden(ids)
    loss = model.nll(hidden, targets)
    torch.testing.assert_close(loss, -expected.sum())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_state_joins_an_update_of_the_model(name):
    """Training from a carried state, or from none, reaches every weight."""
    model = build(name).train()
    hidden, _ = model.hidden(some_ids(t=6), None)
    (model.nll(hidden, some_ids(t=6)) / 18).backward()
    norm = sum(parameter.grad.square().sum() for parameter in model.parameters()).sqrt()
    assert 0 < norm < 100


def test_initial_weights_follow_from_the_seed_alone(name):
    one, two, other = (build_model(CONFIGS[name], VOCAB, CONTEXT, seed=seed) for seed in (0, 0, 1))
    pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)
    assert all(torch.isfinite(a).all() for a, _, _ in pairs)


def test_the_untrained_loss_is_nearly_that_of_guessing(name):
    model, ids = build(name, torch.float32), some_ids(8, 12)
    log_probs, _ = model.log_prob(ids, some_ids(8, 12, seed=1), model.start(8))
    assert -log_probs.mean().item() == pytest.approx(torch.tensor(float(VOCAB)).log().item(), rel=0.1)


def test_ngrams_are_not_built():
    with pytest.raises(TypeError, match="fitted by counting"):
        build_model(NgramConfig(), VOCAB, CONTEXT)
