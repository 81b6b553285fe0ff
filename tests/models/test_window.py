"""The fixed-window model against its equation, token by token."""

from __future__ import annotations

import pytest
import torch

from gradatim.config.settings import WindowConfig
from gradatim.models import build_model


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_it_is_bengio_s_equation(window, tied):
    model = build_model(WindowConfig(window=window, d_model=4, d_ff=6, tied=tied), 9, 16).double()
    ids = torch.randint(0, 9, (1, 7), generator=torch.Generator().manual_seed(0))
    log_probs, _ = model(ids, model.start(1))
    table, inner, out = model.embed.tokens.weight, model.blocks[0].hidden, model.head.output
    padded = [9] * (window - 1) + ids[0].tolist()  # row 9 stands for what was before the text
    for position in range(7):
        x = torch.cat([table[i] for i in padded[position : position + window]])
        y = torch.tanh(inner.weight @ x + inner.bias)
        if tied:
            y = model.head.projection.weight @ y
        logits = out.weight[:9] @ y + out.bias
        torch.testing.assert_close(log_probs[0, position], logits.log_softmax(-1))


def test_it_sees_no_further_than_its_window():
    model = build_model(WindowConfig(window=3, d_model=4, d_ff=6), 9, 16).double()
    ids = torch.zeros(1, 8, dtype=torch.int64)
    changed = ids.clone()
    changed[0, 0] = 5
    one, other = (model(x, model.start(1))[0][0] for x in (ids, changed))
    assert (one[:3] != other[:3]).any(-1).all()
    assert torch.equal(one[3:], other[3:])
