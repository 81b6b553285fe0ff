"""bf16 copies of weights: one a step, and the same bits as without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradatim.config.settings import GptConfig
from gradatim.models import build_model
from gradatim.models.layers.linear import Linear
from gradatim.models.layers.working import in_type, keep_copies
from gradatim.models.neural import NeuralLanguageModel

SMALL: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_multiple": 4}
MICROBATCHES = 3


class Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often each of some tensors is cast."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.seen[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def passes(model: NeuralLanguageModel, context: Callable[[], Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of several microbatches in one step, and the gradients."""
    losses = []
    model.zero_grad()
    with context():
        for seed in range(MICROBATCHES):
            ids = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(seed))
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.nll(model.hidden(ids)[0], ids)
            loss.backward()
            losses.append(loss.detach())
    return losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "config", [GptConfig(**SMALL), GptConfig(**SMALL, bias=False, activation="swiglu", d_ff=24, tied=False)]
)
def test_the_same_bits_with_one_cast_of_each_weight(config: GptConfig, recompute: str) -> None:
    model = build_model(config, 30, 9, seed=1)
    model.set_recompute(recompute)
    matrices = {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    plain = passes(model, nullcontext)
    with Casts(matrices) as counted:
        kept = passes(model, keep_copies)
    for ours, theirs in zip(kept, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert counted.seen == dict.fromkeys(matrices, 1)


def test_gradients_are_ready_while_the_backward_pass_runs() -> None:
    """Of every microbatch: sums over replicas are begun when a weight's gradient is complete."""
    layers = torch.nn.Sequential(*(Linear(8, 8) for _ in range(4)))
    order: list[int] = []
    for number, layer in enumerate(layers):
        layer.weight.register_post_accumulate_grad_hook(lambda _, number=number: order.append(number))  # type: ignore[misc]
        layer.register_full_backward_hook(lambda *_, number=number: order.append(-number))  # type: ignore[misc]
    with keep_copies():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                y = layers(torch.randn(2, 8, requires_grad=True))
            y.sum().backward()
    first, second = order[:8], order[8:]
    assert first == second
    assert first.index(3) < first.index(1)


def test_copies_end_with_the_step() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 3))
    with keep_copies():
        before = in_type(weight, torch.bfloat16)
        assert in_type(weight, torch.bfloat16) is before
        assert in_type(weight, torch.float32) is weight
    with torch.no_grad():
        weight.add_(1.0)
    with keep_copies():
        assert torch.equal(in_type(weight, torch.bfloat16), weight.detach().bfloat16())
    assert in_type(weight, torch.bfloat16) is not in_type(weight, torch.bfloat16)
