"""What the workers do for test_start.py: the weights that a rank holds after starting from others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from work_layouts import Parts, make_text, mesh_of, pieces

from gradatim.config.settings import RunConfig
from gradatim.parallel.engine import LayoutEngine
from gradatim.train.start import Start, Weights


def weights_of(model: Any, config: RunConfig) -> Weights:
    """Those of a model in memory."""
    held = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in held.items()}
    return Weights(
        "memory", config.model, None, None, Path(), shapes, ("head.pooler.weight",), lambda n: held[n].detach()
    )


def start(rank: int, world: int, config: RunConfig, source: Any) -> tuple[Parts, Parts]:
    """Pieces as drawn, and as they are after starting from a model."""
    engine = LayoutEngine(config, make_text(), mesh_of(config.layout))
    drawn = pieces(engine, gradient=False)
    words: Any = SimpleNamespace(vocab_size=make_text().tokenizer.vocab_size)
    engine.start_from(Start(weights_of(source, config), config, words))
    return drawn, pieces(engine, gradient=False)
