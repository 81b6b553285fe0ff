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


def test_files_judged_on_are_of_the_languages_of_the_run(run: Run, att: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs()
    code, answer, _ = run("evaluate", att, "--source", "own.en", "--target", "own.fr")
    first, second = problems(answer)
    assert code == 2 and first["where"] == "--source" and second["where"] == "--target"
    assert first["try"] == second["try"] == "--source own.fr --target own.en"
    code, answer, _ = run("evaluate", att, "--source", write("own.de", *FRENCH), "--target", "own.en")
    (problem,) = problems(answer)
    assert code == 2 and problem["what"] == "by its ending this file does not hold fr"
    text, other = write("one.txt", *FRENCH), write("other.txt", *ENGLISH)
    few = ["--beams", 1, "--json"]
    code, _, told = run("evaluate", att, "--source", other, "--target", text, *few)
    assert code == 0 and "WARNING: the sources look like en, the targets like fr" in told
    assert "changed places" in told
    code, _, told = run("evaluate", att, "--source", text, "--target", text, *few)
    assert code == 0 and "WARNING: the translations look like fr" in told
    monkeypatch.setattr("gradatim.decode.translate.TOKENS_TOGETHER", 16)
    code, _, told = run("evaluate", att, "--source", text, "--target", other, *few)
    assert code == 0 and "WARNING" not in told and "translated" not in told, "a log is not told each second"
    monkeypatch.setattr("gradatim.cli.evaluate.SECONDS_BETWEEN", 0.0)
    assert "of 5 translated" in run("evaluate", att, "--source", text, "--target", other, *few)[2]


@pytest.mark.parametrize(
    ("arguments", "code", "where", "attempt"),
    [
        (["--source", "own.fr", "--target", "own.en", "--stride", 3], 2, "--stride", "leave --stride out"),
        (["--text", "own.fr"], 2, "--text", "--source FILE --target FILE"),
        (["--source", "nope", "--target", "own.en"], 3, "--source", "check the path"),
        (["--source", "own.fr", "--target", "nope"], 3, "--target", "check the path"),
        (["--source", "own.fr"], 2, "--source --target", "--target FILE besides"),
        (["--target", "own.en"], 2, "--source --target", "--source FILE besides"),
    ],
)
def test_what_to_judge_on_is_named_as_it_was_given(
    run: Run, att: Path, arguments: list[object], code: int, where: str, attempt: str
) -> None:
    pairs()
    found, answer, _ = run("evaluate", att, *arguments)
    (problem,) = problems(answer)
    assert (found, problem["where"], problem["try"]) == (code, where, attempt)


def test_no_line_comes_back_for_none(att: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for more in ([], ["--n-best", "2"], ["--forced", str(empty)]):
        capsys.readouterr()
        assert main(["translate", str(att), str(empty), *more]) == 0
        assert capsys.readouterr().out == ""
    empty.write_text("\n")
    assert main(["translate", str(att), str(empty)]) == 0
    assert capsys.readouterr().out == "\n"


def test_given_translations_are_one_each(run: Run, att: Path) -> None:
    pairs()
    code, answer, _ = run("translate", att, "own.fr", "--forced", "own.en", "--n-best", 2)
    (problem,) = problems(answer)
    assert code == 2 and problem["try"] == "leave --n-best out"


def test_pairs_for_a_model_of_plain_text_and_one_language_twice(run: Run) -> None:
    code, answer, _ = run("train", "gpt", *pairs())
    (problem,) = problems(answer)
    assert code == 2 and problem["what"].endswith("plain text, not from pairs") and "seq2seq" in problem["allowed"]
    for languages, wanted in ((["fr", "fr"], "--data.target_language en"), (["en", "en"], "--data.source_language fr")):
        given = ["--data.source_language", languages[0], "--data.target_language", languages[1]]
        code, answer, _ = run("train", "transformer", *pairs(), *given)
        assert code == 2 and {problem["try"] for problem in problems(answer)} == {wanted}


def test_a_number_of_pairs_replaces_a_number_of_tokens(run: Run) -> None:
    small = [*TINY[:2], *TINY[4:], *pairs()]
    code, _, told = run("train", "attention", *small, "--global_batch", 3, "--run", "few")
    assert code == 0 and "note: --global_batch replaces the recipe's batch_tokens 1024" in told
    assert "batch_tokens: null" in Path("few/config.yaml").read_text()
    code, answer, _ = run("train", "attention", *small, "--global_batch", 3, "--batch_tokens", 64)
    (problem,) = problems(answer)
    assert code == 2 and problem["try"] == "leave --batch_tokens out"
    # A run's own file has both written out, and the tokens count.
    assert run("train", "few/config.yaml", "--run", "again")[0] == 0
    code, _, told = run("train", "gpt", "--global_batch", 0)
    assert code == 2 and "replaces" not in told


def test_tables_with_a_line_of_names_and_ragged_lines(run: Run) -> None:
    lines = [f"{source}\t{target}" for source, target in zip(FRENCH, ENGLISH, strict=True)]
    exchanged = ["en\tfr", *(f"{target}\t{source}" for source, target in zip(FRENCH, ENGLISH, strict=True))]
    lines[2] += "\tCC-BY"
    named = write("named.tsv", "fr\ten", *lines)
    for name, table, columns in (
        ("setting", named, ["--data.columns", "fr,en"]),
        ("line", named, []),
        ("order", write("order.tsv", *exchanged), ["--data.columns", "fr,en"]),
        ("bare", write("bare.tsv", *lines), ["--data.columns", "fr,en"]),
    ):
        given = ["--data.train", table, *columns, "--data.cache", "cache"]
        code, report, told = run("prepare", "attention", "--out", name, *given)
        assert code == 0 and report["documents"] == 5, name
        assert ("lines that name the columns: 1" in told) == (name != "bare")
        assert ("lines with another number of columns: 1" in told) == (name != "order")
        assert report["languages"]["en"][0] == "is", name
    code, answer, _ = run("train", "attention", *TINY, "--data.train", "bare.tsv")
    (problem,) = problems(answer)
    assert code == 3 and problem["where"] == "bare.tsv" and problem["try"].startswith("--data.columns fr,en")


def test_many_unknown_words_are_told(run: Run) -> None:
    held = ["--data.valid_source", write("v.fr", "je suis perdu"), "--data.valid_target", write("v.en", "I am here")]
    code, _, told = run("train", "attention", *TINY, *pairs(), *held, "--run", "r")
    (line,) = (line for line in told.splitlines() if "unknown (" in line)
    assert code == 0 and line.startswith("1 of 3 words of valid's sources are unknown (33 %); try: --data.tokenizer")
    code, _, told = run("train", "attention", *TINY, *pairs(), *held, "--data.tokenizer.kind", "bpe",
                        "--data.tokenizer.vocab_size", "4000", "--run", "pieces")  # fmt: skip
    assert code == 0 and "unknown (" not in told


def test_every_network_goes_on_with_its_tokenizer(run: Run) -> None:
    small = ["--data.train", write("text.txt", *ENGLISH), "--steps", 2, "--context", 8, "--global_batch", 2,
             "--model.d_model", 16, "--optimizer.warmup", 0, "--data.cache", "cache"]  # fmt: skip
    assert run("train", "lstm", *small, "--data.tokenizer.vocab_size", 270, "--run", "first")[0] == 0
    assert run("train", "lstm", *small, "--init_from", "first", "--run", "second")[0] == 0
    assert Path("second/tokenizer.json").read_bytes() == Path("first/tokenizer.json").read_bytes()
