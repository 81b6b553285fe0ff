"""Recurrent models: state carried over chunks, regularisation, and what each cell remembers."""

from __future__ import annotations

import pytest
import torch

from gradatim.config.settings import RecurrentConfig
from gradatim.models import build_model


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_a_detached_state_carries_numbers_but_no_history(kind):
    model = build_model(RecurrentConfig(kind=kind, d_model=8, n_layers=2), 11, 16).double()
    ids = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(0))
    whole, _ = model.hidden(ids)
    first, state = model.hidden(ids[:, :5])
    second, _ = model.hidden(ids[:, 5:], state.detach())
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    rest = model.embed.tokens.weight.detach().clone()
    (gradient,) = torch.autograd.grad(second.sum(), model.embed.tokens.weight)
    unread = [i for i in range(11) if i not in ids[:, 5:].tolist()[0] + ids[:, 5:].tolist()[1]]
    assert not gradient[unread].any()  # words before the cut are out of reach
    assert torch.equal(rest, model.embed.tokens.weight)


def test_lstm_starts_by_remembering():
    model = build_model(RecurrentConfig(kind="lstm", d_model=8), 11, 16)
    bias = model.blocks[0].bias_ih + model.blocks[0].bias_hh
    assert bias.view(4, 8).mean(1).tolist() == [0.0, 1.0, 0.0, 0.0]  # i f g o


def test_regularisation_acts_in_training_alone():
    config = RecurrentConfig(kind="lstm", d_model=8, n_layers=2, dropout=0.3, embedding_dropout=0.2, weight_drop=0.4)
    model = build_model(config, 11, 16)
    plain = build_model(RecurrentConfig(kind="lstm", d_model=8, n_layers=2), 11, 16)
    ids = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval().hidden(ids)[0], plain.eval().hidden(ids)[0])
    torch.manual_seed(1)
    dropped = model.train().hidden(ids)[0]
    units = (dropped == 0).all(1)  # locked: a unit is off at every step
    assert units.any()
    assert torch.equal(units[:, None].expand_as(dropped), dropped == 0)
    model.nll(dropped, ids).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
