"""``model.position_vectors: sinusoidal``: learned positions begin as waves, in every layout, and the rest as ever."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from gradatim.config.settings import BertConfig
from gradatim.models.bert import BERT
from gradatim.models.layers.init import Init, draw, initialise
from gradatim.models.layers.sinusoids import sinusoids

POSITIONS = "embed.positions.weight"


def test_positions_begin_as_waves_of_length_one() -> None:
    config = BertConfig(d_model=24, n_layers=1, n_heads=2)
    waves = BERT(dataclasses.replace(config, position_vectors="sinusoidal"), 50, 100)
    drawn = BERT(config, 50, 100)
    for model in (drawn, waves):
        initialise(model, 3)
    before, after = dict(drawn.named_parameters()), dict(waves.named_parameters())
    assert [name for name in before if not torch.equal(before[name], after[name])] == [POSITIONS]
    torch.testing.assert_close(after[POSITIONS].norm(dim=1), torch.ones(100), rtol=1e-5, atol=0)
    torch.testing.assert_close(before[POSITIONS].std().item(), 0.02, rtol=0.1, atol=0)


def test_a_shift_of_the_position_is_one_rotation() -> None:
    waves = sinusoids(200, 16).double()
    shift = torch.linalg.lstsq(waves[:-3], waves[3:]).solution
    torch.testing.assert_close(waves[:-3] @ shift, waves[3:], rtol=0, atol=1e-4)
    assert waves[5, 2].item() == pytest.approx(math.sin(5 / 10000 ** (2 / 16)))
    assert waves[5, 3].item() == pytest.approx(math.cos(5 / 10000 ** (2 / 16)))


@pytest.mark.parametrize("width", [1, 7, 8])
def test_a_rank_takes_its_rows_and_columns(width: int) -> None:
    init = Init("sinusoidal", 0.5)
    whole = draw(init, POSITIONS, (150, width), seed=0)
    part = draw(init, POSITIONS, (150, width), seed=9, first=30, stop=140, columns=slice(0, (width + 1) // 2))
    assert torch.equal(part, whole[30:140, : (width + 1) // 2])
    assert torch.equal(whole, sinusoids(150, width) * (0.5 * 2**0.5))
