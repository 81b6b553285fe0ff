"""Runs that take a tenth of a second: a text of a few kilobytes, characters, models of a few hundred weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gradatim.config import load_config
from gradatim.config.settings import RunConfig

SMALL: dict[str, dict[str, str]] = {
    "gpt": {
        "model.d_model": "16",
        "model.n_layers": "1",
        "model.n_heads": "2",
        "model.d_ff": "32",
        "model.dropout": "0.2",
    },
    "lstm": {
        "model.d_model": "12",
        "model.dropout": "0.2",
        "model.weight_drop": "0.2",
        "model.embedding_dropout": "0.1",
    },
    "window": {"model.window": "3", "model.d_model": "8", "model.d_ff": "16", "model.dropout": "0.2"},
    "bert": {
        "model.d_model": "16",
        "model.n_layers": "1",
        "model.n_heads": "2",
        "model.dropout": "0.2",
        "data.tokenizer.kind": "wordpiece",
        "data.tokenizer.vocab_size": "60",
        "context": "12",
    },
    "bigram": {"model.discount_fallback": "true"},
}

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Lines of made-up sentences, in a training and a validation file."""
    draw = random.Random(0)
    words = ["the", "more", "i", "read", "learn", "and", "like", "it", "than", "else"]
    folder = tmp_path_factory.mktemp("text")
    for name, lines in (("train", 60), ("valid", 12)):
        sentences = [" ".join(draw.choices(words, k=draw.randint(3, 9))) + "." for _ in range(lines)]
        (folder / f"{name}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return {"train": folder / "train.txt", "valid": folder / "valid.txt", "cache": folder / "cache"}


@pytest.fixture
def make_config(text: dict[str, Path]) -> MakeConfig:
    """``make_config("gpt", steps=8, **{"optimizer.lr": "0.1"})``."""

    def make(kind: str, steps: int = 8, **overrides: object) -> RunConfig:
        fields = {
            "data.train": str(text["train"]),
            "data.valid": str(text["valid"]),
            "data.document": "line",
            "data.cache": str(text["cache"]),
            "data.tokenizer.kind": "char",
        }
        if kind != "bigram":
            fields |= {
                "steps": str(steps),
                "context": "8",
                "global_batch": "6",
                "layout.microbatch": "3",
                "optimizer.warmup": "2",
                "optimizer.lr": "0.01",
                "evaluation.every": "3",
                "checkpoint.every": "2",
            }
        fields |= SMALL[kind]
        fields |= {key.replace("__", "."): str(value) for key, value in overrides.items()}
        return load_config(kind, fields)

    return make
