"""``model.queries_and_keys: alike``: keys begin as queries do, in every layout, and the rest as ever."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gradatim.config.settings import BertConfig
from gradatim.models.bert import BERT
from gradatim.models.layers.alike import OWN_SCORE
from gradatim.models.layers.init import Init, draw, initialise


def models(config: BertConfig) -> tuple[BERT, BERT]:
    """Drawn and alike, under one seed."""
    drawn, alike = (BERT(dataclasses.replace(config, queries_and_keys=how), 50, 64) for how in ("drawn", "alike"))
    for model in (drawn, alike):
        initialise(model, 3)
    return drawn, alike


def test_keys_begin_as_queries_and_nothing_else_changes() -> None:
    drawn, alike = models(BertConfig(d_model=96, n_layers=2, n_heads=2))
    before, after = dict(drawn.named_parameters()), dict(alike.named_parameters())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [f"blocks.{layer}.attention.qkv.weight" for layer in (0, 1)]
    for name in changed:
        old, new = (weights[name].view(2, 3, 48, 96) for weights in (before, after))  # heads, q k v, head_dim, width
        assert torch.equal(new[:, 0], new[:, 1])
        assert torch.equal(new[:, 2], old[:, 2])
        torch.testing.assert_close(new[:, 0] / old[:, 0], torch.full_like(new[:, 0], (new / old)[0, 0, 0, 0].item()))


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (256, 8)])
def test_a_position_attends_to_words_like_its_own(width: int, heads: int) -> None:
    _, model = models(BertConfig(d_model=width, n_layers=1, n_heads=heads))
    words = torch.nn.functional.layer_norm(torch.randn(500, width, generator=torch.Generator().manual_seed(0)), [width])
    weight = model.blocks[0].get_parameter("attention.qkv.weight")
    q, k, _ = (words @ weight.T).view(500, heads, 3, width // heads).unbind(2)
    scores = torch.einsum("ihk,jhk->hij", q, k) / (width // heads) ** 0.5
    own = torch.eye(500, dtype=torch.bool)
    assert scores[:, own].mean().item() == pytest.approx(OWN_SCORE, rel=0.1)
    assert abs(scores[:, ~own].mean().item()) < 0.05


@pytest.mark.parametrize(("first", "stop"), [(0, 96), (5, 40), (40, 41), (48, 96), (30, 96)])
def test_a_rank_takes_its_rows_and_columns(first: int, stop: int) -> None:
    init, name = Init("normal", 0.02, alike=16), "blocks.0.attention.qkv.weight"
    whole = draw(init, name, (96, 32), seed=0)
    part = draw(init, name, (96, 32), seed=0, first=first, stop=stop, columns=slice(3, 9))
    assert torch.equal(part, whole[first:stop, 3:9])
