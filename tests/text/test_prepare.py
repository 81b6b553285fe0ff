"""From sources to prepared text: odd input is mended and counted, equal text is prepared once, damage is noticed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradatim.config.settings import DataConfig, TokenizerConfig
from gradatim.errors import DataError, LaunchError
from gradatim.text import embedded, sources
from gradatim.text.prepare import Prepared, _publish, prepare
from gradatim.text.sources import Tally, read_documents

BPE = TokenizerConfig(kind="bpe", vocab_size=300)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches and files in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(*train: object, **settings: Any) -> DataConfig:
    return DataConfig(train=tuple(map(str, train)), **{"cache": "cache", "tokenizer": BPE, **settings})


def read(raw: bytes, document: str = "line", name: str = "text.txt") -> tuple[list[str], Tally]:
    Path(name).write_bytes(raw)
    tally = Tally()
    return list(read_documents((name,), "train", config(name, document=document), tally)), tally


# --------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("document", "expected", "unread"),
    [
        ("line", ["one", "two ", "three", "four"], 3),
        ("blank-line", ["one\ntwo ", "three\nfour"], 3),
        ("file", ["one\ntwo \n\n \nthree\nfour"], 0),
    ],
)
@pytest.mark.parametrize("ending", [b"\r\n", b"\r\r\n"])
def test_documents_and_their_bytes(document: str, expected: list[str], unread: int, ending: bytes) -> None:
    raw = b"one\ntwo \n\n \nthree\nfour"
    documents, tally = read(raw, document)
    assert documents == expected
    assert tally.bytes == len(raw) - unread  # blank lines between documents are nobody's to predict
    documents, tally = read(b"\xef\xbb\xbf" + raw.replace(b"\n", ending), document)
    assert documents == expected
    assert tally.bytes == len(raw) - unread
    assert tally.dropped["carriage returns"] == 5 * ending.count(b"\r")
    assert tally.dropped["byte-order marks"] == 1


def test_documents_of_which_nothing_is_seen_are_dropped() -> None:
    documents, tally = read("one\n\u00a0\n\u200b \x0b\ntwo\n\ufeff".encode(), "line")
    assert documents == ["one", "two"] and tally.dropped["empty documents"] == 3


def test_a_folder_that_another_process_has_just_made_is_filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same files to put there."""
    fresh, made = folder / "fresh", folder / "made"
    for path in (fresh, made):
        path.mkdir()
        (path / "report.json").write_text(path.name)
    monkeypatch.setattr(Path, "is_dir", lambda path: path != made)
    _publish(fresh, made)
    assert (made / "report.json").read_text() == "fresh"


def test_odd_bytes_are_counted() -> None:
    documents, tally = read(b"a\xff\xfeb\nnul\x00here\n\n\xe6\x97\n")
    assert documents == ["a\ufffd\ufffdb", "nul\x00here", "\ufffd"]
    assert tally.dropped == {"invalid bytes replaced": 3, "NUL characters kept": 1, "empty documents": 1}
    assert tally.bytes == sum(len(text.encode()) + 1 for text in documents)


def test_a_mark_inside_a_text_is_text() -> None:
    assert read("one\n\ufefftwo\n".encode())[0] == ["one", "\ufefftwo"]


@pytest.mark.parametrize(
    "raw",
    [
        np.arange(300, dtype=np.uint16).tobytes() * 9,  # token ids without an index, as some trainers keep them
        gzip.compress(np.random.default_rng(0).bytes(4096)),
        ("the more I read " * 99).encode("utf-16"),
        ("чем больше я читаю " * 99).encode("cp1251"),
    ],
    ids=["ids", "gzip", "utf-16", "cp1251"],
)
def test_what_is_no_text_in_utf_8_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match=r"text\.txt: this file is not text in UTF-8(.|\n)*iconv"):
        read(raw)


def test_a_text_with_odd_bytes_is_mended_whatever_its_length() -> None:
    accents = "Les élèves ont été reçus à l'école où ils étudiaient le français. ".encode("latin-1") * 99
    documents, tally = read(accents)
    assert tally.dropped == {"invalid bytes replaced": documents[0].count("\ufffd")}
    assert read("чем больше я читаю\n".encode() * 9999)[1].dropped == {}  # the sample may end inside a character
    assert read(b"\xff")[0] == ["\ufffd"]


