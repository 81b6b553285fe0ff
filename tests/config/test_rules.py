"""Rules on numbers and between fields: each is broken here once, and what it proposes is tried."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradatim.config import check_config, load
from gradatim.config.describe import hints as hints_of
from gradatim.config.describe import model_settings, option_names, variants
from gradatim.config.rules import RANGES, problems
from gradatim.config.settings import RunConfig

GPT = """\
steps: 3000
global_batch: 16
model: {kind: gpt, d_model: 192, n_layers: 4, n_heads: 6, dropout: 0.1}
optimizer: {lr: 1e-3, warmup: 100, min_lr: 1e-4}
"""


@pytest.fixture(autouse=True)
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where gpt.yaml and lstm.yaml lie; the packaged recipes may be tuned at any time."""
    monkeypatch.chdir(tmp_path)
    Path("gpt.yaml").write_text(GPT)
    Path("lstm.yaml").write_text("model: {kind: lstm}")


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
    ("gpt.yaml", {"layout.tp": "2"}, "this version trains in one process"),
    ("gpt.yaml", {"layout.pp": "4"}, "this version trains in one process"),
    ("gpt.yaml", {"layout.dp": "8"}, "this version trains in one process"),
    ("gpt.yaml", {"layout.chunks": "2"}, "this version trains in one process"),
    ("gpt.yaml", {"layout.zero": "1"}, "this version trains in one process"),
    ("gpt.yaml", {"layout.sequence_parallel": "true"}, "this version trains in one process"),
    ("gpt.yaml", {"layout.recompute": "full"}, "recomputation comes with a later version"),
    ("gpt.yaml", {"layout.microbatch": "3"}, "microbatches must share the batch evenly"),
    ("gpt.yaml", {"layout.microbatch": "32"}, "microbatches must share the batch evenly"),
    ("gpt.yaml", {"data.train": ""}, "there is nothing to learn from"),
    (
        "gpt.yaml",
        {"data.train": "a.txt", "data.test": "b.txt,a.txt"},
        "test holds text that is learned from (a.txt)",
    ),
    ("gpt.yaml", {"data.tokenizer.vocab_size": "null"}, "pieces can be merged without end"),
    ("gpt.yaml", {"data.tokenizer.vocab_size": "200"}, "byte-level BPE starts from 256 bytes"),
    ("gpt.yaml", {"data.train": "a.txt", "evaluation.patience": "3"}, "without validation text there is no best"),
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
        if hint in (int, float, int | None, float | None, tuple[float, float])
    }
    assert numbers == set(RANGES)


@pytest.mark.parametrize("path", sorted(RANGES))
def test_each_range_holds(path: str) -> None:
    interval = RANGES[path]
    low, high = interval[1:-1].replace(" ", "").split(",")
    kinds = [kind for kind, fields in model_settings().items() if path.removeprefix("model.") in fields]
    recipe = kinds[0] if path.startswith("model.") else "gpt"
    pair = path == "optimizer.betas"

    def ranges_broken(text: str) -> bool:
        found = check_config(recipe, {path: f"0.5,{text}" if pair else text})
        return any(p.what == f"{path} is out of range" for p in found)

    assert ranges_broken("-1")
    assert ranges_broken(low) == (interval[0] == "(")
    if high != "inf":
        assert ranges_broken(high) == (interval[-1] == ")")
        assert ranges_broken(str(int(high) + 1))


def test_defaults_of_every_kind_break_no_rule() -> None:
    for cls in variants(hints_of(RunConfig)["model"]).values():
        assert problems(RunConfig(model=cls())) == []


def test_enormous_numbers_are_answered_at_once() -> None:
    found = check_config("gpt.yaml", {"model.d_model": "1" + "0" * 30, "model.n_heads": "7"})
    assert [p.what for p in found] == ["model.d_model is out of range"]


@given(st.dictionaries(st.sampled_from(option_names()), st.text(max_size=6) | st.integers().map(str), max_size=4))
@example({"model.d_model": "0", "model.kind": "gtp"})
@settings(deadline=None, max_examples=150)
def test_any_override_is_applied_or_refused(overrides: dict[str, str]) -> None:
    loaded = load("gpt.yaml", overrides)
    assert loaded.problems or problems(loaded.config) == []
