"""The split of layers over the chunks of a pipeline: nothing lost, nothing twice, as even as can be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.config import load
from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig, RunConfig
from gradatim.shapes.split import head_cost, layers_of_chunks


@given(
    st.integers(1, 12),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sampled_from(["uniform", "by-cost"]),
    st.integers(0, 99999),
)
@settings(deadline=None)
def test_a_split_holds_each_layer_once(layers: int, pp: int, chunks: int, split: str, vocabulary: int) -> None:
    overrides = {"model.n_layers": str(layers), "layout.pp": str(pp), "layout.chunks": str(chunks)}
    overrides |= {
        "layout.split": split,
        "layout.schedule": "interleaved",
        "global_batch": "840",
        "layout.microbatch": "1",
    }
    loaded = load("gpt", overrides)
    if pp * chunks > layers or (chunks > 1 and pp == 1):
        assert loaded.problems
        return
    assert not loaded.problems
    parts = layers_of_chunks(loaded.config, vocabulary)
    assert len(parts) == pp * chunks
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert all(parts)


def test_splits() -> None:
    def counts(split: str, layers: int, pp: int, vocabulary: int = 64) -> list[int]:
        overrides = {"layout.split": split, "layout.pp": str(pp), "model.n_layers": str(layers)}
        return [len(part) for part in layers_of_chunks(load("gpt", overrides).config, vocabulary)]

    assert counts("uniform", 8, 4) == [2, 2, 2, 2]
    assert counts("uniform", 9, 4) == [2, 3, 2, 2]  # the ends embed and predict besides
    assert counts("uniform", 11, 4) == [3, 3, 3, 2]
    assert counts("by-cost", 12, 4, 8192) == [4, 4, 3, 1]
    assert counts("by-cost", 8, 4) == [2, 2, 2, 2]
    assert counts("1,2,3,2", 8, 4) == [1, 2, 3, 2]


def test_the_head_costs_v_over_12h_layers() -> None:
    """As the formula of Narayanan et al. has it, where attention's own products are small."""
    cost = head_cost(GptConfig(d_model=1024, n_heads=16), 51200, 1)
    assert abs(float(cost) - 51200 / (12 * 1024)) < 0.01


def test_a_model_that_is_not_cut_is_one_chunk() -> None:
    for model in (NgramConfig(), RecurrentConfig(n_layers=3)):
        assert len(layers_of_chunks(RunConfig(model=model), 100)) == 1
