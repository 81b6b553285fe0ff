"""The product for few rows equals PyTorch's, and training never takes it."""

import pytest
import torch
import torch.nn.functional as F

from gradatim.models.layers.linear import FEW, Linear, linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("out", [1, 7, 64])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 1), (3, 1), (FEW,), (FEW + 1,), (2, 3), (0,), (0, 4)])
def test_it_is_f_linear_whatever_the_rows(shape: tuple[int, ...], out: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, 5, dtype=torch.float64), torch.randn(out, 5, dtype=torch.float64)
    b = torch.randn(out, dtype=torch.float64) if bias else None
    with torch.no_grad():
        y = linear(x, weight, b)
    assert y.is_contiguous()
    torch.testing.assert_close(y, F.linear(x, weight, b), rtol=1e-13, atol=1e-13)


def test_inputs_and_weights_may_be_views() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3).t(), torch.randn(5, 7).t()
    with torch.no_grad():
        torch.testing.assert_close(linear(x[:, None], weight[:6]), F.linear(x[:, None], weight[:6]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_training_and_half_precision_keep_pytorchs_own_product(dtype: torch.dtype, monkeypatch) -> None:
    layer, x = Linear(5, 7).to(dtype), torch.randn(2, 5, dtype=dtype)
    monkeypatch.setattr(torch, "addmm", None)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    if dtype is torch.bfloat16:
        with torch.no_grad():
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