def test_tables(folder: Path) -> None:
    rows = [{"text": "first\r\nrow", "n": 1}, {"text": "", "n": 2}, {"text": "\ud800", "n": 3}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    expected = ["first\nrow", "\ufffd"]
    documents, tally = read(lines, name="rows.jsonl")
    assert documents == expected
    assert tally.bytes == 12
    assert tally.dropped["empty documents"] == 1
    assert read(gzip.compress(lines), name="rows.jsonl.gz")[0] == expected
    with pytest.raises(DataError, match="cannot be read further"):
        read(gzip.compress(lines)[:-12], name="rows.jsonl.gz")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: this line is not JSON"):
        read(lines.splitlines()[0] + b"\n{", name="rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: there is no text in column 'text'(.|\n)*got: body"):
        read(b'{"body": "x"}', name="rows.jsonl")


def test_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional: pip install 'gradatim[hf]'")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional: pip install 'gradatim[hf]'")
    parquet.write_table(pyarrow.table({"text": ["one", None, "zwei"]}), "rows.parquet")
    read_rows = list(read_documents(("rows.parquet",), "train", config("rows.parquet"), Tally()))
    assert read_rows == ["one", "zwei"]
    with pytest.raises(DataError, match=r"no column 'body'(.|\n)*got: text"):
        list(read_documents(("rows.parquet",), "train", config("rows.parquet", column="body"), Tally()))
    with pytest.raises(DataError, match="not a parquet file"):
        read(b"no", name="rows.parquet")


def test_folders_and_patterns(folder: Path) -> None:
    for name in ("b/two.txt", "a.txt", "b/three.md"):
        Path("in", name).parent.mkdir(parents=True, exist_ok=True)
        Path("in", name).write_text(name)
    for source in ("in", "in/**/*.txt"):
        assert list(read_documents((source,), "train", config(source), Tally())) == ["a.txt", "b/two.txt"]


def test_a_folder_without_text_is_named(folder: Path) -> None:
    Path("in").mkdir()
    Path("in/one.md").write_text("one")
    with pytest.raises(DataError, match=r"no \.txt file in this folder(.|\n)*try: .*'in/\*'"):
        list(read_documents(("in",), "train", config("in"), Tally()))


def test_missing_sources_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("absent.txt", "in/*.txt"):
        with pytest.raises(DataError, match="no such file or corpus"):
            list(read_documents((name,), "train", config(name), Tally()))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(LaunchError, match=r"gradatim\[hf\]"):
        list(read_documents(("hf:x",), "train", config("hf:x"), Tally()))


def test_corpora_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": ["I am a student"] * 30 + ["We are teachers"], "valid": ["I am a teacher"], "test": ["We are"]}
    monkeypatch.setattr(sources, "named", lambda _: parts)
    monkeypatch.setattr("gradatim.text.prepare.named", lambda _: parts)
    made = prepare(config("small-english"))
    assert made.valid is not None
    assert made.test is not None
    assert (len(made.train), len(made.valid), len(made.test)) == (31, 1, 1)
    assert made.train.meta.bytes == sum(len(text) + 1 for text in parts["train"])


# --------------------------------------------------------------------------- the embedded corpora


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    cache = tmp_path_factory.mktemp("corpus")
    return cache, embedded.corpus("python-manual", cache)


def test_manual(manual: tuple[Path, dict[str, dict[str, str]]]) -> None:
    cache, parts = manual
    sizes = {split: sum(len(text.encode()) for text in texts.values()) for split, texts in parts.items()}
    assert 1.5e6 < sum(sizes.values()) < 4e6
    assert min(sizes.values()) > 30_000
    assert all(embedded.part_of(name) == split for split, texts in parts.items() for name in texts)
    assert embedded.corpus("python-manual", cache) == parts  # as kept
    assert any(name.startswith("topic:") for name in parts["train"])
    words = " ".join(parts["train"].values()).lower().split()
    assert words.count("the") > 5000
    assert not any(".test." in f".{name}." or "site-packages" in name for texts in parts.values() for name in texts)


