"""Token files: Megatron's bytes, and one clear error for whatever may have happened to them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from gradatim.errors import DataError
from gradatim.text.tokenfile import TokenFile, dtype_for

DOCUMENTS = [np.array([5, 6, 0]), np.array([0]), np.array([7, 7, 7, 9, 0])]


def write(prefix: Path, documents: list[np.ndarray] = DOCUMENTS, vocab_size: int = 10, **settings: object) -> TokenFile:
    facts: dict[str, object] = {"boundary": 0, "tokenizer": "abc", "text_bytes": 30, "unknown": 7, **settings}
    return TokenFile.write(prefix, documents, vocab_size=vocab_size, **facts)  # type: ignore[arg-type]


def test_layout_is_megatrons_byte_for_byte(tmp_path: Path) -> None:
    write(tmp_path / "text")
    assert (tmp_path / "text.bin").read_bytes() == np.array([5, 6, 0, 0, 7, 7, 7, 9, 0], "<u2").tobytes()
    assert (tmp_path / "text.idx").read_bytes() == (
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
        + struct.pack("<3i", 3, 1, 5) + struct.pack("<3q", 0, 6, 8) + struct.pack("<4q", 0, 1, 2, 3)
    )  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "text")
    file = TokenFile.open(tmp_path / "text", tokenizer="abc", vocab_size=10)
    assert len(file) == 3
    assert [file.document(i).tolist() for i in range(3)] == [d.tolist() for d in DOCUMENTS]
    assert file.document_starts.tolist() == [0, 3, 4, 9]
    assert isinstance(file.tokens, np.memmap)
    assert not file.tokens.flags.writeable
    meta = file.meta
    assert (meta.tokens, meta.documents, meta.bytes, meta.unknown, meta.dtype) == (9, 3, 30, 3, "uint16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.bin", "text.idx", "text.meta.json"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_500, np.uint16), (65_501, np.int32), (2**31, np.int32)])
def test_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    assert dtype_for(vocab_size) == dtype
    file = write(tmp_path / "text", [np.array([0, vocab_size - 1])], vocab_size)
    assert file.tokens.dtype == dtype
    assert file.tokens.tolist() == [0, vocab_size - 1]


@pytest.mark.parametrize("token", [-1, 10, 70_000])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, token: int) -> None:
    with pytest.raises(DataError, match=f"outside the vocabulary(.|\n)*got: {token}\n(.|\n)*0 to 9"):
        write(tmp_path / "text", [np.array([1, token, 0])])
    assert not (tmp_path / "text.bin").exists()


def test_a_vocabulary_beyond_its_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not fit the dtype uint16(.|\n)*65,537 ids"):
        write(tmp_path / "text", vocab_size=65_537, dtype="uint16")
    with pytest.raises(DataError, match="does not fit the dtype int32"):
        write(tmp_path / "text", vocab_size=2**31 + 1)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document"):
        write(tmp_path / "text", [])


@pytest.mark.parametrize("end", ["bin", "idx"])
@pytest.mark.parametrize("how", ["truncated", "extended", "emptied", "flipped", "missing", "swapped"])
def test_damage_is_found_at_open(tmp_path: Path, end: str, how: str) -> None:
    write(tmp_path / "text")
    write(tmp_path / "other", [np.array([1, 2, 3, 4, 0]), np.array([0]), np.array([7, 7, 0])])
    path = tmp_path / f"text.{end}"
    raw = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(raw[:-1])
    elif how == "extended":
        path.write_bytes(raw + b"\x00\x00")
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes((tmp_path / f"other.{end}").read_bytes())
    with pytest.raises(DataError) as caught:
        TokenFile.open(tmp_path / "text", tokenizer="abc")
    assert len(caught.value.problems) == 1
    assert "text." in caught.value.problems[0].where
    assert caught.value.problems[0].attempt


def test_every_flipped_bit_of_an_index_is_found(tmp_path: Path) -> None:
    write(tmp_path / "text")
    path = tmp_path / "text.idx"
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            TokenFile.open(tmp_path / "text")


def test_bin_and_idx_exchanged(tmp_path: Path) -> None:
    write(tmp_path / "text")
    binary, index = tmp_path / "text.bin", tmp_path / "text.idx"
    first, second = binary.read_bytes(), index.read_bytes()
    binary.write_bytes(second)
    index.write_bytes(first)
    with pytest.raises(DataError, match="not a token index"):
        TokenFile.open(tmp_path / "text")


def test_another_tokenizer_and_a_broken_description(tmp_path: Path) -> None:
    write(tmp_path / "text")
    with pytest.raises(DataError, match="another tokenizer"):
        TokenFile.open(tmp_path / "text", tokenizer="xyz")
    with pytest.raises(DataError, match="vocabulary is of another size"):
        TokenFile.open(tmp_path / "text", vocab_size=11)
    path = tmp_path / "text.meta.json"
    content = json.loads(path.read_text())
    for change in ({"tokens": 8}, {"dtype": "int32"}, {"documents": 4}, {"more": 1}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=r"meta\.json"):
            TokenFile.open(tmp_path / "text")
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        TokenFile.open(tmp_path / "text")


def test_files_of_other_programs(tmp_path: Path) -> None:
    """No description, and two sequences (sentences) joined to one document, as Megatron's preprocessing writes."""
    (tmp_path / "text.bin").write_bytes(np.array([3, 1, 4, 1, 5, 9], "<i4").tobytes())
    (tmp_path / "text.idx").write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 3, 3)
        + struct.pack("<3i", 1, 2, 3) + struct.pack("<3q", 0, 4, 12) + struct.pack("<3q", 0, 2, 3)
    )  # fmt: skip
    file = TokenFile.open(tmp_path / "text", vocab_size=10)
    assert [file.document(i).tolist() for i in range(len(file))] == [[3, 1, 4], [1, 5, 9]]
    with pytest.raises(DataError, match="no description"):
        _ = file.meta
    with pytest.raises(DataError, match="outside the vocabulary"):
        TokenFile.open(tmp_path / "text", vocab_size=9)


def test_an_id_outside_the_vocabulary_is_found_though_the_checksum_is_right(tmp_path: Path) -> None:
    ids = [np.array([1, 2, 9, 0])]
    TokenFile.write(tmp_path / "a", ids, vocab_size=10, boundary=0, tokenizer="x", text_bytes=4)
    facts = json.loads((tmp_path / "a.meta.json").read_text())
    (tmp_path / "a.meta.json").write_text(json.dumps({**facts, "vocab_size": 9}))
    with pytest.raises(DataError, match="a token id is outside the vocabulary"):
        TokenFile.open(tmp_path / "a")
