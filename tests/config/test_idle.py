"""Settings without effect are noted, those with one are not, and nothing that is packaged has any."""

from __future__ import annotations

import json

import pytest

from gradatim.cli.main import main
from gradatim.config import load, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_have_none(name: str) -> None:
    assert load(name).idle == ()


@pytest.mark.parametrize(
    ("recipe", "overrides", "noted"),
    [
        ("gpt", {"layout.sequence_parallel": "true"}, ["layout.sequence_parallel true"]),
        ("gpt", {"layout.sequence_parallel": "true", "layout.tp": "2"}, []),
        ("gpt", {"layout.zero": "1", "layout.tp": "2"}, ["layout.zero 1"]),
        ("gpt", {"layout.zero": "1", "layout.dp": "2"}, []),
        (
            "gpt",
            {"layout.schedule": "gpipe", "layout.split": "by-cost"},
            ["layout.schedule gpipe", "layout.split by-cost"],
        ),
        (
            "gpt",
            {"layout.schedule": "gpipe", "layout.split": "by-cost", "layout.pp": "2", "layout.microbatch": "8"},
            [],
        ),
        ("gpt", {"layout.check": "true", "layout.timeout": "5"}, ["layout.check true", "layout.timeout 5.0"]),
        ("gpt", {"layout.check": "true", "layout.timeout": "5", "layout.dp": "2"}, []),
        ("bigram", {"layout.microbatch": "1"}, ["layout.microbatch 1"]),
        ("gpt", {"model.positions": "learned", "model.rope_theta": "5"}, ["model.rope_theta 5.0"]),
        ("gpt", {"model.positions": "rotary", "model.rope_theta": "5"}, []),
        (
            "bert",
            {"model.position_vectors": "sinusoidal", "init_from": "runs/x"},
            ["model.position_vectors sinusoidal"],
        ),
        ("bert", {"model.queries_and_keys": "alike", "init_from": "runs/x"}, ["model.queries_and_keys alike"]),
        ("bert", {"model.first_steps": "9"}, ["model.first_steps 9"]),
        ("bert", {"model.first_length": "9"}, ["model.first_length 9"]),
        ("bert", {"model.first_length": "9", "model.first_steps": "9"}, []),
        ("gpt", {"optimizer.schedule": "constant", "optimizer.min_lr": "1e-5"}, ["optimizer.min_lr 1e-05"]),
        ("gpt", {"optimizer.schedule": "cosine", "optimizer.decay_steps": "5"}, ["optimizer.decay_steps 5"]),
        ("ngram", {"model.smoothing": "additive", "model.additive_count": "2"}, []),
        ("ngram", {"model.smoothing": "kneser-ney", "model.additive_count": "2"}, ["model.additive_count 2.0"]),
    ],
)
def test_what_is_noted(recipe: str, overrides: dict[str, str], noted: list[str]) -> None:
    loaded = load(recipe, overrides)
    assert loaded.problems == ()
    assert [note.partition(" has no effect: ")[0] for note in loaded.idle] == noted


def test_check_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = "layout.sequence_parallel true has no effect: it is over the ranks of tp, and tp is 1"
    assert main(["check", "gpt", "--layout.sequence_parallel", "true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "notes": [words]}
    assert main(["check", "gpt", "--layout.sequence_parallel", "true"]) == 0
    assert capsys.readouterr().err == f"note: {words}\n"
