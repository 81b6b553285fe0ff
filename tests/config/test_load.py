"""Recipes, overrides and how they meet."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from gradatim.config import check_config, config_to_yaml, load, load_config, recipe_names, recipe_summary
from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig
from gradatim.errors import ConfigError

pytestmark = pytest.mark.usefixtures("recipes")


STABLE = {"bigram", "ngram", "window", "rnn", "lstm", "gru", "gpt", "demo"}


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_sound_short_and_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    copy = tmp_path / "config.yaml"
    copy.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(str(copy)) == config
    assert recipe_summary(name).endswith(".")


def test_stable_names_are_there() -> None:
    assert set(recipe_names()) >= STABLE | {"gpt2-124m", "gpt3-175b", "gpt3-1t", "llama3-8b", "nanogpt-cpu"}
    for kind in ("ngram", "window", "rnn", "lstm", "gru", "gpt"):
        assert load_config(kind).model.kind == kind


def transformer_parameters(name: str) -> int:
    """Parameters by the arithmetic of the papers, from the recipe alone."""
    config = load_config(name)
    m = config.model
    assert isinstance(m, GptConfig)
    d, vocabulary = m.d_model, config.data.tokenizer.vocab_size or 0
    head = d // m.n_heads
    attention = 2 * d * d + 2 * d * head * (m.n_kv_heads or m.n_heads)
    feed_forward = (3 if m.activation == "swiglu" else 2) * d * (m.d_ff or 4 * d)
    biases = (4 * d + (m.d_ff or 4 * d) + d) if m.bias else 0
    norms = 2 * d * (2 if m.bias else 1)
    embeddings = vocabulary * d * (1 if m.tied else 2) + (config.context * d if m.positions == "learned" else 0)
    return m.n_layers * (attention + feed_forward + biases + norms) + embeddings + norms // 2


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gpt2-124m", 124.4),
        ("gpt2-medium", 354.8),
        ("gpt2-large", 774.0),
        ("gpt2-xl", 1557.6),
        ("gpt3-175b", 174_600),
        ("gpt3-1t", 1_008_000),
        ("llama2-7b", 6738.4),
        ("llama3-8b", 8030.3),
    ],
)
def test_published_shapes_have_the_published_sizes(name: str, millions: float) -> None:
    assert transformer_parameters(name) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_overrides_reach_every_depth_and_spelling() -> None:
    config = load_config(
        "gpt.yaml", {"steps": "7", "optimizer.warmup": "2", "--model.d-model": "96", "data.tokenizer.kind": "char"}
    )
    assert (config.steps, config.optimizer.warmup, config.data.tokenizer.kind) == (7, 2, "char")
    assert isinstance(config.model, GptConfig)
    assert config.model.d_model == 96
    assert config.optimizer.lr == load_config("gpt.yaml").optimizer.lr  # its neighbours stay


def test_overrides_from_python_may_be_values() -> None:
    given = {"steps": 7, "optimizer.clip": None, "compile": True, "data.train": ["a.txt", Path("b.txt")],
             "optimizer.betas": (0.8, 0.9)}  # fmt: skip
    config = load_config("gpt.yaml", given)
    assert (config.steps, config.optimizer.clip, config.compile) == (7, None, True)
    assert config.data.train == ("a.txt", "b.txt")
    assert config.optimizer.betas == (0.8, 0.9)


def test_an_override_of_the_recipes_own_kind_is_applied() -> None:
    model = load_config("bigram", {"model.order": "5"}).model
    assert isinstance(model, NgramConfig)
    assert model.order == 5


def test_an_override_of_another_kind_says_whose_it_is() -> None:
    (problem,) = check_config("lstm.yaml", {"model.order": "5"})
    assert problem.where == "--model.order"
    assert problem.what == "model.order belongs to kind ngram"
    assert problem.attempt == "--model.kind ngram, or leave it out"
    assert check_config("lstm.yaml", {"model.order": "5", "model.kind": "ngram"}) == []


def test_a_misspelt_override_names_the_nearest_flag() -> None:
    (problem,) = check_config("lstm.yaml", {"optimizer.warmpu": "5"})
    assert (problem.where, problem.attempt) == ("--optimizer.warmpu", "--optimizer.warmup")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("dta.train", "data.train"),
        ("dta.trian", "data.train"),
        ("data.tokeniser.kind", "data.tokenizer.kind"),
        ("modle.n_heads", "model.n_heads"),
        ("optimzer.betas", "optimizer.betas"),
        ("stpes", "steps"),
    ],
)
def test_an_override_in_a_misspelt_section_names_the_whole_flag(given: str, meant: str) -> None:
    (problem,) = check_config("gpt.yaml", {given: "x"})
    assert (problem.where, problem.got, problem.attempt) == (f"--{given}", given, f"--{meant}")


def test_every_override_in_a_misspelt_section_is_told() -> None:
    found = check_config("gpt.yaml", {"dta.train": "x", "dta.valid": "y"})
    assert [problem.attempt for problem in found] == ["--data.train", "--data.valid"]


def test_a_key_given_twice_is_told_with_everything_else(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 1\nseed: 2\nsteps: many\nmodel: {kind: gpt, n_heads: 7}\noptimizer: {warmup: *w}\n")
    found = check_config(str(recipe), {"precision": "x"})
    assert found[0].where == f"{recipe}:5"  # no such anchor, so no YAML: nothing else to judge
    recipe.write_text("seed: &w 1\nseed: 2\nsteps: many\nmodel: {kind: gpt, n_heads: 7}\noptimizer: {warmup: *w}\n")
    found = check_config(str(recipe), {"precision": "x", "optimizer.lr": "0"})
    places = [p.where.removeprefix(str(recipe)) for p in found]
    assert places == [":2", ":3", ":4", ":5", "--precision", "--optimizer.lr"]
    assert check_config(str(recipe), {"optimizer.warmup.x": "1"})[-1].what == "recipes have no aliases"


def test_another_kind_drops_the_fields_it_lacks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = load_config("gpt.yaml", {"model.kind": "lstm", "model.n_layers": "1"})
    assert config.model == RecurrentConfig(kind="lstm", d_model=192, n_layers=1, dropout=0.1)
    assert caplog.messages == ["--model.kind lstm drops the recipe's fields of another kind: model.n_heads"]


def test_kinds_of_one_family_share_their_fields(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {kind: rnn, weight_drop: 0.5, d_embedding: 9}")
    loaded = load(str(recipe), {"model.kind": "gru"})
    assert loaded.config.model == RecurrentConfig(kind="gru", weight_drop=0.5, d_embedding=9)
    assert loaded.notes == ()


def test_a_wrong_field_of_the_recipe_is_not_forgiven_by_another_kind(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {kind: gpt, n_haeds: 4}")
    assert [p.what for p in check_config(str(recipe), {"model.kind": "lstm"})] == ["there is no such field"]


def test_naming_train_clears_the_other_splits(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {train: [a], valid: [b], test: [c], tokenizer: {kind: word}}")
    data = load_config(str(recipe)).data
    assert (data.train, data.valid, data.test) == (("a",), ("b",), ("c",))
    loaded = load(str(recipe), {"data.train": "x", "data.test": "y"})
    data = loaded.config.data
    assert (data.train, data.valid, data.test) == (("x",), (), ("y",))
    assert data.tokenizer.kind == "word"
    assert loaded.notes == ("--data.train replaces the recipe's text, so its data.valid is dropped",)


def test_a_trial_run_may_be_shorter_than_the_recipes_warm_up(tmp_path: Path) -> None:
    loaded = load("gpt.yaml", {"steps": "20"})
    assert loaded.problems == ()
    assert loaded.config.optimizer.warmup == 2
    assert loaded.shortened == ("--steps 20 shortens the recipe's optimizer.warmup from 100 to 2",)
    assert load("gpt.yaml", {"steps": "190"}).config.optimizer.warmup == 19  # it would have been more than half
    assert load("gpt.yaml", {"steps": "200"}).shortened == ()
    assert check_config("gpt.yaml", {"steps": "20", "optimizer.warmup": "100"}) != []  # asked for, so refused
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optimizer: {schedule: warmup-stable-decay, warmup: 0, decay_steps: 50}")
    assert load_config(str(recipe), {"steps": "5"}).optimizer.decay_steps == 1


def test_recipes_that_are_none(tmp_path: Path) -> None:
    (problem,) = check_config("lsmt")
    assert problem.attempt == "lstm"
    assert "gpt2-124m" in problem.allowed
    (tmp_path / "run").mkdir()
    (problem,) = check_config(tmp_path / "run")
    assert (problem.what, problem.attempt) == ("a recipe is a file, and this is none", "")
    (tmp_path / "run" / "config.yaml").write_text("steps: 3")
    (problem,) = check_config(tmp_path / "run")
    assert check_config(problem.attempt, {"optimizer.warmup": "0"}) == []
    (problem,) = check_config("a\0b")
    assert problem.what.startswith("this recipe cannot be read")


def test_overrides_are_judged_even_where_the_recipe_cannot_be_read() -> None:
    assert [p.where for p in check_config("nonesuch", {"steps": "x"})] == ["nonesuch", "--steps"]


def test_load_config_raises_everything() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("gpt.yaml", {"steps": "x", "seed": "y"})
    assert len(caught.value.problems) == 2
    assert caught.value.exit_code == 2


def test_an_override_below_a_value() -> None:
    (problem,) = check_config("gpt.yaml", {"steps.x": "1"})
    assert problem.what == "what this would be set in (gpt.yaml:1) is a value, not a section"


def test_problems_come_in_reading_order(tmp_path: Path) -> None:
    recipe: Any = tmp_path / "mine.yaml"
    recipe.write_text("optimizer: {warmup: 99}\nsteps: 10\nseed: x\nmodel: {kind: gpt, n_heads: 7}\n")
    places = [p.where.replace(str(recipe), "") for p in check_config(str(recipe), {"precision": "x"})]
    assert places == [":1", ":3", ":4", "--precision"]
