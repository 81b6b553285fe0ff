"""Recall at a distance: which recurrences remember a symbol across d fillers?

A sequence is a key (one of eight symbols), d filler symbols drawn at random, and a question mark; the model must then
name the key. Gradients of a plain RNN fade over the fillers (Bengio et al., 1994), the LSTM's cell hands them on
(Hochreiter and Schmidhuber, 1997). Every model is trained on distances drawn from 1 to the longest, then asked at each
of several. Chance is 1/8.

    python benchmarks/recall.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Literal

import torch

from common import language_model, table, write_result
from gradatim.config.settings import RecurrentConfig
from gradatim.models.neural import NeuralLanguageModel

KEYS, FILLERS = 8, 8
QUESTION, VOCAB = KEYS + FILLERS, KEYS + FILLERS + 1
Kind = Literal["rnn", "lstm", "gru"]
KINDS: tuple[Kind, ...] = ("rnn", "gru", "lstm")


def sample(distance: int, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences ``[batch, distance + 2]`` and targets, -100 everywhere but after the question mark."""
    key = torch.randint(0, KEYS, (batch, 1), generator=generator)
    filler = torch.randint(KEYS, KEYS + FILLERS, (batch, distance), generator=generator)
    ids = torch.cat([key, filler, torch.full((batch, 1), QUESTION)], dim=1)
    targets = torch.full_like(ids, -100)
    targets[:, -1:] = key
    return ids, targets


def train(
    kind: Kind, longest: int, steps: int, seed: int, width: int = 64, batch: int = 64, lr: float = 1e-3
) -> NeuralLanguageModel:
    """A model that has seen distances 1 to ``longest``."""
    model = language_model(RecurrentConfig(kind=kind, d_model=width, tied=False), VOCAB, longest + 2, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        distance = int(torch.randint(1, longest + 1, (1,), generator=generator))
        ids, targets = sample(distance, batch, generator)
        optimizer.zero_grad()
        (model.nll(model.hidden(ids)[0], targets) / batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def accuracy(model: NeuralLanguageModel, distance: int, count: int = 1024) -> float:
    """Share of keys named rightly, over new sequences."""
    ids, targets = sample(distance, count, torch.Generator().manual_seed(10_000 + distance))
    log_probs, _ = model(ids, model.start(count))
    return (log_probs[:, -1].argmax(-1) == targets[:, -1]).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distances", default="1,2,5,10,20,40")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.perf_counter()
    distances = [int(text) for text in options.distances.split(",")]
    found: dict[Kind, list[list[float]]] = {}
    for kind in KINDS:
        models = [train(kind, max(distances), options.steps, seed) for seed in range(options.seeds)]
        found[kind] = [[accuracy(model, distance) for model in models] for distance in distances]
        print(kind, *zip(distances, found[kind]), flush=True)
    rows = [
        [distance, *(f"{sum(a) / len(a):.3f} ({min(a):.3f}-{max(a):.3f})" for a in (found[k][i] for k in KINDS))]
        for i, distance in enumerate(distances)
    ]
    body = f"""Accuracy of naming one of {KEYS} keys after d random fillers, mean (least-most) of {options.seeds} seeds.
Chance is {1 / KEYS}. Width 64, Adam 1e-3, {options.steps} steps of 64 sequences, distances 1 to {max(distances)};
{time.perf_counter() - started:.0f} s, one thread.

{table(["distance", *KINDS], rows)}"""
    write_result("recall", "Recall at a distance", body)


if __name__ == "__main__":
    main()
