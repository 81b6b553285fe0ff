"""One step of each model under layouts of up to eight ranks, on fake tensors of the pretend GPU. Prints how many."""

from __future__ import annotations

from typing import Any

import torch
from pretend_gpu import GPU

from gradatim.config.derived import world_size
from gradatim.config.settings import BertConfig, GptConfig, LayoutConfig, RecurrentConfig, RunConfig
from gradatim.parallel.rehearse import rehearse

SHAPE: dict[str, Any] = {"d_model": 16, "n_layers": 4, "n_heads": 4, "vocab_multiple": 8}
MODELS: list[Any] = [
    GptConfig(**SHAPE, dropout=0.1),
    GptConfig(**SHAPE, n_kv_heads=2, positions="rotary", norm="rms", activation="swiglu", bias=False, tied=False),
    BertConfig(**SHAPE),
]
LAYOUTS: list[dict[str, Any]] = [
    {"microbatch": 2},
    {"dp": 2, "zero": 1},
    {"tp": 2, "sequence_parallel": True},
    {"tp": 2, "pp": 2, "dp": 2, "microbatch": 2, "zero": 1, "sequence_parallel": True, "recompute": "full"},
    {"tp": 2, "pp": 2, "microbatch": 2, "schedule": "zero-bubble"},
    {"pp": 2, "chunks": 2, "microbatch": 2, "schedule": "interleaved", "recompute": "selective"},
]
CASES = [(model, layout) for model in MODELS for layout in LAYOUTS[1:]]
CASES += [(RecurrentConfig(d_model=16), layout) for layout in LAYOUTS[:2]]


def play(model: Any, layout: dict[str, Any], precision: Any) -> None:
    """The first and last rank, which hold the embedding and the loss."""
    config = RunConfig(
        model=model, layout=LayoutConfig(**layout), context=16, global_batch=8, steps=1, precision=precision
    )
    for rank in {0, world_size(config.layout) - 1}:
        told = rehearse(config, 100, rank, device=GPU)
        assert told.parameters and told.peak_bytes, (config, rank)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        for precision in ("fp32", "bf16"):
            play(*case, precision)
    print(2 * len(CASES))
