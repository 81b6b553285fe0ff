"""Runs of low-rank adapters: their checkpoints hold adapters (and a task's head), the rest is read from the base.

The base is the run or Hugging Face directory of ``init_from``. The run remembers where it lies and what its weights
were (``base.json``), so that adapters never stand beside other weights than those they learned beside. Whoever asks
such a run something gets W + (alpha / rank) B A (Hu et al. 2021, section 4.1): a plain model, as fast as any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gradatim.config.settings import BertConfig, GptConfig
from gradatim.config.tuned import model_of
from gradatim.errors import CheckpointError, Problem
from gradatim.models import new_model
from gradatim.models.layers.init import draw
from gradatim.models.layers.lora import layers_of, merged
from gradatim.models.neural import NeuralModel
from gradatim.shapes import parameters
from gradatim.train.run_directory import BASE, Run
from gradatim.train.start import Start, Weights, open_weights


def remember_base(run: Run, weights: Weights) -> None:
    """Keep in the run beside which weights its adapters learn."""
    facts = {"path": str(Path(weights.where).absolute()), "step": weights.step, "digest": weights.digest}
    (run.directory / BASE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def base_of(run: Run) -> Weights:
    """The weights that a run's adapters stand beside.

    Raises:
        CheckpointError: they are not where they were, or are no longer what they were.
    """
    path = run.directory / BASE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        where, step, digest = Path(facts["path"]), facts["step"], str(facts["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        what = "nobody knows beside which weights this run's adapters learned"
        raise CheckpointError(Problem(where=str(path), what=what, attempt="restore it from a copy")) from None
    attempt = f"put them back, or write where they are into {path}"
    if not where.is_dir():
        what = "the weights that this run's adapters stand beside are gone"
        raise CheckpointError(Problem(where=str(where), what=what, attempt=attempt))
    try:
        weights = open_weights(where, "best" if step is None else str(step))
    except CheckpointError as error:  # another training there, for one
        raise CheckpointError(*(replace(problem, attempt=attempt) for problem in error.problems)) from None
    if weights.digest != digest:
        what = "these are not the weights that this run's adapters learned beside"
        raise CheckpointError(
            Problem(where=str(where), what=what, got=weights.digest[:16], allowed=digest[:16], attempt=attempt)
        )
    return weights


class Merged:
    """The weights of an adapted run as those of a plain model, one at a time.

    Args:
        run: whose checkpoints hold adapters.
        held: what one of them holds, by the names of the model.
    """

    def __init__(self, run: Run, held: Mapping[str, Tensor]) -> None:
        config = run.config
        assert isinstance(config.model, (GptConfig, BertConfig)) and config.lora.rank is not None
        self.config, self.held, self.words = config, held, run.tokenizer.vocab_size
        self.kind = model_of(config, len(run.labels))
        self.start = Start(base_of(run), config, run.tokenizer, None, self.kind, run.labels)
        self.scale = config.lora.alpha / config.lora.rank
        kv = config.model.n_kv_heads if isinstance(config.model, GptConfig) else None
        self.group = config.model.n_heads // (kv or config.model.n_heads)
        self.head_dim = config.model.d_model // config.model.n_heads
        self.shapes = {s.name: s.shape for s in parameters(self.kind, self.words, config.context)}
        self.adapters = layers_of(held)

    def base(self, name: str) -> Tensor:
        """A whole parameter as it was before training: read, or drawn where the base has none."""
        shape = self.shapes[name]
        read = self.start.read(name, (0,) * len(shape), shape)
        return draw(self._meta.initial(name), name, shape, self.config.seed) if read is None else read

    @cached_property
    def _meta(self) -> NeuralModel:
        with torch.device("meta"):
            return new_model(self.kind, self.words, self.config.context)

    def read(self, name: str) -> Tensor:
        """A whole parameter as training left it, what its adapters add included."""
        if name in self.held:
            return self.held[name]
        weight = self.base(name)
        own = self.adapters.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return merged(weight, own, self.scale, self.group, self.head_dim) if own else weight

    def all(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: self.read(name) for name in self.shapes}
