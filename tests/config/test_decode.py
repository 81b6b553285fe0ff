"""The strict decoder: what it accepts for each declared type, and what it says of everything else."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.config import config_to_yaml
from gradatim.config.decode import Decoder, nearest
from gradatim.config.describe import hints
from gradatim.config.settings import GptConfig, NgramConfig, RecurrentConfig, RunConfig
from gradatim.config.tree import LARGEST, read_tree
from gradatim.errors import ConfigError, Problem


def decode(text: str) -> tuple[RunConfig, list[Problem]]:
    decoder = Decoder()
    config = decoder.value(RunConfig, read_tree(text.encode(), "r.yaml"))
    return config, decoder.problems


def value(text: str, field: str) -> Any:
    config, problems = decode(text)
    assert problems == []
    for name in field.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("optimizer: {lr: 1e-3}", "optimizer.lr", 1e-3),  # a string to PyYAML
        ("optimizer: {lr: 1}", "optimizer.lr", 1.0),
        ("steps: 500", "steps", 500),
        ("steps: 1_000", "steps", 1000),
        ("compile: true", "compile", True),
        ("compile: False", "compile", False),
        ("optimizer: {clip: null}", "optimizer.clip", None),
        ("optimizer:\n  clip:", "optimizer.clip", None),
        ("track: {wandb: null}", "track.wandb", None),
        ("track: {wandb: 'null'}", "track.wandb", "null"),
        ("track: {wandb: 12}", "track.wandb", "12"),
        ("data: {column: on}", "data.column", "on"),  # True to PyYAML
        ("data: {train: [a.txt, b.txt]}", "data.train", ("a.txt", "b.txt")),
        ("data: {train: 'a.txt, b.txt'}", "data.train", ("a.txt", "b.txt")),
        ("data: {train: ['a,b.txt']}", "data.train", ("a,b.txt",)),
        ("data: {valid: ''}", "data.valid", ()),
        ("optimizer: {betas: [0.8, 0.9]}", "optimizer.betas", (0.8, 0.9)),
        ("layout: {zero: 2}", "layout.zero", 2),
        ("precision: bf16", "precision", "bf16"),
        ("\ufeffsteps: 3", "steps", 3),
    ],
)
def test_text_becomes_the_declared_type(text: str, field: str, expected: object) -> None:
    got = value(text, field)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("text", "allowed", "attempt"),
    [
        ("steps: 1e3", "whole number", "steps: 1000"),
        ("steps: 2.5", "whole number", "steps: 2"),
        ("steps: many", "whole number", ""),
        ("steps: null", "whole number", ""),
        ("steps: [1]", "whole number", ""),
        ("steps: {a: 1}", "whole number", ""),
        ("steps: ٣", "whole number", ""),
        ("steps: " + "9" * 5000, "whole number", ""),  # beyond what int() parses
        ("data: {train: 'a,,b,'}", "list of text", "train: a,b"),
        ("compile: yes", "true|false", "compile: true"),
        ("optimizer: {lr: fast}", "number", ""),
        ("optimizer: {lr: .inf}", "number", ""),  # YAML's spelling is not Python's
        ("optimizer: {lr: nan}", "number, finite, above 0", ""),
        ("optimizer: {clip: inf}", "number or null, finite, above 0", ""),
        ("optimizer: {betas: [0.9, nan]}", "2 values (number, number), finite, at least 0 and below 1", ""),
        ("optimizer: {clip: off}", "number or null", ""),
        ("optimizer: {betas: [0.9]}", "2 values (number, number)", ""),
        ("data: {column: null}", "text", ""),
        ("precision: fp23", "fp32|fp64|bf16", "precision: fp32"),
        ("layout: {zero: 4}", "0|1|2|3", ""),
    ],
)
def test_a_value_that_does_not_fit(text: str, allowed: str, attempt: str) -> None:
    _, problems = decode(text)
    assert [(p.where, p.allowed, p.attempt) for p in problems] == [("r.yaml:1", allowed, attempt)]


@pytest.mark.parametrize(
    ("text", "line", "attempt"),
    [
        ("model: {kind: gpt, d_modle: 3}", 1, "model.d_model"),
        ("\nstpes: 3", 2, "steps"),
        ("lr: 3e-4", 1, "optimizer.lr"),  # of another section
        ("seed: 1\nvocab_size: 9", 2, "data.tokenizer.vocab_size"),
        ("qqq: 1", 1, ""),
        ("'': 1", 1, ""),
    ],
)
def test_an_unknown_field_names_the_nearest(text: str, line: int, attempt: str) -> None:
    _, (problem,) = decode(text)
    assert (problem.where, problem.what, problem.attempt) == (
        f"r.yaml:{line}",
        "there is no such field",
        attempt,
    )


def test_a_field_of_another_kind_says_whose_it_is() -> None:
    _, (problem,) = decode("model: {kind: lstm, n_heads: 4}")
    assert problem.what == "model.n_heads belongs to kind gpt and bert and translate-lm and transformer"
    assert "n_heads" not in problem.allowed
    assert "weight_drop" in problem.allowed
    _, (problem,) = decode("model: {kind: ngram, locked_dropout: true}")
    assert problem.what == "model.locked_dropout belongs to kind rnn and lstm and gru"


def test_the_kind_that_was_written_is_the_one_that_is_told() -> None:
    """Kinds of one family share their fields, and the first of them stands for none of the others."""
    for kind in ("rnn", "lstm", "gru"):
        _, (problem,) = decode(f"model: {{kind: {kind}, n_heads: 4}}")
        assert problem.got == f"kind {kind}"


def test_a_wrong_kind_lists_all_and_the_other_fields_are_judged_by_the_likeliest() -> None:
    _, problems = decode("model: {kind: gtp, d_modle: 3}")
    assert problems[0].allowed == "ngram, window, rnn, lstm, gru, gpt, bert, translate-lm, seq2seq, transformer"
    assert problems[0].attempt == "kind: gpt"
    assert [p.attempt for p in problems[1:]] == ["model.d_model"]
    _, problems = decode("model: {kind: [], d_modle: 3}")
    assert len(problems) == 2


def test_a_section_given_a_value() -> None:
    _, (problem,) = decode("model: lstm")
    assert problem.attempt == "--model.kind lstm"
    _, (problem,) = decode("optimizer: adam")
    assert problem.what == "optimizer is a section, not a value"


def test_kinds_choose_the_dataclass() -> None:
    assert isinstance(value("model: {kind: gru}", "model"), RecurrentConfig)
    assert isinstance(value("model: {kind: ngram}", "model"), NgramConfig)
    assert isinstance(value("model: {d_model: 64}", "model"), GptConfig)  # the default kind


def test_every_problem_at_once_with_its_line() -> None:
    text = "steps: x\nmodel:\n  kind: gpt\n  d_model: y\n  odrer: 2\noptimizer:\n  schedule: cosin\nlayuot: {}\n"
    _, problems = decode(text)
    assert [p.where for p in problems] == ["r.yaml:1", "r.yaml:4", "r.yaml:5", "r.yaml:7", "r.yaml:8"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "a recipe is a mapping"),
        (b"- 1", "a recipe is a mapping"),
        (b"steps: [1", "this is not YAML"),
        (b"a: 1\n---\nb: 2", "this is not YAML"),
        (b"a: \x00", "this is not YAML"),
        (b"a: 1\nb: \xff", "this is not UTF-8"),
        (b"a: 1\na: 2", "a is given twice"),
        (b"a: !!python/object/apply:os.system [ls]", "recipes hold plain values only"),
        (b"a: &x [1]\nb: *x", "recipes have no aliases"),
        (b"a: " + b"[" * 1000 + b"]" * 1000, "this recipe is nested too deeply"),
        (b"a: " + b"[" * 900_000, "this recipe is nested too deeply"),
        (b"#" * (LARGEST + 1), "this file is too large"),
    ],
)
def test_no_recipe_at_all(text: bytes, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_tree(text, "r.yaml")
    assert all(p.what.startswith(what) for p in caught.value.problems)
    assert all(p.where.startswith("r.yaml") for p in caught.value.problems)


def test_what_is_given_twice_does_not_hide_the_rest() -> None:
    text = "steps: 3\nsteps: x\nmodel: {kind: gpt, d_modle: 3}\nmodel: {n_haeds: &h 4}\nseed: *h\n"
    text += "<<: *h\ndata: !own {trian: a}\n"
    noted: list[Problem] = []
    decoder = Decoder(problems=noted)
    decoder.value(RunConfig, read_tree(text.encode(), "r.yaml", noted))
    found = sorted((problem.where.removeprefix("r.yaml:"), problem.what) for problem in noted)
    unknown, aliases = "there is no such field", "recipes have no aliases"
    assert found == [
        ("2", "steps is given twice"), ("2", "this value does not fit steps"), ("3", unknown),
        ("4", "model is given twice"), ("4", unknown), ("5", aliases), ("6", aliases),
        ("7", "recipes hold plain values only"), ("7", unknown),
    ]  # fmt: skip
    assert "seed" in decoder.broken


def test_aliases_are_never_followed() -> None:
    """Followed, this would be ten to the ninth values."""
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    noted: list[Problem] = []
    tree = read_tree((text + "own: &own [*own]\n").encode(), "r.yaml", noted)
    assert len(noted) == 91
    assert isinstance(tree.value, dict)
    assert {key for key, entry in tree.value.items() if entry.value is not None} == {"a0"}


def test_python_objects_are_never_built(tmp_path: Any) -> None:
    marker = tmp_path / "marker"
    text = f"steps: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]"
    with pytest.raises(ConfigError):
        read_tree(text.encode(), "r.yaml")
    assert not marker.exists()


def test_lines_of_the_pure_python_parser_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"steps: null\nmodel:\n  kind: 'gpt'\ndata: {train: [a,\n  b]}\n"
    fast = read_tree(text, "r.yaml")
    monkeypatch.setattr("gradatim.config.tree._LOADER", yaml.SafeLoader)
    assert read_tree(text, "r.yaml") == fast


def test_nearest() -> None:
    assert nearest("lstn", ["rnn", "lstm", "gru"]) == "lstm"
    assert nearest("zzz", ["rnn", "lstm"]) == ""


def anything(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a declared type, in or out of range."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return st.builds(hint, **{name: anything(h) for name, h in hints(hint).items()})
    if origin in (Union, types.UnionType):
        return st.one_of(*map(anything, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(anything(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*map(anything, arguments))
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(max_size=8) | st.sampled_from(["null", "~", "1e-3", "a,b", "yes", "- x", "#", "*a", "\x85"]),
        type(None): st.none(),
    }
    return simple[hint]


@given(anything(RunConfig))
@settings(deadline=None, max_examples=60)
def test_yaml_round_trip_is_exact(config: RunConfig) -> None:
    text = config_to_yaml(config)
    decoded, problems = decode(text)
    assert problems == []
    assert decoded == config
    assert config_to_yaml(decoded) == text


@given(st.binary(max_size=60) | st.text("ab:{}[],- \n\"'&*!|>#%@`?0.1e", max_size=60).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_any_bytes_decode_or_are_refused(text: bytes) -> None:
    with contextlib.suppress(ConfigError):
        Decoder().value(RunConfig, read_tree(text, "r.yaml"))
