"""The decoder against Hugging Face's formulas where they are not covered by its layers, its cache and its start."""

from __future__ import annotations

import pytest
import torch

from gradatim.config.settings import GptConfig
from gradatim.models import build_model
from gradatim.models.layers.cache import ROOM, KeyValueCache


def test_the_cache_grows_and_stays_equal_to_reading_at_once():
    config = GptConfig(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, positions="rotary")
    context = 3 * ROOM
    model = build_model(config, 20, context).double().eval()
    ids = torch.randint(0, 20, (2, context), generator=torch.Generator().manual_seed(0))
    whole, _ = model(ids, model.start(2))
    state, rows = model.start(2), []
    for one in ids.split(1, dim=1):
        log_probs, state = model(one, state)
        rows.append(log_probs)
    torch.testing.assert_close(torch.cat(rows, 1), whole)
    with pytest.raises(ValueError, match="do not fit the context"):
        model(ids[:, :1], state)


def test_appending_in_turn_does_not_copy_and_branching_does():
    keys = torch.zeros(1, 1, 1, 4)
    one = KeyValueCache(1).reserve(1, most=100)
    one.append(0, keys, keys)
    two = one.reserve(1, most=100)
    two.append(0, keys + 2, keys + 2)
    assert two.buffer is one.buffer
    other = one.reserve(1, most=100)
    assert other.buffer is not one.buffer
    found, _ = other.append(0, keys + 3, keys + 3)
    assert found[0, 0, :, 0].tolist() == [0, 3]
    three, _ = two.reserve(1, most=100).append(0, keys + 4, keys + 4)
    assert three[0, 0, :, 0].tolist() == [0, 2, 4]


def test_states_of_unequal_length_are_not_joined():
    model = build_model(GptConfig(d_model=8, n_layers=1, n_heads=2), 10, 8)
    short, long = (model(torch.zeros(1, n, dtype=torch.int64), model.start(1))[1] for n in (1, 2))
    with pytest.raises(ValueError, match="unequal length"):
        KeyValueCache.join([short, long])


def test_initial_weights_are_gpt2_s():
    model = build_model(GptConfig(d_model=256, n_layers=8, n_heads=4), 500, 64)
    deviations = {name: p.std().item() for name, p in model.named_parameters() if p.dim() == 2}
    for name, deviation in deviations.items():
        residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
        assert deviation == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.05), name
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name


def test_dropout_draws_from_the_default_generator_and_only_in_training():
    model = build_model(GptConfig(d_model=16, n_layers=1, n_heads=4, dropout=0.5), 20, 8)
    ids = torch.zeros(2, 8, dtype=torch.int64)

    def run(seed):
        torch.manual_seed(seed)
        return model.train().hidden(ids)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(model.eval().hidden(ids)[0], model.hidden(ids)[0])


def test_bf16_training_has_fp32_loss_and_gradients():
    model = build_model(GptConfig(d_model=16, n_layers=2, n_heads=4), 20, 8)
    ids = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))
    exact = model.nll(model.hidden(ids)[0], ids)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.nll(model.hidden(ids)[0], ids)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
