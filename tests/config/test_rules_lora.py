"""What low-rank adapters ask of a config: every rule, and settings without effect."""

from __future__ import annotations

import pytest

from gradatim.config import check_config, load, load_config
from gradatim.config.tuned import model_of
from gradatim.shapes import parameter_count
from gradatim.shapes.lora import adapter_parameters, trained_parameters

START = {"lora.rank": "2", "init_from": "runs/base"}


@pytest.mark.parametrize(("recipe", "overrides", "field", "said"), [
    ("lstm", {}, "--lora.rank", "beside the layers of a GPT or BERT"),
    ("gpt", {"init_from": "null"}, "--lora.rank", "weights that are there already"),
    ("gpt", {"lora.rank": "0"}, "--lora.rank", "out of range"),
    ("gpt", {"lora.rank": "100000"}, "--lora.rank", "no more rank than its width"),
    ("gpt", {"lora.alpha": "0"}, "--lora.alpha", "out of range"),
    ("gpt", {"lora.targets": ""}, "--lora.targets", "at least one is"),
    ("gpt", {"lora.targets": "up,up"}, "--lora.targets", "each target is named once"),
    ("gpt", {"lora.targets": "qkv,v"}, "--lora.targets", "qkv is one adapter"),
    ("gpt2-124m", {"lora.targets": "gate"}, "--lora.targets", "only swiglu has a gate"),
    ("gpt", {"lora.targets": "q_proj"}, "--lora.targets", "not"),
    ("gpt", {"lora.dropout": "0.1", "layout.tp": "2", "layout.sequence_parallel": "true"}, "--lora.dropout", "shards"),
    ("bert-classify", {"task.frozen_layers": "1"}, "--task.frozen_layers", "keeps its value already"),
    ("bert-classify", {"task.frozen_embeddings": "true"}, "--task.frozen_embeddings", "keeps its value already"),
])  # fmt: skip
def test_each_rule(recipe: str, overrides: dict[str, str], field: str, said: str) -> None:
    found = check_config(recipe, {**START, **overrides})
    assert any(problem.where == field and said in problem.what for problem in found), found
    assert all(problem.allowed for problem in found)


def test_settings_without_effect_are_told() -> None:
    found = load("gpt", {"lora.targets": "up", "lora.alpha": "3"}).idle
    assert {line.split(" ")[0] for line in found} == {"lora.targets", "lora.alpha"}
    assert load("gpt", START | {"lora.targets": "up"}).idle == ()


def test_counts_of_what_is_trained() -> None:
    """A and B of each target, and a task's head; without adapters everything."""
    config = load_config("llama3-8b", START | {"lora.targets": "q,v,down", "layout.microbatch": "1"})
    words, context = 1000, config.context
    found = adapter_parameters(config.model, config.lora, words, context)
    d, kv, inner = 4096, 1024, 14336
    assert sum(shape.size for shape in found) == 32 * 2 * ((d + d) + (d + kv) + (inner + d))
    assert trained_parameters(config.model, config.lora, words, context) == found
    tuned = load_config("bert-classify", START)
    model, words = model_of(tuned, 2), 500
    heads = {s.name for s in trained_parameters(model, tuned.lora, words, 64) if ".lora." not in s.name}
    assert heads == {f"head.{name}.{end}" for name in ("classifier", "pooler") for end in ("weight", "bias")}
    plain = load_config("gpt")
    whole = trained_parameters(plain.model, plain.lora, words, 64)
    assert sum(shape.size for shape in whole) == parameter_count(plain.model, words, 64)
