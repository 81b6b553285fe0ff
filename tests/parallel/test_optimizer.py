"""Updates under every way of sharding equal those of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes import serial
from pool import Pool
from torch import Tensor

from gradatim.parallel.optimizer import sum_of_squares

OfWorld = Callable[[int], Pool]
STEPS = 4
LAYOUTS = [(1, 2, 1), (1, 1, 2), (2, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)]
"""pp, dp, tp."""


def assemble(found: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Whole tensors of all ranks' parts, in which a number that several hold must be the same bits."""
    whole: dict[str, Tensor] = {}
    for part in (part for rank in found for part in rank["found"]):
        spec, what, begin, values = part
        key = {"model": f"model/{spec.global_name}", "gradient": f"gradient/{spec.global_name}"}.get(
            what, f"optimizer/{spec.global_name}/{what}"
        )
        tensor = whole.setdefault(key, torch.full(spec.shape, torch.nan, dtype=values.dtype))
        local = tensor[tuple(slice(a, a + n) for a, n in zip(spec.offset, spec.local))]
        flat = local.flatten()  # a copy
        run = flat[begin : begin + len(values)]
        known = ~run.isnan()
        assert torch.equal(run[known], values[known]), f"{key} differs between ranks that hold it"
        run.copy_(values)
        local.copy_(flat.view(local.shape))
    return whole


def close(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).norm()) <= 1e-12 * max(float(theirs.norm()), 1e-3)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("sizes", LAYOUTS, ids=lambda sizes: "pp{}-dp{}-tp{}".format(*sizes))
def test_equal_to_one_process(sizes: tuple[int, int, int], zero: int, pool: OfWorld) -> None:
    pp, dp, tp = sizes
    for tied, chunks, bucket_bytes in [(True, 1, 25 << 20), (False, 1, 300), (True, 2 if pp > 1 else 1, 1)]:
        options = {"tied": tied, "partial": tp > 1, "chunks": chunks}
        arguments = (sizes, zero, STEPS, bucket_bytes, options)
        found = pool(pp * dp * tp).run("work_gradients:train", *arguments)
        wanted = serial(tied, STEPS, dp, 0.01, 1.0, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
        ours = assemble(found)
        assert all(rank["norms"] == found[0]["norms"] for rank in found)
        assert found[0]["norms"] == pytest.approx(wanted["norms"], rel=1e-12)
        assert max(wanted["norms"]) > 1.0, "clipping must be part of this test"
        theirs = wanted["tensors"] | {
            # The last step's gradient was scaled where it lay only after it was copied.
            f"gradient/{name}": tensor for name, tensor in wanted["gradients"].items()
        }  # fmt: skip
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert close(ours[name], tensor), name


@pytest.mark.parametrize("zero", [0, 1])
def test_the_same_layout_twice_is_bitwise_equal(zero: int, pool: OfWorld) -> None:
    arguments = ((1, 4, 1), zero, STEPS, 300, {"tied": True, "partial": False})
    once = assemble(pool(4).run("work_gradients:train", *arguments))
    again = assemble(pool(4).run("work_gradients:train", *arguments))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_one_process_needs_no_group() -> None:
    from work_gradients import train

    found = train(0, 1, (1, 1, 1), 1, STEPS, 300, {"tied": True, "partial": False})
    wanted = serial(True, STEPS, 1, 0.01, 1.0, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    ours = assemble([found])
    assert found["buckets"] == 0
    assert all(close(ours[name], tensor) for name, tensor in wanted["tensors"].items())


def test_squares_are_summed_finely() -> None:
    vector = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0))
    assert float(sum_of_squares(vector)) == pytest.approx(float(vector.double().square().sum()), rel=1e-9)
    assert float(sum_of_squares(vector[:5])) == pytest.approx(float(vector[:5].double().square().sum()), rel=1e-12)
    assert float(sum_of_squares(vector[:0])) == 0.0