def test_no_paragraph_of_a_later_part_occurs_in_an_earlier(manual: tuple[Path, dict[str, dict[str, str]]]) -> None:
    _, parts = manual
    seen: set[str] = set()
    for split in embedded.SPLITS:
        mine = {p.strip() for text in parts[split].values() for p in text.split("\n\n")}
        mine = {p for p in mine if len(p) >= embedded.SHORT}
        assert not mine & seen
        seen |= mine


def test_manual_as_lines_has_the_bytes_of_its_lines(manual: tuple[Path, dict[str, dict[str, str]]]) -> None:
    cache, parts = manual
    tallies = [Tally(), Tally()]
    names = ("python-manual",)
    whole, lines = (
        list(read_documents(names, "test", config(cache=str(cache), document=document), tally))
        for document, tally in zip(("file", "line"), tallies)
    )
    assert tallies[0].bytes == sum(len(text.encode()) for text in parts["test"].values())
    blank = [line for text in whole for line in text.splitlines(keepends=True) if not line.strip()]
    assert tallies[1].bytes == tallies[0].bytes - sum(len(line.encode()) for line in blank)
    assert lines == [line for text in whole for line in text.split("\n") if line.strip("\r\t ")]


# --------------------------------------------------------------------------- preparing


def prose(path: str, lines: list[str]) -> Prepared:
    Path(path).write_text("\n".join(lines) + "\n")
    return prepare(config(path, document="line"))


def test_prepared_text_decodes_to_itself() -> None:
    lines = [f"line {number}, read <|endoftext|> twice: {number * number}" for number in range(50)]
    made = prose("text.txt", lines)
    decoded = [made.tokenizer.decode(made.train.document(i)) for i in range(len(made.train))]
    assert decoded == lines
    assert all(made.train.document(i)[-1] == made.tokenizer.boundary for i in range(50))
    assert int((made.train.tokens == made.tokenizer.boundary).sum()) == 50
    assert made.train.meta.bytes == Path("text.txt").stat().st_size
    assert made.valid is None
    assert made.test is None
    assert made.report["tokens"] == made.train.meta.tokens


def test_equal_text_is_prepared_once_and_a_changed_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = prose("text.txt", ["one two three"] * 5)
    said: list[str] = []
    assert prepare(config("text.txt", document="line"), say=said.append).fingerprint == first.fingerprint
    assert said == []
    assert prose("text.txt", ["one two four"] * 5).fingerprint != first.fingerprint
    assert prepare(config("text.txt", document="file")).fingerprint != first.fingerprint


def test_a_damaged_cache_is_made_again() -> None:
    made = prose("text.txt", ["one two three"] * 5)
    before = made.train.tokens.tolist()
    damaged = made.train.prefix.with_name("train.bin")
    damaged.unlink()  # another file: cutting short the one that is mapped would end the process
    damaged.write_bytes(b"")
    said: list[str] = []
    again = prepare(config("text.txt", document="line"), say=said.append)
    assert "damaged" in said[0]
    assert again.train.tokens.tolist() == before


