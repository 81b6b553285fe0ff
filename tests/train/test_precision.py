"""A CPU that is slow in bf16 is told of before the first step."""

import pytest
import torch

from gradatim.train import precision
from gradatim.train.precision import product_seconds, speed_notes

CPU = torch.device("cpu")


@pytest.fixture(params=[1.9, 40.0], ids=["quick", "slow"])
def ratio(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """A CPU whose products in bf16 take so many times as long."""
    times = {torch.bfloat16: request.param, torch.float32: 1.0}
    monkeypatch.setattr(precision, "product_seconds", times.__getitem__)
    return float(request.param)


def test_slow_bf16_is_noted_with_what_to_do(ratio: float) -> None:
    notes = speed_notes("bf16", CPU)
    assert len(notes) == (1 if ratio >= precision.SLOW else 0)
    for note in notes:
        assert "takes 40 times as long as in fp32" in note and "--precision fp32" in note


@pytest.mark.parametrize("asked", ["fp32", "fp64"])
def test_other_precisions_are_not_measured(ratio: float, asked: str) -> None:
    assert speed_notes(asked, CPU) == ()


def test_gpus_are_not_measured(ratio: float) -> None:
    assert speed_notes("bf16", torch.device("cuda")) == ()


def test_a_product_takes_time() -> None:
    assert 0 < product_seconds(torch.float32) < 1
