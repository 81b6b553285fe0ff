"""Bad input from the command line: each gets one clear error and its exit code, or is mended and counted.

Never a traceback, never "a defect of this program" (exit code 1), never a silent wrong result.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_input import CHARS, CONTEXT, GPT, LINES, NEURAL, Answer, Refused, copy

from gradatim.cli.main import main
from gradatim.text.sources import HINTS
from gradatim.text.tokenfile import TokenFile
from gradatim.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("here")


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
    told = "\n".join(f"odd.txt: {what}: {count}{HINTS.get(what, '')}" for what, count in COUNTS.items())
    assert set(told.splitlines()) == set(said.splitlines()) and HINT in told
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