def swap(one: Path, other: Path) -> None:
    """Let two paths change places."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_whole_parts_that_changed_places_are_noticed(folder: Path) -> None:
    """Each file is sound, and of this tokenizer: only the report tells which part it is."""
    Path("train.txt").write_text("one two three\n" * 5)
    Path("valid.txt").write_text("two three\n")
    data = config("train.txt", valid=("valid.txt",), document="line")
    before = prepare(data).train.tokens.tolist()
    prepare(data, folder / "out")
    (cached,) = Path("cache").iterdir()
    for place in (folder / "out", cached):
        for end in ("bin", "idx", "meta.json"):
            swap(place / f"train.{end}", place / f"valid.{end}")
    with pytest.raises(DataError, match=r"out/train: these are the tokens of another part or text"):
        prepare(data, folder / "out")
    said: list[str] = []
    assert prepare(data, say=said.append).train.tokens.tolist() == before
    assert said[0] == f"{cached} is damaged, preparing again"


def test_a_part_that_is_gone_is_missed(folder: Path) -> None:
    Path("train.txt").write_text("one two three\n" * 5)
    Path("valid.txt").write_text("two three\n")
    data = config("train.txt", valid=("valid.txt",), document="line")
    prepare(data, folder / "out")
    for path in (folder / "out").glob("valid.*"):
        path.unlink()
    with pytest.raises(DataError, match=r"valid\.bin: there is no such token file"):
        prepare(data, folder / "out")


def test_folders_of_the_cache_that_changed_places_are_noticed() -> None:
    made = [prose(f"{name}.txt", [f"one two {name}"] * 5) for name in ("three", "four")]
    expected = made[0].train.tokens.tolist()
    swap(*(found.train.prefix.parent for found in made))
    said: list[str] = []
    assert prepare(config("three.txt", document="line"), say=said.append).train.tokens.tolist() == expected
    assert "damaged" in said[0]


def test_a_tokenizer_that_is_named_is_used_and_none_is_learned(folder: Path) -> None:
    Path("first.txt").write_text("one two three")
    Path("second.txt").write_text("three two one, and others")
    learned = prepare(config("first.txt"), folder / "out").tokenizer
    said: list[str] = []
    own = TokenizerConfig(path=str(folder / "out/tokenizer.json"))
    made = prepare(config("second.txt", tokenizer=own), say=said.append)
    assert made.tokenizer.fingerprint == learned.fingerprint
    assert made.tokenizer.decode(made.train.tokens.tolist()) == "three two one, and others"
    assert said == [f"taking the vocabulary of {own.path}", "encoding train"]
    Path("empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"data\.train: there is no text"):
        prepare(config("empty.txt", tokenizer=own))


def test_a_named_folder_is_never_overwritten(folder: Path) -> None:
    Path("a.txt").write_text("one two three")
    Path("b.txt").write_text("four five six")
    out = folder / "out"
    prepare(config("a.txt"), out)
    assert prepare(config("a.txt"), out).fingerprint
    with pytest.raises(DataError, match="holds another text"):
        prepare(config("b.txt"), out)
    (out / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin"):
        prepare(config("a.txt"), out)


def test_the_vocabulary_comes_from_training_text_only_and_leaks_are_counted() -> None:
    Path("train.txt").write_text("a b c\nd e f\n")
    Path("valid.txt").write_text("a b c\nx y z\nd e f\n")
    made = prepare(config("train.txt", valid=("valid.txt",), document="line",
                          tokenizer=TokenizerConfig(kind="word")))  # fmt: skip
    assert made.valid is not None
    assert made.valid.meta.unknown == 3
    assert made.report["splits"]["valid"]["also in train"] == 2
    assert made.tokenizer.vocab_size == 2 + 6


@pytest.mark.parametrize("content", [b"", b"\n\n \r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["bpe", "char", "word", "wordpiece"])
def test_empty_text(content: bytes, kind: Any, folder: Path) -> None:
    Path("empty.txt").write_bytes(content)
    Path("text.txt").write_text("one two three")
    tokenizer = TokenizerConfig(kind=kind, vocab_size=300)
    with pytest.raises(DataError, match=r"data\.train: there is no text"):
        prepare(config("empty.txt", tokenizer=tokenizer))
    with pytest.raises(DataError, match=r"data\.valid: there is no text"):
        prepare(config("text.txt", valid=("empty.txt",), tokenizer=tokenizer))
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("document", ["line", "blank-line"])
def test_blank_lines_that_nobody_predicts_are_no_bytes(document: str, tmp_path: Path) -> None:
    """Else they would flatter bits per byte."""
    sizes = []
    for name, blank in (("few", ""), ("many", "\n" * 12)):
        (tmp_path / f"{name}.txt").write_text(f"a b c\n\n{blank}d e f\n", encoding="utf-8")
        data = DataConfig(
            train=(str(tmp_path / f"{name}.txt"),), document=document, tokenizer=TokenizerConfig(kind="char")
        )
        sizes.append(prepare(data, tmp_path / name).train.meta.bytes)
    assert sizes == [12, 12]
