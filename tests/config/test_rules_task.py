"""What fine-tuning asks of a config: every rule, and settings without effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradatim.config import check_config, config_to_yaml, load, load_config
from gradatim.config.settings import BertConfig, RunConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.config.tuned import TunedConfig, is_frozen, model_of, share_of_rate


@pytest.mark.parametrize(("recipe", "overrides", "field", "said"), [
    ("bert-classify", {"model.kind": "lstm"}, "--model.kind", "only Transformers"),
    ("gpt-classify", {"task.kind": "none"}, "--task.kind", "the words' loss stands beside a task's"),
    ("bert-classify", {"task.kind": "span"}, "--task.kind", "sought in a second text"),
    ("bert-classify", {"task.kind": "tag", "task.text_b": "b"}, "--task.text_b", "in one text"),
    ("bert-classify", {"task.kind": "choice", "task.text_b": "b"}, "--task.text_b", "second texts are the choices"),
    ("bert-classify", {"task.kind": "choice", "task.choices": ""}, "--task.choices", "nothing to choose from"),
    ("bert-classify", {"task.label": "text"}, "--task.label", "one column cannot be both"),
    ("bert-classify", {"task.kind": "regress"}, "--task.kind", "these rows have a text and a class"),
    ("bert-classify", {"data.train": "python-manual"}, "--data.train", "is plain text"),
    ("bert-classify", {"data.train": ""}, "--data.train", "nothing to learn from"),
    ("bert-classify", {"task.frozen_layers": "5"}, "--task.frozen_layers", "has not so many layers"),
    ("bert-classify", {"task.frozen_layers": "1", "layout.pp": "2"}, "--task.frozen_layers", "nothing to go backward"),
    ("bert-classify", {"task.frozen_embeddings": "true", "layout.pp": "2"}, "--task.frozen_embeddings", "all frozen"),
    ("lstm", {"task.layer_decay": "0.9"}, "--task.layer_decay", "layers are told apart"),
    ("bert-classify", {"task.layer_decay": "0"}, "--task.layer_decay", "out of range"),
    ("gpt-classify", {"context": "4"}, "--context", "a row holds two texts"),
])  # fmt: skip
def test_each_rule(recipe: str, overrides: dict[str, str], field: str, said: str) -> None:
    found = check_config(recipe, overrides)
    assert any(problem.where == field and said in problem.what for problem in found), found
    assert all(problem.allowed for problem in found)


def test_other_tables_of_any_task_are_sound() -> None:
    for kind, more in {"regress": {}, "tag": {}, "span": {"task.text_b": "b"}, "choice": {}}.items():
        assert check_config("gpt-classify", {"task.kind": kind, "data.train": "a.jsonl", **more}) == []


def test_settings_without_effect_are_told() -> None:
    found = load("bert-classify", {"task.delimiter": "$", "task.choices": "a,b"}).idle
    assert {line.split(" ")[0] for line in found} == {"task.delimiter", "task.choices"}
    assert load("gpt", {"task.label": "y"}).idle[0].startswith("task.label y has no effect")


def test_rates_fall_towards_the_input_and_frozen_parts_are_named() -> None:
    task = TaskConfig(layer_decay=0.5, frozen_layers=1, frozen_embeddings=True)
    names = ["head.norm.weight", "blocks.2.norm1.weight", "blocks.0.norm1.weight", "embed.tokens.weight"]
    assert [share_of_rate(name, task, 3) for name in names] == [1.0, 0.5, 0.125, 0.0625]
    assert [is_frozen(name, task) for name in names] == [False, False, True, True]
    assert share_of_rate("embed.tokens.weight", TaskConfig(), 3) == 1.0


def test_a_head_has_as_many_outputs_as_the_task_asks() -> None:
    for kind, outputs in {"classify": 7, "tag": 7, "regress": 1, "choice": 1, "span": 2}.items():
        config = RunConfig(model=BertConfig(), task=TaskConfig(kind=kind))  # type: ignore[arg-type]
        found = model_of(config, 7)
        assert isinstance(found, TunedConfig) and found.outputs == outputs
    assert model_of(RunConfig(), 7) == RunConfig().model


def test_what_the_recipe_leaves_open_is_the_sources(tmp_path: Path) -> None:
    source = load_config("bert", {"model.d_model": "96", "model.dropout": "0.3"})
    fields = {"kind": "bert", "d_model": "96", "n_layers": "3", "n_heads": "4", "d_ff": "null"}
    asked: list[str] = []

    def source_model(path: str) -> dict[str, str]:
        asked.append(path)
        return fields

    model = load("bert-classify", {"init_from": "runs/x"}, source_model=source_model).config.model
    assert isinstance(model, BertConfig) and asked == ["runs/x"]
    assert (model.d_model, model.n_layers, model.dropout) == (96, 3, 0.1)
    own = load("bert-classify", {"init_from": "runs/x", "model.d_model": "64"}, source_model=source_model).config.model
    assert isinstance(own, BertConfig) and own.d_model == 64
    (other,) = load("gpt-classify", {"init_from": "runs/x"}, source_model=source_model).problems
    assert (other.got, other.allowed, other.attempt) == ("gpt", "bert", "the recipe bert-classify")
    assert load("bert-classify", {}, source_model=source_model).config.model.n_layers == 4  # type: ignore[union-attr]

    # A packaged recipe only proposes a model; a file of one's own and what is given besides are meant.
    large = load("bert", {"init_from": "runs/x", "model.n_layers": "7"}, source_model=source_model)
    assert isinstance(large.config.model, BertConfig)
    assert (large.config.model.d_model, large.config.model.n_layers, large.config.model.n_heads) == (96, 7, 4)
    assert large.notes == ("runs/x replaces the recipe's model.d_model",)
    (tmp_path / "mine.yaml").write_text("model: {kind: bert, d_model: 32}\ninit_from: runs/x\n", encoding="utf-8")
    mine = load(tmp_path / "mine.yaml", source_model=source_model)
    assert isinstance(mine.config.model, BertConfig) and mine.config.model.d_model == 32 and mine.notes == ()

    from gradatim.cli.starting import source_model as real

    (tmp_path / "config.yaml").write_text(config_to_yaml(source), encoding="utf-8")
    found = real(str(tmp_path))
    assert found["d_model"] == "96" and "dropout" not in found and "masked" not in found
    (tmp_path / "config.yaml").write_text("model: [", encoding="utf-8")
    assert real(str(tmp_path)) == {} and real(str(tmp_path / "none")) == {}
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 99}'
    )
    assert (real(str(tmp_path))["d_model"], real(str(tmp_path))["bias"]) == ("24", "true")


@pytest.mark.parametrize(
    ("recipe", "overrides", "path"),
    [
        ("bert", {}, True),
        ("mine.yaml", {}, True),
        ("other.yaml", {}, False),
        ("bert", {"data.tokenizer.vocab_size": "300"}, False),
        ("bert", {"data.tokenizer.path": "elsewhere.json"}, False),
    ],
)
def test_the_tokenizer_is_the_sources_where_none_is_named(
    tmp_path: Path, recipe: str, overrides: dict[str, str], path: bool
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text("model: {kind: bert}\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text(
        "data: {tokenizer: {kind: wordpiece}}\nmodel: {kind: bert}\n", encoding="utf-8"
    )
    where: str | Path = recipe if recipe == "bert" else tmp_path / recipe
    given = {"init_from": str(tmp_path), "data.train": "x.txt", **overrides}
    tokenizer = load(where, given, source_model=lambda _: {"kind": "bert"}).config.data.tokenizer
    assert (tokenizer.path == str(tmp_path / "tokenizer.json")) is path
