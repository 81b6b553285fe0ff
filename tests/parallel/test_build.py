"""Pieces of a model, put together, are the model: weights to the bit, loss and gradients, wherever it was cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradatim.config.settings import GptConfig, ModelConfig, RecurrentConfig, WindowConfig
from gradatim.models import build_model
from gradatim.parallel.build import Chunk, build_chunk
from gradatim.parallel.mesh import Axis, Mesh, single
from gradatim.parallel.spec import ParameterSpec

VOCAB, CONTEXT = 27, 12
LLAMA = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False, "tied": False}
CONFIGS: dict[str, ModelConfig] = {
    "gpt2": GptConfig(d_model=24, n_layers=4, n_heads=4, vocab_multiple=16),
    "llama": GptConfig(d_model=32, n_layers=4, n_heads=4, n_kv_heads=2, vocab_multiple=16, d_ff=72, **LLAMA),
    "lstm": RecurrentConfig(d_model=12, d_embedding=8, n_layers=4),
    "window": WindowConfig(d_model=6, d_ff=10, window=3),
}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(0, VOCAB, (3, CONTEXT), generator=generator) for _ in range(2))
    targets[0, 5:] = -100
    return ids, targets


def piece(config: ModelConfig, layers: range, embed: bool, head: bool, mesh: Mesh | None = None, **options) -> Chunk:
    options = {"seed": 3, "dtype": torch.float64} | options
    return build_chunk(config, VOCAB, CONTEXT, layers=layers, embed=embed, head=head, mesh=mesh or single(), **options)


def place_of(spec: ParameterSpec) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + size) for begin, size in zip(spec.offset, spec.local))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_whole_chunk_is_the_model(name: str) -> None:
    config = CONFIGS[name]
    model = build_model(config, VOCAB, CONTEXT, seed=3).double()
    chunk = piece(config, range(1 if name == "window" else 4), embed=True, head=True)
    expected = dict(model.named_parameters())
    found = dict(chunk.model.named_parameters())
    assert list(expected) == list(found) == list(chunk.specs)
    for key, spec in chunk.specs.items():
        assert torch.equal(found[key], expected[key])
        assert found[key].dtype == torch.float64 and found[key].is_leaf and found[key].requires_grad
        assert spec.name == spec.global_name == key
        assert spec.local == spec.shape == tuple(found[key].shape)
        assert (spec.split, spec.partial, spec.copy, spec.tied) == (None, False, False, False)
    ids, targets = batch()
    model.train()
    loss = model.nll(model.hidden(ids)[0], targets)
    assert torch.equal(chunk.model.nll(chunk.model.run(chunk.model.enter(ids)), targets), loss)


@pytest.mark.parametrize("name", ["gpt2", "llama", "lstm"])
@pytest.mark.parametrize("cuts", [(0, 2, 4), (0, 1, 3, 4), (0, 1, 2, 3, 4)])
def test_chunks_in_a_row_are_the_model(name: str, cuts: tuple[int, ...]) -> None:
    config = CONFIGS[name]
    model = build_model(config, VOCAB, CONTEXT, seed=3).double().train()
    ids, targets = batch()
    loss = model.nll(model.hidden(ids)[0], targets)
    loss.backward()
    ends = Axis("ends", 2)
    mesh = Mesh(Axis("pp", len(cuts) - 1), Axis("dp"), Axis("tp"), ends)
    last = len(cuts) - 2
    chunks = [piece(config, range(*cuts[i : i + 2]), embed=i == 0, head=i == last, mesh=mesh) for i in range(last + 1)]
    x = chunks[0].model.enter(ids)
    for chunk in chunks:
        x = chunk.model.run(x)
    found = chunks[-1].model.nll(x, targets)
    assert torch.equal(found, loss)
    found.backward()
    sums: dict[str, Tensor] = {}
    for chunk in chunks:
        assert (chunk.model.embed is None) == (chunk is not chunks[0])
        assert (chunk.model.head is None) == (chunk is not chunks[-1])
        for key, parameter in chunk.model.named_parameters():
            spec = chunk.specs[key]
            assert torch.equal(parameter, dict(model.named_parameters())[spec.global_name])
            sums[spec.global_name] = sums.get(spec.global_name, 0) + parameter.grad
            assert spec.copy == (key != spec.global_name)
            assert spec.tied == (spec.global_name == "embed.tokens.weight" and config.tied)
    assert sums.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(sums[key], parameter.grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("name", "size"), [("gpt2", 2), ("gpt2", 4), ("llama", 2)])
def test_shards_tile_the_whole_model(name: str, size: int) -> None:
    config = CONFIGS[name]
    whole = dict(build_model(config, VOCAB, CONTEXT, seed=3).named_parameters())
    covered = {key: torch.zeros(parameter.shape, dtype=torch.int64) for key, parameter in whole.items()}
    for index in range(size):
        tp = Axis("tp", size, index, tuple(range(size)))
        mesh = Mesh(Axis("pp"), Axis("dp"), tp, Axis("ends"), index, size)
        for sequence_parallel in (False, True):
            chunk = piece(config, range(4), True, True, mesh, dtype=torch.float32, sequence_parallel=sequence_parallel)
            assert list(chunk.specs) == list(whole)
            for key, parameter in chunk.model.named_parameters():
                spec = chunk.specs[key]
                assert tuple(parameter.shape) == spec.local
                assert torch.equal(parameter, whole[key][place_of(spec)])
                assert spec.partial == (sequence_parallel and spec.split is None)
        for key, spec in chunk.specs.items():
            covered[key][place_of(spec)] += 1
    for key, count in covered.items():
        replicated = key.endswith(("norm1.weight", "norm2.weight", "norm.weight", "positions.weight")) or (
            key.endswith("bias") and not key.endswith(("qkv.bias", "up.bias"))
        )
        assert (count == (size if replicated else 1)).all(), key


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIGS["llama"], "blocks.0.attention: 2 key-value heads cannot be split over tp 4"),
        (CONFIGS["lstm"], "RecurrentLM is not split over tensor-parallel ranks"),
        (GptConfig(d_model=24, n_layers=4, n_heads=4, d_ff=30), "blocks.0.mlp.up.weight: 30 of dim 0 cannot be split"),
    ],
)
def test_what_cannot_be_split_is_refused(config: ModelConfig, message: str) -> None:
    mesh = Mesh(Axis("pp"), Axis("dp"), Axis("tp", 4, 1, tuple(range(4))), Axis("ends"), 1, 4)
    with pytest.raises(ValueError, match=message):
        piece(config, range(4), True, True, mesh)


def test_a_meta_chunk_takes_no_memory() -> None:
    config = GptConfig(d_model=8192, n_layers=2, n_heads=64, positions="rotary")
    chunk = piece(config, range(1, 2), embed=False, head=True, device="meta", dtype=torch.bfloat16)
    assert {parameter.device.type for parameter in chunk.model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in chunk.model.parameters()} == {torch.bfloat16}


def test_only_transformers_recompute() -> None:
    with pytest.raises(ValueError, match="recompute 'full' is not offered"):
        piece(CONFIGS["lstm"], range(4), True, True, recompute="full")


@pytest.mark.parametrize("options", [{}, {"deferred": True}])
def test_recomputation_changes_no_bit_even_with_dropout(options: dict[str, bool]) -> None:
    config = GptConfig(d_model=24, n_layers=2, n_heads=4, vocab_multiple=16, dropout=0.3)
    ids, targets = batch()
    found = []
    for recompute in ("none", "selective", "full"):
        chunk = piece(config, range(2), True, True, recompute=recompute, **options)
        torch.manual_seed(1)
        loss = chunk.model.nll(chunk.model.run(chunk.model.enter(ids)), targets)
        loss.backward()
        after = torch.rand(1)
        found.append([loss, after, *(parameter.grad for parameter in chunk.model.parameters())])
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))
