"""Bad input from the command line: each gets one clear error and its exit code, or is mended and counted.

Never a traceback, never "a defect of this program" (exit code 1), never a silent wrong result.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradatim.cli.main import main
from gradatim.text.tokenfile import TokenFile
from gradatim.text.tokenizer import load_tokenizer

LINES = ["the more i read the more i learn", "and i like it more than anything"]
CONTEXT = 8
CHARS = ["--data.document", "line", "--data.tokenizer.kind", "char"]
NEURAL = [
    *CHARS, "--steps", "2", "--context", str(CONTEXT), "--global-batch", "4", "--model.d_model", "8",
    "--model.n_layers", "1",
]  # fmt: skip
GPT = [*NEURAL, "--model.n_heads", "2"]
Refused = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, its prepared tokens, and a run of a GPT and of an LSTM: copied for each test that damages them."""
    root = tmp_path_factory.mktemp("kept")
    text = root / "text.txt"
    text.write_text("\n".join(LINES * 20) + "\n", encoding="utf-8")
    common = ["--data.train", str(text), "--data.cache", str(root / "cache")]
    assert main(["train", "gpt", "--run", str(root / "gpt"), *GPT, *common]) == 0
    assert main(["train", "lstm", "--run", str(root / "lstm"), *NEURAL, *common]) == 0
    assert main(["prepare", str(text), "--out", str(root / "prepared"), *CHARS]) == 0
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, where the log of an unforeseen failure would be found too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], here: Path) -> Refused:
    """Run a command that must fail: for programs, then for people. Returns its problems."""

    def run_it(*args: str | Path, code: int) -> list[dict[str, str]]:
        command = [*map(str, args)]
        capsys.readouterr()
        assert main([*command, "--json"]) == code
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["exit_code"] == code
        for problem in error["problems"]:
            assert problem["where"] and problem["what"], problem
            assert problem["try"] or problem["allowed"], problem
        assert main(command) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("error: ") == len(error["problems"])
        assert all(f"{problem['where']}: {problem['what']}" in err for problem in error["problems"])
        assert "Traceback" not in err
        assert not list(here.glob("gradatim-failure-*"))
        return list(error["problems"])

    return run_it


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """Run a command that must succeed: its document, and what it said on standard error."""

    def run_it(*args: str | Path) -> tuple[Any, str]:
        capsys.readouterr()
        assert main([*map(str, args), "--json"]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    return run_it


Answer = Callable[..., tuple[Any, str]]


def copy(source: Path) -> Path:
    return Path(shutil.copytree(source, Path.cwd() / source.name))


# --------------------------------------------------------------------------- text


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf\r\n \n"])
def test_an_empty_corpus(content: bytes, kept: Path, refused: Refused) -> None:
    Path("empty.txt").write_bytes(content)
    (problem,) = refused("train", "gpt", "--run", "run", *GPT, "--data.train", "empty.txt", code=3)
    assert (problem["where"], problem["what"], problem["got"]) == ("data.train", "there is no text", "empty.txt")
    held_out = ["--data.train", kept / "text.txt", "--data.valid", "empty.txt"]
    (problem,) = refused("train", "gpt", "--run", "run", *GPT, *held_out, code=3)
    assert problem["where"] == "data.valid"
    (problem,) = refused("evaluate", kept / "gpt", "--text", "empty.txt", code=3)
    assert problem["where"] == "empty.txt"


ODD = b"\xef\xbb\xbfthe \xff more\r\ni \0 read\r\n\r\n \xc3"
MENDED = "the \ufffd more\ni \0 read\n\n \ufffd"
COUNTS = {
    "invalid bytes replaced": 2, "byte-order marks": 1, "carriage returns": 3, "NUL characters kept": 1,
    "empty documents": 1,
}  # fmt: skip


HINT = "    try: iconv -f LATIN1 -t UTF-8, if the text is in another encoding"


def test_odd_bytes_are_mended_counted_and_then_as_if_they_had_never_been(kept: Path, answer: Answer) -> None:
    Path("odd.txt").write_bytes(ODD)
    Path("mended.txt").write_bytes(MENDED.encode())
    odd, said = answer("evaluate", kept / "gpt", "--text", "odd.txt")
    assert {f"odd.txt: {what}: {count}" for what, count in COUNTS.items()} == set(said.splitlines()) - {HINT}
    assert odd == answer("evaluate", kept / "gpt", "--text", "mended.txt")[0]
    assert (odd["unknown"], odd["bytes"]) == (3, len(MENDED.encode()) - 1)  # the blank line is nobody's to predict
    odd, said = answer("prepare", "odd.txt", "--out", "a", *CHARS)
    assert odd["dropped"] == COUNTS
    assert "train: invalid bytes replaced: 2\n" + HINT in said
    answer("prepare", "mended.txt", "--out", "b", *CHARS)
    for name in ("tokenizer.json", "train.bin", "train.idx", "train.meta.json"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_training_says_what_it_mended(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.txt").write_bytes(ODD * 9)
    assert main(["train", "gpt", "--run", "run", *GPT, "--data.train", "odd.txt", "--data.cache", "cache"]) == 0
    assert "train: NUL characters kept: 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "piece"), [("char", "the more i read "), ("word", "the more i read "), ("word", "ab"), ("bpe", "ab")]
)
def test_a_line_of_ten_megabytes(kind: str, piece: str, answer: Answer) -> None:
    size = 10 << 20
    Path("line.txt").write_text(piece * (size // len(piece)), encoding="utf-8")
    options = ["--data.document", "line", "--data.tokenizer.kind", kind, "--data.tokenizer.vocab_size", "300"]
    found, _ = answer("prepare", "line.txt", "--out", "out", *options)
    assert (found["documents"], found["bytes"], found["dropped"]) == (1, size, {})
    tokenizer = load_tokenizer(Path("out/tokenizer.json"))
    ids = TokenFile.open(Path("out/train"), tokenizer=tokenizer.fingerprint).document(0)
    assert len(ids) == found["tokens"]
    assert tokenizer.decode(ids[:40]).startswith(piece.strip())
    if kind != "word":
        assert sum(len(tokenizer.decode([i])) * n for i, n in enumerate(np.bincount(ids))) == size


def test_documents_shorter_than_the_context(kept: Path, answer: Answer, refused: Refused) -> None:
    Path("short.txt").write_text("ab\nc\n" * 10, encoding="utf-8")  # documents of 3 and 2 tokens, context 8
    common = [*GPT, "--data.train", "short.txt", "--data.cache", "cache"]
    within, _ = answer("train", "gpt", "--run", "within", *common, "--data.packing", "within")
    across, _ = answer("train", "gpt", "--run", "across", *common)
    assert across["tokens"] == 2 * 4 * CONTEXT
    assert 2 * 4 * 2 <= within["tokens"] <= 2 * 4 * 3  # what was padded is not counted as learned
    Path("two.txt").write_text("ab\n", encoding="utf-8")
    (problem,) = refused("train", "gpt", "--run", "none", *GPT, "--data.train", "two.txt", code=3)
    assert problem["what"] == "the text is shorter than one step needs"
    assert (problem["got"], problem["allowed"]) == ("3 tokens", f"at least {CONTEXT + 1}")
    (problem,) = refused("train", "lstm", "--run", "none", *NEURAL, "--data.train", "two.txt", code=3)
    assert problem["allowed"] == f"at least {4 * CONTEXT + 1}"
    (problem,) = refused("train", "ngram", "--run", "none", *CHARS, "--data.train", "two.txt", code=3)
    assert problem["where"] == "1-grams and 3 longer orders"
    options = [*CHARS, "--data.train", "two.txt", "--data.cache", "cache", "--model.smoothing", "additive"]
    assert answer("train", "ngram", "--run", "none", *options)[0]["tokens"] == 3  # refusals left no run in the way
    found, _ = answer("evaluate", kept / "gpt", "--text", "two.txt")
    assert found["tokens"] == 3


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "rows.jsonl:2"),
        ("rows.jsonl", b'{"text": "a"}\n\n{"text": ', "rows.jsonl:3"),
        ("rows.jsonl", b'{"text": 7}\n', "rows.jsonl:1"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08 torn", "rows.jsonl.gz:0"),
        ("rows.parquet", b"PAR1", "rows.parquet"),
    ],
)
def test_tables_that_are_none(name: str, content: bytes, where: str, kept: Path, refused: Refused) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is optional: pip install 'gradatim[hf]'")
    Path(name).write_bytes(content)
    for command in (["prepare", name, "--out", "out"], ["evaluate", kept / "gpt", "--text", name]):
        (problem,) = refused(*command, code=3)
        assert problem["where"] == where


# --------------------------------------------------------------------------- token files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def swap(path: Path) -> None:
    other = Path("other") / path.name
    if not other.exists():
        Path("other.txt").write_text("\n".join(line[::-1] for line in LINES * 20) + "\n", encoding="utf-8")
        assert main(["prepare", "other.txt", "--out", "other", *CHARS]) == 0
    assert other.stat().st_size == path.stat().st_size
    shutil.copy(other, path)


def remove(path: Path) -> None:
    path.unlink()


def out_of_range(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(struct.pack("<H", 60_000))


def narrower(path: Path) -> None:
    """Let the index claim bytes (dtype code 1) for what was stored in two."""
    raw = bytearray(path.read_bytes())
    raw[17] = 1
    path.write_bytes(raw)


DAMAGE = [
    ("train.bin", truncate), ("train.bin", swap), ("train.bin", remove), ("train.bin", out_of_range),
    ("train.idx", truncate), ("train.idx", narrower), ("train.idx", remove),
    ("train.meta.json", truncate), ("train.meta.json", swap), ("train.meta.json", remove),
]  # fmt: skip
each_damage = pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=[f"{n}-{f.__name__}" for n, f in DAMAGE])


@each_damage
def test_damaged_token_files_are_named(
    name: str, damage: Callable[[Path], None], kept: Path, answer: Answer, refused: Refused
) -> None:
    folder = copy(kept / "prepared")
    again = ["prepare", kept / "text.txt", "--out", folder, *CHARS]
    answer(*again)
    damage(folder / name)
    (problem,) = refused(*again, code=3)
    stem = "train." if damage in (narrower, swap) else name  # a swapped or lying file shows where it disagrees
    assert Path(problem["where"]).name.startswith(stem)


@each_damage
def test_a_damaged_cache_is_made_again_and_said(
    name: str, damage: Callable[[Path], None], kept: Path, answer: Answer
) -> None:
    cache = copy(kept / "cache")
    (folder,) = cache.iterdir()
    damage(folder / name)
    common = [*GPT, "--data.train", kept / "text.txt", "--data.cache", cache]
    found, said = answer("train", "gpt", "--run", "run", *common)
    assert "is damaged, preparing again" in said
    before = json.loads((kept / "gpt/metrics.jsonl").read_text().splitlines()[-1])
    assert (found["step"], found["loss"]) == (2, before["loss"])


@pytest.mark.parametrize("name", ["prepared", "prepared/train", "prepared/train.bin", "prepared/train.idx"])
def test_prepared_tokens_are_no_text(name: str, kept: Path, refused: Refused) -> None:
    folder = kept / "prepared"
    for command in (
        ["prepare", kept / name, "--out", "out", *CHARS],
        ["train", "gpt", "--run", "run", *GPT, "--data.train", kept / name],
        ["train", "gpt", "--run", "run", *GPT, "--data.train", kept / "text.txt", "--data.valid", kept / name],
        ["evaluate", kept / "gpt", "--text", kept / name],
    ):
        (problem,) = refused(*command, code=3)
        assert problem["where"] == str(kept / name)
        assert problem["what"] == "these are tokens, prepared from text, and not text"
        assert f"--data.tokenizer.path {folder / 'tokenizer.json'}" in problem["try"]


def test_a_vocabulary_too_large_for_two_bytes_is_stored_in_four(answer: Answer) -> None:
    wide = "".join(map(chr, [*range(0x4E00, 0x9FFF), *range(0x20000, 0x2A000), *range(0xAC00, 0xD7A0)]))
    Path("wide.txt").write_text(wide, encoding="utf-8")
    found, _ = answer("prepare", "wide.txt", "--out", "out", *CHARS, "--data.tokenizer.vocab_size", "null")
    assert found["vocabulary"] == len(wide) + 2 > 1 << 16
    tokenizer = load_tokenizer(Path("out/tokenizer.json"))
    file = TokenFile.open(Path("out/train"), tokenizer=tokenizer.fingerprint)
    assert file.meta.dtype == "int32"
    assert tokenizer.decode(file.document(0).tolist()) == wide


# --------------------------------------------------------------------------- recipes, keys, paths


@pytest.mark.parametrize(
    ("arguments", "code", "where", "attempt"),
    [
        (["train", "gtp"], 2, "gtp", "gpt"),
        (["prepare", "mine.yaml", "--out", "out"], 2, "mine.yaml", ""),
        (["train", "gpt", "--model.n_haeds", "2"], 2, "--model.n_haeds", "--model.n_heads"),
        (["train", "lstm", "--model.order", "2"], 2, "--model.order", ""),
        (["train", "gpt", "--optimizer.lr", "fast"], 2, "--optimizer.lr", ""),
        (["train", "gpt", "--data.train", "absent.txt"], 3, "data.train", ""),
        (["train", "gpt", "--data.train", ""], 2, "data.train", "python-manual"),
        (["prepare", "", "--out", "out"], 2, "data.train", "python-manual"),
        (["evaluate", ".", "--text", ""], 2, "--text", "name a file"),
        (["train", "gpt", "--data.tokenizer.path", "absent.json", "--data.train", "a.txt"], 3, "absent.json", ""),
        (["train", "gpt", "--data.train", "a.txt", "--data.cache", "a.txt"], 5, "a.txt", "name another path"),
        (["train", "gpt", "--run", "a.txt", "--data.train", "a.txt"], 2, "a.txt", "--run"),
        (["train", "gpt", "--run", "a.txt/run", "--data.train", "a.txt"], 5, "a.txt/run", "--run"),
        (["ngrams", "."], 3, ".", ""),
        (["ngrams", "x" * 300], 3, "x" * 300, ""),
        (["evaluate", "."], 4, ".", "gradatim train"),
        (["evaluate", "a.txt"], 4, "a.txt", "gradatim train"),
        (["evaluate", "x" * 300], 5, "x" * 300, "name a shorter path"),
    ],
)
def test_what_is_unknown(arguments: list[str], code: int, where: str, attempt: str, refused: Refused) -> None:
    Path("a.txt").write_text("a\n")
    problems = refused(*arguments, code=code)
    assert any(where in problem["where"] and attempt in problem["try"] for problem in problems), problems


@pytest.mark.parametrize("content", [b"steps: \xff\n", b"steps: 5\0\n", b"", b"- a\n", b"steps: [\n", b"stpes: 5\n"])
def test_recipes_that_are_none(content: bytes, refused: Refused) -> None:
    Path("mine.yaml").write_bytes(content)
    problems = refused("train", "mine.yaml", code=2)
    assert all(problem["where"].startswith("mine.yaml") for problem in problems)
    assert not Path("runs").exists()


# --------------------------------------------------------------------------- runs that are not what they were


def test_a_run_of_another_config_is_not_continued(kept: Path, refused: Refused) -> None:
    run = copy(kept / "gpt")
    common = ["--data.cache", kept / "cache", "--run", run, "--resume"]
    own = [*common, "--data.train", kept / "text.txt"]
    wide = ["16" if before == "--model.d_model" else option for before, option in zip(["", *GPT], GPT, strict=False)]
    before = (run / "config.yaml").read_bytes()
    problems = refused("train", "gpt", *wide, *own, "--seed", "3", code=4)
    assert [(Path(problem["where"].split(": ")[0]).name, problem["where"].split(": ")[1]) for problem in problems] == [
        ("config.yaml", "model.d_model"),
        ("config.yaml", "seed"),
    ]
    assert [(problem["got"], problem["allowed"]) for problem in problems] == [("16", "8"), ("3", "0")]
    Path("text.txt").write_text("other text\n" * 20)
    problems = refused("train", "gpt", *GPT, *common, "--data.train", "text.txt", code=4)
    assert "data.train" in problems[0]["where"]
    problems = refused("train", "lstm", *NEURAL, *own, "--seed", "3", "--optimizer.lr", "3e-3", code=4)
    assert [problem["where"].split(": ")[1] for problem in problems] == ["model.kind", "optimizer.lr", "seed"]
    assert (problems[0]["got"], problems[0]["allowed"]) == ("lstm", "gpt")
    assert (run / "config.yaml").read_bytes() == before


def test_a_damaged_run_is_not_continued(kept: Path, refused: Refused) -> None:
    run = copy(kept / "gpt")
    again = ["train", "gpt", *GPT, "--data.train", kept / "text.txt", "--data.cache", kept / "cache", "--run", run]
    (run / "tokenizer.json").write_text("{")
    (problem,) = refused(*again, "--resume", code=4)
    assert problem["try"].startswith("restore the run's tokenizer.json")
    (run / "config.yaml").write_text("steps: [\n")
    (problem,) = refused(*again, "--resume", code=4)
    assert problem["try"].startswith("restore the run's config.yaml")


def test_importing_into_a_run_or_a_folder_of_other_files(kept: Path, refused: Refused) -> None:
    Path("model.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-0.1\ta\n\n\\end\\\n")
    (problem,) = refused("import", "model.arpa", kept / "gpt", code=2)
    assert problem["try"] == "name another RUN"
    (problem,) = refused("import", "model.arpa", kept, code=2)
    assert problem["try"] == "name a RUN that is empty or new"


@pytest.mark.parametrize("verb", [["next", "i"], ["score", "i"], ["complete", "i"], ["evaluate"]])
def test_parts_of_other_runs_are_refused(verb: list[str], kept: Path, refused: Refused) -> None:
    run = copy(kept / "gpt")
    ask = [verb[0], run, *verb[1:]]
    shutil.copy(kept / "lstm/config.yaml", run)
    assert all("step-00000002" in problem["where"] for problem in refused(*ask, code=4))
    wide = (kept / "gpt/config.yaml").read_text().replace("d_model: 8,", "d_model: 16,")
    (run / "config.yaml").write_text(wide)
    problems = refused(*ask, code=4)
    assert {problem["what"] for problem in problems} >= {"embed.tokens.weight has another shape"}
    shutil.copy(kept / "gpt/config.yaml", run)
    _rename_letters(run / "tokenizer.json")
    (problem,) = refused(*ask, code=4)
    assert problem["where"] == str(run / "tokenizer.json")
    (run / "tokenizer.json").write_text("{")
    (problem,) = refused(*ask, code=4)
    assert problem["where"] == str(run / "tokenizer.json")
    assert problem["try"].startswith("restore the run's tokenizer.json from a copy")
    (run / "config.yaml").write_text("steps: 2\nmodel: {kind: gtp}\ncontext: [\n")
    (problem,) = refused(*ask, code=4)
    assert problem["where"].startswith(str(run / "config.yaml"))
    assert problem["try"].startswith("restore the run's config.yaml from a copy")


def _rename_letters(path: Path) -> None:
    """Make it a vocabulary of the same size in which two letters have changed places."""
    facts = json.loads(path.read_text())
    table = facts["model"]["vocab"]
    table["a"], table["e"] = table["e"], table["a"]
    path.write_text(json.dumps(facts))


def test_the_text_of_a_run_that_is_gone_or_changed(refused: Refused, answer: Answer) -> None:
    text = Path("text.txt")
    text.write_text("\n".join(LINES * 20) + "\n")
    Path("valid.txt").write_text(LINES[0] + "\n")
    common = [*GPT, "--data.train", text, "--data.valid", "valid.txt", "--data.cache", "cache", "--run", "run"]
    answer("train", "gpt", *common)
    answer("evaluate", "run")
    text.write_text("xyz\n" * 20)
    (problem,) = refused("evaluate", "run", code=3)
    assert (problem["what"], problem["try"]) == ("the text has changed since the run began", "--text FILE")
    (problem,) = refused("train", "gpt", *common, "--resume", code=4)
    assert problem["what"] == "the text or its tokenizer has changed since the run began"
    text.unlink()
    (problem,) = refused("evaluate", "run", code=3)
    assert (problem["where"], problem["got"]) == ("data.train", "text.txt")


# --------------------------------------------------------------------------- prompts, as a process


def test_prompts_of_any_bytes(kept: Path) -> None:
    """Nothing, bytes that are no UTF-8, and more than the context: answered, with what was left out."""
    script = (
        "import json, sys; from gradatim.cli.main import main\n"
        "for verb in ('complete', 'next', 'score'):\n"
        "    for prompt in sys.argv[2:]: print('\\n=', main([verb, sys.argv[1], prompt, '--json']), file=sys.stderr)"
    )
    command = [sys.executable, "-W", "error", "-c", script, kept / "gpt", b"", b"\xff\x80", b"the more i learn"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert "Traceback" not in done.stderr
    assert [line[2:] for line in done.stderr.splitlines() if line.startswith("= ")] == ["0"] * 8 + ["2"]
    left_out = "the prompt is longer than the model's context: its first 9 tokens were not read"
    assert [
        line
        for line in done.stderr.splitlines()
        if line and line[0] != "=" and "unknown words" not in line and "not know" not in line
    ] == [left_out] * 2
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["prompt_tokens_dropped"] for document in documents[:3]] == [0, 0, 9]
    assert documents[8]["error"]["problems"][0]["got"] == "17 tokens"
