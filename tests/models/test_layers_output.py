"""The fused output layer against the plain chain of linear layer and cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradatim.models.layers import output as module
from gradatim.models.layers.output import LinearCrossEntropy, Output, slices


@pytest.fixture(params=["whole", "chunks"])
def chunked(request, monkeypatch):
    """Run with everything in one chunk, and with chunks and slices of a few rows that do not divide evenly."""
    if request.param == "chunks":
        monkeypatch.setattr(module, "CHUNK_BYTES", 3 * 11 * 8)
        monkeypatch.setattr(module, "SLICE_BYTES", 2 * 11 * 8)


def case(bias: bool, padding: int = 3, dtype=torch.float64):
    torch.manual_seed(0)
    n, v, d = 10, 11, 6
    hidden = torch.randn(n, d, dtype=dtype, requires_grad=True)
    layer = Output(nn.Parameter(torch.randn(v + padding, d, dtype=dtype)), v, bias=bias)
    if bias:
        layer.bias = nn.Parameter(torch.randn(v, dtype=dtype))
    targets = torch.randint(0, v, (n,))
    targets[[0, 7]] = -100
    return hidden, layer, targets


def reference(hidden, layer, targets):
    logits = F.linear(hidden, layer.weight[: layer.vocab_size], layer.bias)
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, [t for t in tensors if t is not None], retain_graph=True)


@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_equal_the_plain_chain(chunked, bias):
    hidden, layer, targets = case(bias)
    ours, plain = layer.nll(hidden, targets) / 8, reference(hidden, layer, targets) / 8
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    inputs = hidden, layer.weight, layer.bias
    for _ in range(2):  # the second time through the same graph
        for a, b in zip(gradients(ours, *inputs), gradients(plain, *inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(chunked, bias):
    hidden, layer, targets = case(bias)
    inputs = (hidden, layer.weight) + ((layer.bias,) if bias else ())
    assert torch.autograd.gradcheck(
        lambda h, w, b=None: LinearCrossEntropy.apply(h, w, b, targets, layer.vocab_size, None) * 0.3, inputs
    )


def test_gradient_reaches_only_what_asks_for_it():
    hidden, layer, targets = case(bias=False)
    layer.weight.requires_grad_(False)
    layer.nll(hidden, targets).backward()
    assert layer.weight.grad is None
    assert hidden.grad is not None
    hidden, layer, targets = case(bias=True)
    layer.nll(hidden.detach(), targets).backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None


def test_padding_is_never_predicted_and_learns_nothing():
    hidden, layer, targets = case(bias=False)
    with torch.no_grad():
        layer.weight[layer.vocab_size :] = 1e3
    log_probs = layer.log_probs(hidden)
    assert log_probs.shape == (10, 11)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(10, dtype=torch.float64))
    layer.nll(hidden, targets).backward()
    assert not layer.weight.grad[layer.vocab_size :].any()


def test_log_prob_equals_gathering(chunked):
    hidden, layer, targets = case(bias=True)
    expected = layer.log_probs(hidden).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(layer.log_prob(hidden, targets), expected.masked_fill(targets == -100, 0.0))


def test_log_prob_computes_no_logits_where_none_are_asked_for(chunked, monkeypatch):
    hidden, layer, targets = case(bias=True)
    read = []
    whole = layer.logits
    monkeypatch.setattr(layer, "logits", lambda rows: read.append(len(rows)) or whole(rows))
    layer.log_prob(hidden, targets)
    assert sum(read) == (targets != -100).sum() < len(targets)
    assert not layer.log_prob(hidden, torch.full_like(targets, -100)).any()
    assert sum(read) == (targets != -100).sum()


def test_bf16_autocast_keeps_fp32_sums_and_gradient_types():
    hidden, layer, targets = case(bias=True, dtype=torch.float32)
    plain = reference(hidden, layer, targets)
    expected = gradients(plain, hidden, layer.weight, layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer.nll(hidden, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=0)
    found = gradients(loss, hidden, layer.weight, layer.bias)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.03)


def test_nothing_to_predict():
    hidden, layer, _ = case(bias=True)
    for rows in (0, 10):
        loss = layer.nll(hidden[:rows], torch.full((rows,), -100))
        loss.backward()
        assert loss.item() == 0.0
        assert not layer.weight.grad.any()


def test_a_wildly_confident_model_stays_finite():
    hidden, layer, targets = case(bias=False, dtype=torch.float32)
    loss = layer.nll(hidden * 1e4, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()


def test_slices_cover_everything_once():
    for rows in (0, 1, 7, 64):
        for most in (0, 1, 3, 64, 100):
            parts = list(slices(rows, most))
            assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
            assert all(part.stop - part.start <= max(1, most) for part in parts)
