"""Tensor and sequence parallelism give the one-process model's losses and gradients; f, g, dropout do as promised."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pool import Pool

Pools = Callable[[int], Pool]
LAYOUTS = [(world, sequence) for world in (2, 4) for sequence in (False, True)]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(("world", "sequence"), LAYOUTS)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_loss_and_gradients_are_the_whole_model_s(
    name: str, world: int, sequence: bool, recompute: str, pool: Pools
) -> None:
    name = "llama4" if (name, world) == ("llama", 4) else name
    options = {"sequence_parallel": sequence, "recompute": recompute}
    assert max(pool(world).run("work_tensor:step", name, options)) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(("world", "sequence"), [(1, False), (2, False), (2, True)])
def test_deferred_weight_gradients_are_the_same(
    name: str, recompute: str, world: int, sequence: bool, pool: Pools
) -> None:
    options = {"sequence_parallel": sequence, "recompute": recompute}
    if world == 1:
        import work_tensor

        assert work_tensor.step(0, 1, name, options, False, True) < 1e-12
    else:
        assert max(pool(world).run("work_tensor:step", name, options, False, True)) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("sequence", [False, True])
def test_bf16_is_close(name: str, sequence: bool, pool: Pools) -> None:
    for recompute, deferred in itertools.product(("none", "full"), (False, True)):
        options = {"sequence_parallel": sequence, "recompute": recompute}
        assert 1e-6 < max(pool(2).run("work_tensor:step", name, options, True, deferred)) < 0.05


@pytest.mark.parametrize(("world", "sequence"), LAYOUTS)
def test_log_probabilities_are_the_whole_model_s(world: int, sequence: bool, pool: Pools) -> None:
    name = "gpt2" if sequence else "llama" if world == 2 else "llama4"
    for found in pool(world).run("work_tensor:evaluated", name, sequence):
        assert max(found) < 1e-12


@pytest.mark.parametrize(("words", "rows"), [(12, 12), (11, 12), (7, 12), (3, 12), (1, 12)])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("world", "sequence"), LAYOUTS)
def test_cross_entropy_is_torch_s(
    words: int, rows: int, ignored: bool, world: int, sequence: bool, pool: Pools
) -> None:
    found = pool(world).run("work_tensor:cross_entropy", words, rows, sequence, ignored)
    assert max(found) == 0.0 if ignored else max(found) < 1e-13


@pytest.mark.parametrize("world", [2, 4])
def test_the_four_functions(world: int, pool: Pools) -> None:
    assert pool(world).run("work_tensor:functions") == [[]] * world


@pytest.mark.parametrize("sequence", [False, True])
def test_dropout_repeats_and_does_not_depend_on_recomputation(sequence: bool, pool: Pools) -> None:
    def run(recompute: str, seed: int = 1) -> Any:
        return pool(2).run("work_tensor:dropped", {"sequence_parallel": sequence, "recompute": recompute}, seed)

    once = run("none")
    for other in (run("none"), run("selective"), run("full")):
        for (loss, blocks, gradients), (again, blocks_again, gradients_again) in zip(once, other):
            assert torch.equal(loss, again)
            assert all(torch.equal(x, y) for x, y in zip(blocks, blocks_again))
            assert all(torch.equal(gradient, gradients_again[key]) for key, gradient in gradients.items())
    assert not torch.equal(once[0][0], run("none", seed=2)[0][0])
    same = [torch.equal(x, y) for x, y in zip(once[0][1], once[1][1])]
    assert not any(same) if sequence else all(same)  # parts of the sequence, or replicas


def test_masks_differ_over_shards_of_heads_and_layers_and_leave_no_trace(pool: Pools) -> None:
    (first, after_first), (second, after_second) = pool(2).run("work_tensor:attention_masks", 0)
    assert not torch.equal(first, second)
    assert torch.equal(after_first, after_second)
    for masks in (first, second):
        assert masks.sum().item() / (64 * 65 / 2) == pytest.approx(0.5, abs=0.05)
    (other, _), _ = pool(2).run("work_tensor:attention_masks", 1)
    assert not torch.equal(first, other)
