"""Decay groups, the norm of the whole gradient, clipping, and moments that come back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradatim.config.settings import OptimizerConfig
from gradatim.train.optimizer import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    load_optimizer,
    optimizer_tensors,
    set_learning_rate,
)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3), nn.LayerNorm(3))


def backward(model: nn.Module, scale: float = 1.0) -> None:
    (model(torch.arange(7)).pow(3).sum() * scale).backward()


def test_matrices_decay_and_vectors_do_not() -> None:
    model = small()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5))
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[p] for name, p in model.named_parameters()} == {
        "0.weight": 0.5, "1.weight": 0.5, "1.bias": 0.0, "2.weight": 0.0, "2.bias": 0.0,
    }  # fmt: skip


def test_one_update_equals_the_equations() -> None:
    """θ ← θ - lr wd θ - lr m̂ / (√v̂ + ε), Loshchilov and Hutter 2019."""
    model = small().double()
    backward(model)
    config = OptimizerConfig(lr=0.01, warmup=0, schedule="constant", weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, config, 10, 0)
    optimizer.step()
    for name, p in model.named_parameters():
        assert p.grad is not None
        m, v = 0.1 * p.grad / (1 - 0.9), 0.01 * p.grad**2 / (1 - 0.99)
        decay = 0.1 if p.dim() >= 2 else 0.0
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * m / (v.sqrt() + 1e-8)
        torch.testing.assert_close(p.detach(), expected)


def test_norm_and_clipping_equal_torch() -> None:
    ours, theirs = small(), small()
    backward(ours, 100)
    backward(theirs, 100)
    norm = float(gradient_norm(ours.parameters()))
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)), rel=1e-6)
    clip_gradients(ours.parameters(), norm, 1.0)
    assert float(gradient_norm(ours.parameters())) == pytest.approx(1.0, rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_small_gradients_are_left_alone() -> None:
    model = small()
    backward(model, 1e-3)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    clip_gradients(model.parameters(), float(gradient_norm(model.parameters())), 10.0)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True) if p.grad is not None)


def test_moments_come_back_bit_for_bit() -> None:
    config = OptimizerConfig(lr=0.1, schedule="constant")
    straight = small()
    optimizer = build_optimizer(straight, config)
    for _ in range(3):
        optimizer.zero_grad()
        backward(straight)
        optimizer.step()
    saved = {k: v.clone() for k, v in optimizer_tensors(straight, optimizer).items()}
    assert len(saved) == 10  # two moments of five parameters
    assert all(float(v.abs().sum()) > 0 for k, v in saved.items() if "weight" in k)
    resumed = small()
    resumed.load_state_dict(straight.state_dict())
    again = build_optimizer(resumed, config)
    load_optimizer(resumed, again, saved, updates=3)
    for model, opt in ((straight, optimizer), (resumed, again)):
        for _ in range(2):
            opt.zero_grad()
            backward(model)
            opt.step()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
