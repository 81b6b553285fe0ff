"""Training on pairs: resumed bit for bit, and toy tasks that each architecture learns to do without a fault."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gradatim.config import load_config
from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig
from gradatim.decode.prompt import Reader
from gradatim.decode.search import search
from gradatim.errors import ConfigError
from gradatim.models import build_model
from gradatim.text.pair_batches import collate, stack
from gradatim.train import Run, train


def overrides(tmp_path: Path) -> dict[str, str]:
    return {
        "steps": "6", "batch_tokens": "300", "model.dropout": "0.2", "model.d_model": "16", "evaluation.every": "6",
        "evaluation.tokens": "200", "checkpoint.every": "2", "checkpoint.keep": "3", "optimizer.warmup": "2",
        "optimizer.schedule": "inverse-sqrt", "data.cache": str(tmp_path / "cache"),
    }  # fmt: skip


@pytest.mark.parametrize("recipe", ["translate-lm", "attention", "transformer"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(recipe: str, tmp_path: Path) -> None:
    """Weights, moments and losses are equal to the bit, though batches differ in size and dropout draws."""
    config = load_config(recipe, overrides(tmp_path))
    whole = train(config, tmp_path / "whole")
    train(load_config(recipe, {**overrides(tmp_path), "steps": "4"}), tmp_path / "parts")
    parts = train(config, tmp_path / "parts", resume=True)
    assert (whole.loss, whole.valid_loss, whole.tokens) == (parts.loss, parts.valid_loss, parts.tokens)
    ours, theirs = (Run.open(tmp_path / name).checkpoint("last").tensors("") for name in ("whole", "parts"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_mean_of_the_last_checkpoints(tmp_path: Path) -> None:
    config = load_config("transformer", overrides(tmp_path))
    train(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    steps = [run.model(step) for step in ("2", "4", "6")]
    mean = dict(run.model(average=3).named_parameters())  # type: ignore[attr-defined]
    for name, *values in zip(mean, *(model.parameters() for model in steps), strict=True):
        torch.testing.assert_close(mean[name], torch.stack([v.double() for v in values]).mean(0).float())
    with pytest.raises(ConfigError, match="not kept so many"):
        run.model(average=7)


# --------------------------------------------------------------------------- toy tasks

TASKS = {"copy": lambda digits: digits, "reverse": lambda digits: digits[::-1], "sort": np.sort}
TOYS = {
    "one LSTM": (TranslateLmConfig(body="lstm", d_model=96, n_layers=1), 1e-2, 550),
    "one Transformer": (TranslateLmConfig(body="gpt", mask="prefix", d_model=48, n_layers=2), 5e-3, 450),
    "encoder-decoder": (Seq2SeqConfig(cell="gru", d_model=96), 1e-2, 520),
    "attention": (Seq2SeqConfig(cell="gru", d_model=64, attention="additive"), 1e-2, 350),
    "Transformer": (
        TransformerConfig(d_model=48, n_layers=2, n_heads=4, d_ff=96, dropout=0.0, label_smoothing=0.0), 5e-3, 320,
    ),
}  # fmt: skip


def held_out(digits: np.ndarray) -> bool:
    """Strings that are never trained on, a seventh of all."""
    return int("".join(map(str, digits))) % 7 == 0


def strings(rng: np.random.Generator, count: int, test: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Strings of 2 to 4 digits, each after a mark that says whether it is to be copied, reversed or sorted."""
    sources, targets = [], []
    while len(sources) < count:
        digits = rng.integers(1, 10, rng.integers(2, 5))
        if held_out(digits) is test:
            task = int(rng.integers(len(TASKS)))
            sources.append(np.concatenate([[10 + task], digits, [0]]))
            targets.append(np.append(list(TASKS.values())[task](digits), 0))
    return sources, targets


@pytest.mark.parametrize("name", TOYS)
def test_copy_reverse_and_sort_are_learned(name: str) -> None:
    """One model learns all three tasks at once, and does at least 99 % of unseen strings exactly."""
    config, lr, steps = TOYS[name]
    model = build_model(config, 13, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    rng = np.random.default_rng(0)
    for step in range(steps):
        rate = lr * min((step + 1) / 40, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate(*strings(rng, 96, test=False), 0)
        loss = model.terms(batch.source, batch.ids, batch.targets) / (batch.targets != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    sources, targets = strings(np.random.default_rng(1), 600, test=True)
    right = 0
    for length in (4, 5, 6):
        some = [i for i, source in enumerate(sources) if len(source) == length]
        reader = Reader(
            model,
            torch.zeros(len(some), 1, dtype=torch.int64),
            model.start(len(some), stack([sources[i] for i in some], 0)),
        )
        found = search(reader, reader.opening(), [8] * len(some), boundary=0, beams=1)
        right += sum(hypotheses[0].tokens == targets[i].tolist() for i, hypotheses in zip(some, found))
    assert right / len(sources) >= 0.99, right / len(sources)
