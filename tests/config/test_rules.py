"""Rules on numbers and between fields: each is broken here once, and what it proposes is tried."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradatim.config import check_config, load
from gradatim.config.describe import hints as hints_of
from gradatim.config.describe import model_settings, option_names, variants
from gradatim.config.rules import RANGES, interval_text, problems
from gradatim.config.rules_pairs import TRANSLATORS
from gradatim.config.settings import DataConfig, LayoutConfig, RunConfig, TokenizerConfig

SPLIT = hints_of(LayoutConfig)["split"]

pytestmark = pytest.mark.usefixtures("recipes")


def test_intervals_in_words() -> None:
    words = {interval_text(interval) for interval in RANGES.values()}
    assert words >= {"above 0", "at least 0", "at least 0 and below 1", "at least 1 and at most 2147483647"}


BROKEN: list[tuple[str, dict[str, str], str]] = [
    ("gpt.yaml", {"model.n_heads": "7"}, "the heads must share the width evenly"),
    ("gpt.yaml", {"model.n_kv_heads": "4"}, "each head of keys and values serves equally many query heads"),
    ("gpt.yaml", {"model.n_kv_heads": "12"}, "each head of keys and values serves equally many query heads"),
    ("gpt.yaml", {"model.n_heads": "64", "model.positions": "rotary"}, "rotary positions turn pairs"),
    ("gpt.yaml", {"optimizer.warmup": "5000"}, "the rate would still be rising when the run ends"),
    ("gpt.yaml", {"optimizer.min_lr": "0.1"}, "the final rate lies above the peak"),
    (
        "gpt.yaml",
        {"optimizer.schedule": "warmup-stable-decay", "optimizer.decay_steps": "2950"},
        "the final fall does not fit",
    ),
    # tensor parallelism: gpt.yaml has 6 heads, width 192
    ("gpt.yaml", {"layout.tp": "4"}, "the heads must fall into tp equal parts"),
    (
        "gpt.yaml",
        {"layout.tp": "3", "model.n_kv_heads": "2", "model.vocab_multiple": "192"},
        "the heads of keys and values must fall",
    ),
    (
        "gpt.yaml",
        {"layout.tp": "3", "model.d_ff": "500", "model.vocab_multiple": "96"},
        "the feed-forward width must fall",
    ),
    (
        "gpt.yaml",
        {"layout.tp": "3", "model.activation": "swiglu", "model.d_model": "96", "model.vocab_multiple": "96"},
        "the feed-forward width, 256, must fall",
    ),
    ("gpt.yaml", {"layout.tp": "3"}, "the padded vocabulary, a multiple of vocab_multiple, must fall"),
    (
        "gpt.yaml",
        {"layout.tp": "2", "layout.sequence_parallel": "true", "context": "33"},
        "the context, by sequence parallelism, must fall",
    ),
    # pipelines: gpt.yaml has 4 layers
    ("gpt.yaml", {"layout.pp": "8"}, "each stage needs a layer, 8 in all"),
    (
        "gpt.yaml",
        {"layout.pp": "2", "layout.chunks": "4", "layout.schedule": "interleaved", "layout.microbatch": "2"},
        "each chunk of each stage needs a layer, 8 in all",
    ),
    (
        "gpt.yaml",
        {"layout.pp": "4", "layout.chunks": "5", "layout.schedule": "interleaved", "layout.microbatch": "2"},
        "each chunk of each stage needs a layer, 20 in all",
    ),
    ("gpt.yaml", {"layout.chunks": "2"}, "chunks interleave the stages of a pipeline, and here is one stage"),
    ("gpt.yaml", {"layout.pp": "2", "layout.split": "2,1"}, "every layer must be in one chunk"),
    ("gpt.yaml", {"layout.pp": "2", "layout.split": "4"}, "every layer must be in one chunk"),
    ("gpt.yaml", {"layout.split": "3"}, "every layer must be in one chunk"),
    ("gpt.yaml", {"layout.pp": "2", "layout.chunks": "2"}, "1f1b holds one chunk per rank"),
    (
        "gpt.yaml",
        {"layout.pp": "2", "layout.chunks": "2", "layout.microbatch": "2", "layout.schedule": "gpipe"},
        "gpipe holds one chunk per rank",
    ),
    (
        "gpt.yaml",
        {"layout.pp": "2", "layout.schedule": "interleaved"},
        "interleaved sends microbatches in groups of one per stage: 1 is not divisible by 2",
    ),
    (
        "gpt.yaml",
        {"layout.pp": "4", "layout.schedule": "interleaved", "global_batch": "18", "layout.microbatch": "3"},
        "interleaved sends microbatches in groups of one per stage: 6 is not divisible by 4",
    ),
    (
        "gpt.yaml",
        {"layout.pp": "4", "layout.microbatch": "1", "global_batch": "900000"},
        "this schedule has 7,200,000 actions",
    ),
    # the batch: gpt.yaml has 16 sequences
    ("gpt.yaml", {"layout.dp": "3"}, "replicas must share the batch evenly"),
    ("gpt.yaml", {"layout.dp": "32"}, "replicas must share the batch evenly"),
    ("gpt.yaml", {"layout.dp": "3", "layout.microbatch": "4"}, "replicas must share the batch evenly"),
    ("gpt.yaml", {"layout.dp": "4", "layout.microbatch": "3"}, "microbatches must share a replica's part evenly"),
    ("gpt.yaml", {"layout.dp": "4", "layout.microbatch": "8"}, "microbatches must share a replica's part evenly"),
    ("gpt.yaml", {"layout.microbatch": "3"}, "microbatches must share the batch evenly"),
    ("gpt.yaml", {"layout.microbatch": "32"}, "microbatches must share the batch evenly"),
    # what is not for training, or not for every model
    ("gpt.yaml", {"layout.zero": "2"}, "training shards the optimizer's state"),
    ("gpt.yaml", {"layout.zero": "3", "layout.dp": "2"}, "training shards the optimizer's state"),
    ("lstm.yaml", {"layout.dp": "2"}, "a recurrent model reads its text as one stream, step by step, in one process"),
    ("lstm.yaml", {"layout.pp": "2"}, "a recurrent model reads its text as one stream, step by step"),
    ("lstm.yaml", {"layout.recompute": "full"}, "layout.recompute is of Transformers"),
    ("lstm.yaml", {"layout.chunks": "2"}, "layout.chunks is of Transformers"),
    ("lstm.yaml", {"layout.zero": "3"}, "layout.zero is of Transformers"),
    ("window.yaml", {"layout.tp": "2"}, "this model is small, and trains in one process"),
    ("ngram.yaml", {"layout.dp": "8"}, "n-grams are counted in one pass over the text"),
    ("gpt.yaml", {"data.train": ""}, "there is nothing to learn from"),
    (
        "gpt.yaml",
        {"data.train": "a.txt", "data.test": "b.txt,a.txt"},
        "test holds text that is learned from (a.txt)",
    ),
    ("gpt.yaml", {"data.tokenizer.vocab_size": "null"}, "pieces can be merged without end"),
    ("gpt.yaml", {"data.tokenizer.vocab_size": "200"}, "byte-level BPE starts from 256 bytes"),
    ("gpt.yaml", {"data.train": "a.txt", "evaluation.patience": "3"}, "without validation text there is no best"),
    ("ngram.yaml", {"word_vectors": "counted"}, "vectors are counted for networks that read one text"),
    ("gpt.yaml", {"word_vectors": "counted", "init_from": "runs/x"}, "the embedding comes with the weights"),
    ("bert-classify", {"word_vectors": "counted"}, "vectors are counted in text, and a task has a table"),
    ("lstm.yaml", {"data.packing": "within"}, "a recurrent model reads its text as one stream"),
]


@pytest.mark.parametrize(("recipe", "overrides", "what"), BROKEN)
def test_a_broken_rule_is_told_once_and_its_advice_mends_it(recipe: str, overrides: dict[str, str], what: str) -> None:
    (problem,) = check_config(recipe, overrides)
    assert problem.what.startswith(what)
    assert problem.where.startswith("--")
    assert problem.allowed
    flag, advice = shlex.split(problem.attempt)
    assert check_config(recipe, {**overrides, flag: advice}) == []


def test_rules_are_judged_after_overrides_merge() -> None:
    assert check_config("gpt.yaml", {"model.d_model": "200"}) != []
    assert check_config("gpt.yaml", {"model.d_model": "200", "model.n_heads": "8"}) == []
    assert check_config("gpt.yaml", {"optimizer.warmup": "5000", "steps": "9000"}) == []


def test_all_at_once() -> None:
    overrides = {
        "model.n_heads": "7",
        "optimizer.warmup": "9999",
        "layout.tp": "2",
        "seed": "-1",
        "steps": "x",
    }
    found = check_config("gpt.yaml", overrides)
    # `steps` could not be read, so nothing is said of warm-up, which is judged against it.
    assert sorted(p.where for p in found) == ["--layout.tp", "--model.n_heads", "--seed", "--steps"]


def test_nearest_legal_values() -> None:
    (problem,) = check_config("gpt.yaml", {"model.n_heads": "7"})
    assert problem.allowed == "n_heads 6 or 8, or d_model 189 or 196"
    (problem,) = check_config("gpt.yaml", {"layout.microbatch": "5"})
    assert problem.allowed == "microbatch 4 or 8, or global_batch 15 or 20"
    (problem,) = check_config("gpt.yaml", {"layout.tp": "4"})
    assert problem.allowed == "tp 3 or 6, or n_heads 4 or 8"
    assert problem.attempt == "--layout.tp 2"  # 3 would not fit the vocabulary's padding
    (problem,) = check_config("gpt.yaml", {"layout.dp": "5"})
    assert problem.allowed == "dp 4 or 8, or global_batch 15 or 20"
    (problem,) = check_config(
        "gpt.yaml", {"layout.pp": "4", "layout.schedule": "interleaved", "layout.microbatch": "3", "global_batch": "18"}
    )
    assert problem.allowed == "4 or 8 (multiples of 4) of them: global_batch 12 or 24"


def test_every_reason_against_a_layout_at_once() -> None:
    overrides = {
        "layout.tp": "5", "layout.pp": "3", "layout.dp": "3", "layout.chunks": "2", "layout.zero": "3",
        "layout.sequence_parallel": "true", "context": "256",
    }  # fmt: skip
    found = check_config("gpt.yaml", overrides)
    assert [p.what for p in found] == [
        "replicas must share the batch evenly",
        "the heads must fall into tp equal parts",
        "the feed-forward width, 768, must fall into tp equal parts",
        "the padded vocabulary, a multiple of vocab_multiple, must fall into tp equal parts",
        "the context, by sequence parallelism, must fall into tp equal parts",
        "each chunk of each stage needs a layer, 6 in all",
        "training shards the optimizer's state over dp at most; stages 2 and 3 are the planner's business",
    ]
    assert len({p.attempt for p in found if "--layout.tp" in p.attempt}) == 1


LEGAL = [
    {"layout.tp": "2", "layout.sequence_parallel": "true", "compile": "true"},
    {"layout.sequence_parallel": "true"},
    {"layout.pp": "4", "layout.microbatch": "2", "layout.schedule": "zero-bubble"},
    {"layout.pp": "4"},  # one microbatch: slow, not wrong
    {"layout.pp": "2", "layout.chunks": "2", "layout.schedule": "interleaved", "layout.microbatch": "8"},
    {"layout.pp": "2", "layout.split": "1,3"},
    {"layout.pp": "2", "layout.split": "by-cost"},
    {"layout.dp": "16", "layout.zero": "1"},
    {"layout.schedule": "interleaved"},
    {"layout.recompute": "selective"},
    {"layout.tp": "2", "layout.pp": "2", "layout.dp": "2", "layout.microbatch": "1", "layout.timeout": "2.5"},
]


@pytest.mark.parametrize("overrides", LEGAL)
def test_layouts_that_can_be_had(overrides: dict[str, str]) -> None:
    assert check_config("gpt.yaml", overrides) == []


def test_a_misspelt_split_is_told_the_nearest_word() -> None:
    (problem,) = check_config("gpt.yaml", {"layout.split": "by_cost"})
    assert problem.attempt == "--layout.split by-cost"
    assert problem.allowed == "uniform|by-cost or list of whole number"
    (problem,) = check_config("gpt.yaml", {"layout.split": "4,0"})
    assert problem.what == "layout.split is out of range"


def test_a_rule_points_at_the_line_that_set_its_field(tmp_path: Any) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model:\n  kind: gpt\n  d_model: 250\n")  # n_heads is the default 4
    (problem,) = check_config(str(recipe))
    assert problem.where == f"{recipe}:3"
    assert problem.got == "model.n_heads 4, model.d_model 250"


def test_every_range_is_of_a_field_and_every_number_has_a_range() -> None:
    assert set(RANGES) <= set(option_names())
    sections = [("", RunConfig), ("data.tokenizer.", hints_of(hints_of(RunConfig)["data"])["tokenizer"])]
    sections += [(f"{name}.", hint) for name, hint in hints_of(RunConfig).items() if dataclasses.is_dataclass(hint)]
    sections += [("model.", cls) for cls in variants(hints_of(RunConfig)["model"]).values()]
    numbers = {
        prefix + name
        for prefix, cls in sections
        for name, hint in hints_of(cls).items()
        if hint in (int, float, int | None, float | None, tuple[float, float], SPLIT)
    }
    assert numbers == set(RANGES)


@pytest.mark.parametrize("path", sorted(RANGES))
def test_each_range_holds(path: str) -> None:
    interval = RANGES[path]
    low, high = interval[1:-1].replace(" ", "").split(",")
    kinds = [kind for kind, fields in model_settings().items() if path.removeprefix("model.") in fields]
    recipe = kinds[0] if path.startswith("model.") else "gpt"
    pair = path in ("optimizer.betas", "data.held_out")

    def ranges_broken(text: str) -> bool:
        found = check_config(recipe, {path: f"0.5,{text}" if pair else text})
        return any(p.what == f"{path} is out of range" for p in found)

    assert ranges_broken("-1")
    assert ranges_broken(low) == (interval[0] == "(")
    if high != "inf":
        assert ranges_broken(high) == (interval[-1] == ")")
        assert ranges_broken(str(int(high) + 1))


def test_defaults_of_every_kind_break_no_rule() -> None:
    wordpiece = DataConfig(tokenizer=TokenizerConfig(kind="wordpiece"))
    pairs = DataConfig(train=("phrasebook",), source_language="fr", target_language="en")
    for kind, cls in variants(hints_of(RunConfig)["model"]).items():
        data = pairs if cls in TRANSLATORS else wordpiece if kind == "bert" else DataConfig()
        assert problems(RunConfig(model=cls(), data=data)) == []


def test_bert_needs_its_tokenizer_and_room_for_a_pair() -> None:
    found = check_config("bert", {"data.tokenizer.kind": "bpe", "context": "7"})
    assert [p.attempt for p in found] == ["--data.tokenizer.kind wordpiece", "--context 8"]
    assert check_config("bert", {"data.tokenizer.kind": "bpe", "data.tokenizer.path": "theirs/tokenizer.json"}) == []
    for length in ("7", "257"):
        (problem,) = check_config("bert", {"context": "256", "model.first_length": length})
        assert (problem.where, problem.allowed) == ("--model.first_length", "8 to 256, or null")
    rows = {"layout.tp": "2", "layout.sequence_parallel": "true", "model.first_length": "9", "model.first_steps": "1"}
    assert [p.allowed for p in check_config("bert", rows)] == ["tp 1 or 3, or first_length 8 or 10"]
    found = check_config("bert", {"model.n_heads": "5", "model.masked": "1", "layout.tp": "3"})
    assert {p.got.partition(" ")[0] for p in found} == {"model.n_heads", "model.masked", "layout.tp"}


def test_enormous_numbers_are_answered_at_once() -> None:
    found = check_config("gpt.yaml", {"model.d_model": "1" + "0" * 30, "model.n_heads": "7"})
    assert [p.what for p in found] == ["model.d_model is out of range"]


@given(st.dictionaries(st.sampled_from(option_names()), st.text(max_size=6) | st.integers().map(str), max_size=4))
@example({"model.d_model": "0", "model.kind": "gtp"})
@settings(deadline=None, max_examples=150)
def test_any_override_is_applied_or_refused(overrides: dict[str, str]) -> None:
    loaded = load("gpt.yaml", overrides)
    assert loaded.problems or problems(loaded.config) == []


def test_a_wordpiece_vocabulary_holds_its_marks() -> None:
    for size, fits in ((2, False), (5, False), (6, True)):
        found = load("bert", {"data.tokenizer.kind": "wordpiece", "data.tokenizer.vocab_size": str(size)}).problems
        assert (not any("vocab_size" in p.where for p in found)) is fits


def test_steps_of_thousands_of_digits_are_refused_like_others() -> None:
    (problem,) = load("gpt", {"steps": "9" * 5000}).problems
    assert "steps" in problem.where
