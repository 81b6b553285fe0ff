"""What translation asks of a config: two languages, files in twos, one direction, vocabularies that can be shared."""

from __future__ import annotations

import pytest

from gradatim.config import check_config, load_config

FILES = {
    "data.train_source": "a.de",
    "data.train_target": "a.en",
    "data.source_language": "de",
    "data.target_language": "en",
}


@pytest.mark.parametrize(
    "recipe", ["translate-demo", "translate-lm", "seq2seq", "attention", "transformer", "transformer-tiny"]
)
def test_recipes_are_sound(recipe: str) -> None:
    assert check_config(recipe) == []


def test_aligned_files_take_the_place_of_the_recipe_s_text() -> None:
    config = load_config("transformer", FILES)
    assert config.data.train == ()
    assert config.data.train_source == ("a.de",)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"data.train_target": ""}, "aligned files come in twos"),
        ({"data.train_source": "a.en", "data.train_target": "a.de"}, "this file holds the other language"),
        ({"data.target_language": "de"}, "same language"),
        ({"data.source_language": "null"}, "must know which language"),
        ({"data.train": "phrasebook"}, "named twice"),
        ({"data.joint": "false"}, "needs one vocabulary"),
        ({"model.kind": "gpt"}, "learns from plain text"),
        ({"layout.pp": "2"}, "one stage"),
        ({"layout.recompute": "full"}, "store all activations"),
        ({"batch_tokens": "8"}, "would not fit a batch"),
        ({"data.split": "component", "data.held_out": "0.5,0.6"}, "nothing would be left"),
        ({"data.split": "component", "data.valid_source": "b.de", "data.valid_target": "b.en"}, "either given or held"),
    ],
)
def test_what_does_not_go_together(overrides: dict[str, str], what: str) -> None:
    found = check_config("transformer", {**FILES, **overrides})
    assert any(what in problem.what for problem in found), [problem.what for problem in found]


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"data.train": "pairs.tsv", "data.columns": "en,es"}, "not of these languages"),
        ({"data.target_language": "de"}, "no such language"),
        ({"data.split": "component"}, "brings its own"),
        ({"data.train": "", "data.train_source": "a.de", "data.train_target": "a.en"}, "does not hold fr"),
        ({"data.train": "", "data.train_source": "a.en", "data.train_target": "a.fr"}, "holds the other language"),
        ({"model.coverage": "true"}, "of decoders with attention"),
        ({"model.summary_feeding": "true", "model.attention": "dot"}, "instead of one summary"),
        ({"model.d_model": "31"}, "half the width"),
        ({"layout.tp": "2"}, "one process"),
        ({"data.train": ""}, "no pairs to learn from"),
    ],
)
def test_what_a_recurrent_translator_refuses(overrides: dict[str, str], what: str) -> None:
    found = check_config("seq2seq", overrides)
    assert any(what in problem.what for problem in found), [problem.what for problem in found]


def test_heads_and_waves_must_come_out_even() -> None:
    found = [p.what for p in check_config("transformer", {"model.d_model": "130", "model.n_heads": "4"})]
    assert any("share the width" in what for what in found)
    (problem,) = check_config("transformer", {"layout.tp": "3"})[:1]
    assert "tp equal parts" in problem.what


def test_only_pairs_have_batches_by_tokens() -> None:
    (problem,) = check_config("gpt", {"batch_tokens": "4096"})
    assert "only pairs differ in length" in problem.what
