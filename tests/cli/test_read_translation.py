"""What a newcomer to the translators stumbled over, each as a user meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bad_input import Run

from gradatim.cli.main import main

TINY = ["--steps", "2", "--batch_tokens", "200", "--model.d_model", "16", "--optimizer.warmup", "0",
        "--data.cache", "cache"]  # fmt: skip
FRENCH = ["je suis là", "il est là", "elle est grande", "le chat est noir", "le chien est petit"]
ENGLISH = ["I am here", "he is here", "she is tall", "the cat is black", "the dog is small"]


def write(name: str, *lines: str) -> str:
    Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return name


def pairs() -> list[str]:
    """Files of few pairs, as arguments of training."""
    source, target = write("own.fr", *FRENCH), write("own.en", *ENGLISH)
    return ["--data.train_source", source, "--data.train_target", target]


def problems(answer: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = answer["error"]["problems"]
    return found


@pytest.fixture(scope="module")
def att(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two vocabularies that knows nothing."""
    folder = tmp_path_factory.mktemp("att")
    cache = ["--data.cache", str(folder / "cache")]
    assert main(["train", "attention", "--run", str(folder / "att"), *TINY[:-2], *cache]) == 0
    return folder / "att"


def test_a_translator_goes_on_with_both_vocabularies(run: Run, att: Path) -> None:
    code, _, told = run("train", "attention", "--init_from", att, *TINY, *pairs(), "--run", "on")
    assert code == 0 and f"starting from the weights of {att}" in told
    for name in ("tokenizer.json", "source-tokenizer.json"):
        assert Path("on", name).read_bytes() == (att / name).read_bytes()
    kept = Path("on/config.yaml").read_text()
    assert f"source_path: {att}/source-tokenizer.json" in kept and "joint: false" in kept
    # A recipe of one vocabulary makes way, as its model does.
    code, _, told = run("train", "seq2seq", "--init_from", att, *TINY, *pairs(), "--data.joint", "false", "--run", "n")
    assert code == 0
    assert run("train", "transformer-tiny", *TINY, *pairs(), "--run", "joint")[0] == 0
    code, _, told = run("train", "transformer-tiny", "--init_from", "joint", *TINY, *pairs(), "--run", "second")
    assert code == 0 and not Path("second/source-tokenizer.json").exists()
    assert Path("second/tokenizer.json").read_bytes() == Path("joint/tokenizer.json").read_bytes()


def test_a_recipe_of_ones_own_may_leave_open_how_many_vocabularies(run: Run, att: Path) -> None:
    languages = "source_language: fr, target_language: en"
    mine = write("mine.yaml", "model: {kind: seq2seq}", f"data: {{{languages}}}", f"init_from: {att}",
                 "context: 32")  # fmt: skip
    assert run("train", mine, *pairs(), *TINY[:4], *TINY[6:], "--run", "mine")[0] == 0
    assert Path("mine/source-tokenizer.json").is_file()


def test_sources_are_not_read_with_the_vocabulary_of_the_targets(run: Run, att: Path) -> None:
    path = ["--data.tokenizer.path", att / "tokenizer.json"]
    code, answer, _ = run("train", "attention", "--init_from", att, *TINY, *pairs(), *path, "--data.joint", "true",
                          "--run", "n")  # fmt: skip
    (problem,) = problems(answer)
    assert code == 4 and "another tokenizer of the sources" in problem["what"]
    assert problem["got"].endswith(" entries") and problem["allowed"].endswith(" entries")
    words = ["--data.tokenizer.source_path", att / "source-tokenizer.json"]
    assert problem["try"] == " ".join(map(str, [*path, *words, "--data.joint", "false"]))
    assert run("train", "attention", "--init_from", att, *TINY, *pairs(), *path, *words, "--run", "n")[0] == 0
    # One of two vocabularies is none, and of one for both there is no second.
    for given, what in (([*path], "only one is named"), ([*path, *words, "--data.joint", "true"], "share one")):
        code, answer, _ = run("train", "attention", *TINY, *pairs(), *given)
        assert code == 2 and what in problems(answer)[0]["what"]
    code, answer, _ = run("train", "gpt", *words)
    assert code == 2 and "there is one tokenizer" in problems(answer)[0]["what"]


def test_another_tokenizer_is_told_first_and_not_its_shapes(run: Run, att: Path) -> None:
    code, answer, _ = run("train", "attention", "--init_from", att, *TINY, *pairs(), "--data.tokenizer.kind", "word")
    found = problems(answer)
    assert code == 4 and {problem["where"] for problem in found} == {"data.tokenizer"}
    assert found[0]["got"] == "14 entries" and found[0]["allowed"].endswith(" entries")
