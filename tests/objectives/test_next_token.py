"""Sums and counts: what is divided once must not depend on how the batch is cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gradatim.config.settings import GptConfig, ModelConfig, RecurrentConfig, WindowConfig
from gradatim.models import build_model
from gradatim.objectives.next_token import next_token, target_count
from gradatim.text.batches import IGNORE, Batch

MODELS: list[ModelConfig] = [
    GptConfig(d_model=16, n_layers=1, n_heads=2),
    RecurrentConfig(kind="lstm", d_model=8),
    WindowConfig(window=3, d_model=8, d_ff=8),
]


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (4, 6), generator=generator)
    targets = torch.randint(0, 11, (4, 6), generator=generator)
    targets[0, 2:] = IGNORE  # rows of unequal length
    targets[2] = IGNORE
    return Batch(ids, targets)


@pytest.mark.parametrize("config", MODELS, ids=lambda c: c.kind)
def test_equals_cross_entropy(config: ModelConfig) -> None:
    model = build_model(config, 11, 8).double()
    whole = batch()
    terms, _ = next_token(model, whole)
    total, count = terms["nll"]
    log_probs, _ = model(whole.ids, model.start(4))
    expected = F.nll_loss(log_probs.flatten(0, 1), whole.targets.flatten(), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(total.detach().double(), expected.double(), rtol=1e-6, atol=1e-6)
    assert count == target_count(whole) == 14


@pytest.mark.parametrize("config", MODELS, ids=lambda c: c.kind)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradient_does_not_depend_on_microbatches(config: ModelConfig, size: int) -> None:
    whole = batch()
    gradients = []
    for step in (4, size):
        model = build_model(config, 11, 8).double()
        for first in range(0, 4, step):
            rows = slice(first, first + step)
            terms, _ = next_token(model, Batch(whole.ids[rows], whole.targets[rows]))
            (terms["nll"][0] / target_count(whole)).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0
        torch.testing.assert_close(gradient, gradients[1][name])
