"""What ``--help`` is made of."""

from __future__ import annotations

from gradatim.config import load_config
from gradatim.config.describe import (
    field_help,
    hints,
    model_settings,
    option_names,
    sections,
    settings,
    variants,
)
from gradatim.config.settings import GptConfig, NgramConfig, OptimizerConfig, RunConfig


def test_the_sentence_under_a_field() -> None:
    assert field_help(OptimizerConfig)["lr"] == "Peak learning rate."
    assert list(field_help(OptimizerConfig)) == list(hints(OptimizerConfig))


def test_every_field_has_a_sentence() -> None:
    leaves = [*settings(), *(s for kind in model_settings().values() for s in kind.values())]
    assert [s.path for s in leaves if not s.sentence.endswith(".")] == []
    for cls in (RunConfig, *variants(hints(RunConfig)["model"]).values()):
        assert all(field_help(cls).values()), cls


def test_settings_tell_type_and_default() -> None:
    by_path = {s.path: s for s in settings()}
    assert (by_path["optimizer.clip"].allowed, by_path["optimizer.clip"].default) == ("number or null", "1.0")
    assert by_path["data.train"].metavar == "TEXT,…"
    assert by_path["optimizer.betas"].metavar == "X,X"
    assert by_path["evaluation.patience"].metavar == "N|null"


def test_variants() -> None:
    kinds = variants(hints(RunConfig)["model"])
    assert list(kinds) == [
        "ngram", "window", "rnn", "lstm", "gru", "gpt", "bert", "translate-lm", "seq2seq", "transformer",
    ]  # fmt: skip
    assert kinds["ngram"] is NgramConfig
    assert kinds["gpt"] is GptConfig
    assert variants(int | None) == {}


def test_help_lists_every_option_once_a_kind() -> None:
    listed = [flag.split()[0].removeprefix("--") for _, rows in sections() for flag, _ in rows]
    assert set(listed) == set(option_names())
    assert "model.order" in listed


def test_help_of_a_recipe_has_its_values() -> None:
    rows = dict(row for _, rows in sections(load_config("lstm")) for row in rows)
    assert rows["--model.n_layers N"].endswith(f"[{load_config('lstm').model.n_layers}]")  # type: ignore[union-attr]
    assert rows["--optimizer.lr X"].endswith("[0.02]")
    assert not any(flag.startswith("--model.n_heads") for flag in rows)
