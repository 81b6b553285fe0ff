"""Recall at a distance: which recurrences remember a symbol across d fillers?

A sequence is a key (one of four symbols), d filler symbols drawn at random, and a question mark; the model must then name
the key. Gradients of a plain RNN fade over the fillers (Bengio et al., 1994), the LSTM's cell hands them on (Hochreiter
and Schmidhuber, 1997). Chance is 0.25.

    python benchmarks/recall.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from common import table, write_result

from gradatim.config.settings import RecurrentConfig
from gradatim.models import build_model
from gradatim.models.neural import NeuralLanguageModel

KEYS, FILLERS = 4, 8
QUESTION, VOCAB = KEYS + FILLERS, KEYS + FILLERS + 1


def sample(distance: int, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences ``[batch, distance + 2]`` and targets, -100 everywhere but after the question mark."""
    key = torch.randint(0, KEYS, (batch, 1), generator=generator)
    filler = torch.randint(KEYS, KEYS + FILLERS, (batch, distance), generator=generator)
    ids = torch.cat([key, filler, torch.full((batch, 1), QUESTION)], dim=1)
    targets = torch.full_like(ids, -100)
    targets[:, -1:] = key
    return ids, targets


def recall(
    kind: str, distance: int, *, seed: int = 0, steps: int = 600, width: int = 32, batch: int = 64, lr: float = 1e-2
) -> float:
    """Accuracy on 1,024 new sequences after training on sequences of that distance."""
    config = RecurrentConfig(kind=kind, d_model=width, tied=False)  # type: ignore[arg-type]
    model: NeuralLanguageModel = build_model(config, VOCAB, distance + 2, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids, targets = sample(distance, batch, generator)
        optimizer.zero_grad()
        (model.nll(model.hidden(ids)[0], targets) / batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    ids, targets = sample(distance, 1024, generator)
    log_probs, _ = model.eval()(ids, model.start(1024))
    return (log_probs[:, -1, :KEYS].argmax(-1) == targets[:, -1]).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distances", default="5,10,20,40,80")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started, rows = time.perf_counter(), []
    for distance in map(int, options.distances.split(",")):
        row: list[object] = [distance]
        for kind in ("rnn", "gru", "lstm"):
            found = [recall(kind, distance, seed=seed, steps=options.steps) for seed in range(options.seeds)]
            row.append(f"{sum(found) / len(found):.3f} ({min(found):.3f}-{max(found):.3f})")
        rows.append(row)
        print(row, flush=True)
    body = f"""Accuracy of naming one of {KEYS} keys after d random fillers; width 32, Adam 5e-3, {options.steps} steps of 64
sequences, mean (least-most) of {options.seeds} seeds; chance is {1 / KEYS}. {time.perf_counter() - started:.0f} s, one thread.

{table(["distance", "rnn", "gru", "lstm"], rows)}"""
    write_result("recall", "Recall at a distance", body)


if __name__ == "__main__":
    main()
