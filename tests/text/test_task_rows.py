"""Rows of a task: how texts are laid out, cut and filled up; labels by number, and those never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradatim.config.settings import BertConfig, DataConfig, GptConfig, LayoutConfig, RunConfig, TokenizerConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.errors import DataError
from gradatim.text.batches import IGNORE
from gradatim.text.examples import Answer, Example
from gradatim.text.prepare_task import Encoded, encode, label_names, prepare_task
from gradatim.text.task_rows import TaskRows, fitting
from gradatim.text.tokenizer import Tokenizer
from gradatim.text.vocabulary import train_tokenizer

WORDS = ["the cook sings a song and the more i read the more i learn about the song of the cook"]


def tokenizer(kind: str) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="wordpiece" if kind == "bert" else "bpe", vocab_size=300), WORDS * 4)


def config(body: str, context: int = 16, layout: dict[str, Any] | None = None, /, **task: Any) -> RunConfig:
    model = BertConfig() if body == "bert" else GptConfig()
    return RunConfig(
        model=model, context=context, global_batch=2, task=TaskConfig(**task), layout=LayoutConfig(**(layout or {}))
    )


def ids(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(("one", "two", "room", "kept"), [
    (3, 4, 10, (3, 4)), (9, 9, 10, (5, 5)), (9, 2, 10, (8, 2)), (2, 9, 10, (2, 8)), (9, 9, 11, (6, 5)),
    (0, 20, 9, (0, 9)),
])  # fmt: skip
def test_the_longer_text_gives_way(one: int, two: int, room: int, kept: tuple[int, int]) -> None:
    assert fitting(one, two, room) == kept


def test_rows_of_bert() -> None:
    own = tokenizer("bert")
    marks = own.marks
    assert marks is not None
    rows = TaskRows(
        [Encoded((ids(10, 11), ids(12)), 1), Encoded((ids(13), ids(14)), 0)],
        own,
        config("bert", kind="classify", text_b="b"),
        training=True,
    )
    batch = rows.collate([0, 1])
    cls, sep, pad = marks.begin, marks.end, marks.pad
    assert batch.ids.tolist() == [[cls, 10, 11, sep, 12, sep, pad, pad], [cls, 13, sep, 14, sep, pad, pad, pad]]
    assert batch.segments is not None and batch.lengths is not None and batch.labels is not None
    assert batch.segments.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0]]
    assert batch.lengths.tolist() == [6, 5] and batch.labels.tolist() == [1, 0]
    assert batch.targets.shape == (2, 0)


def test_rows_of_gpt_with_a_delimiter_and_next_tokens() -> None:
    own = tokenizer("gpt")
    end, dash = own.boundary, own.encode("-")
    task = {"kind": "classify", "text_b": "b", "delimiter": "-", "lm_weight": 0.5}
    rows = TaskRows([Encoded((ids(10), ids(12)), 1)], own, config("gpt", **task), training=True)
    batch = rows.collate([0])
    assert batch.segments is None
    assert batch.ids.tolist() == [[end, 10, *dash, 12, end, end, end, end]]
    assert batch.targets.tolist() == [[10, *dash, 12, end, *[IGNORE] * 4]]
    judged = TaskRows([Encoded((ids(10), ids(12)), 1)], own, config("gpt", **task), training=False)
    assert judged.collate([0]).targets.shape == (1, 0)


@pytest.mark.parametrize("kind", ["classify", "choice"])
def test_rows_of_bert_with_blanks(kind: str) -> None:
    """The words belong where they were taken from; another epoch has other blanks; judged rows have none."""
    own = tokenizer("bert")
    examples = [Encoded((np.arange(10, 22), *[ids(40, 41)] * (kind == "choice")), n % 2) for n in range(8)]
    settings = config("bert", 32, kind=kind, lm_weight=0.5)
    rows, whole = (TaskRows(examples, own, settings, training) for training in (True, False))
    drawn: list[dict[int, Any]] = [{}, {}]
    for step in range(8):  # of two rows each: two epochs
        batch = rows.batch(step)
        numbers = rows.draw(step)[0].tolist()
        assert batch.positions is not None
        there = whole.collate(numbers)
        assert there.positions is None and there.targets.shape[-1] == 0
        known = batch.targets != IGNORE
        assert known.sum(-1).flatten().tolist() == [round(0.15 * (18 if kind == "choice" else 14))] * 2
        assert torch.equal(there.ids.gather(-1, batch.positions)[known], batch.targets[known])
        changed = (batch.ids != there.ids).nonzero()[:, -1].tolist()
        assert set(changed) <= set(batch.positions[known].tolist())
        assert torch.equal(rows.batch(step, slice(1, 2)).ids, batch.ids[1:])
        drawn[step // 4] |= dict(zip(numbers, batch.positions.tolist(), strict=True))
    assert drawn[0].keys() == drawn[1].keys() and drawn[0] != drawn[1]
    assert len({str(positions) for positions in drawn[0].values()}) > 1


def test_long_texts_are_cut_and_counted() -> None:
    own = tokenizer("gpt")
    rows = TaskRows(
        [Encoded((np.arange(9, 30),), 0), Encoded((ids(9),), 1)], own, config("gpt", kind="classify"), training=True
    )
    assert [len(row[0].ids) for row in rows.rows] == [16, 3]
    assert rows.rows[0][0].ids[-1] == own.boundary
    assert rows.notes() == ("1 of 2 rows are longer than the context (16) and cut",)


def test_labels_of_words_stand_at_their_tokens() -> None:
    words = ("the", "songs", "\x00", "more")
    example = Example("", words, ("a", "b", "a", "b"))
    for kind in ("bert", "gpt"):
        own, settings = tokenizer(kind), config(kind, kind="tag")
        (encoded,) = encode([example], own, settings, ("a", "b"))
        assert encoded.places is not None
        pieces = own.encode_batch([" songs" if kind == "gpt" else "songs"])[0]
        assert len(pieces) > 1, "the test needs a word of several tokens"
        first = 1 if kind == "bert" else len(own.encode("the")) - 1 + len(pieces)
        assert encoded.places[1] == first
        batch = TaskRows([encoded], own, settings, training=True).collate([0])
        assert batch.labels is not None
        known = batch.labels[0] != IGNORE
        assert known.sum() == (encoded.places >= 0).sum()
        assert batch.labels[0, 1 + first] == 1


def test_answers_stand_in_the_second_text_and_may_be_cut_off() -> None:
    own = tokenizer("bert")
    settings = config("bert", 16, kind="span", text_b="b")
    passage = "the cook sings a song and the more i read"
    found = [Example("", ("the song", passage), Answer(("sings a",), 9, 16)),
             Example("", ("the song", passage), Answer(())),
             Example("", ("the song " * 9, passage * 3), Answer(("read",), 37, 41))]  # fmt: skip
    encoded = encode(found, own, settings, ())
    rows = TaskRows(encoded, own, settings, training=True)
    batch = rows.collate([0, 1])
    assert batch.labels is not None
    begin, end = batch.labels[0].tolist()
    assert own.decode(batch.ids[0, begin : end + 1].tolist()) == "sings a"
    assert batch.labels[1].tolist() == [0, 0]
    assert (rows.samples, rows.lost) == (2, 1) and "1 rows are left out" in rows.notes()[-1]
    assert rows.kept == [0, 1]
    every = TaskRows(encoded, own, settings, training=False)
    assert every.samples == 3 and every.collate([2]).labels.tolist() == [[IGNORE, IGNORE]]  # type: ignore[union-attr]


def test_choices_are_rows_side_by_side() -> None:
    own = tokenizer("bert")
    found = [Encoded((ids(10), ids(11), ids(12, 13)), 1), Encoded((ids(10), ids(11), ids(12), ids(14)), 2)]
    batch = TaskRows(found, own, config("bert", kind="choice"), training=True).collate([0, 1])
    assert batch.ids.shape == (2, 3, 8) and batch.lengths is not None
    assert batch.lengths.tolist() == [[5, 6, 0], [5, 5, 5]]
    halves = batch.split(2)
    assert torch.equal(halves[1].ids, batch.ids[1:]) and halves[0].labels.tolist() == [1]  # type: ignore[union-attr]


def test_batches_are_functions_of_the_step_and_shared_by_rows() -> None:
    own = tokenizer("gpt")
    found = [Encoded((ids(*range(9, 10 + n)),), n % 2) for n in range(7)]
    settings = config("gpt", kind="classify")
    rows, again = (TaskRows(found, own, settings, training=True) for _ in range(2))
    seen = [rows.draw(step)[0].tolist() for step in range(7)]
    assert sorted(number for step in seen for number in step) == sorted([*range(7)] * 2)
    whole, half = rows.batch(3), again.batch(3, slice(1, 2))
    assert half.ids[0, : int(half.lengths[0])].tolist() == whole.ids[1, : int(whole.lengths[1])].tolist()  # type: ignore[index]
    read = [number for numbers, _ in rows.every(3) for number in numbers]
    assert sorted(read) == list(range(7))


def test_widths_suit_sequence_parallelism() -> None:
    own = tokenizer("gpt")
    settings = config("gpt", 48, {"tp": 3, "sequence_parallel": True}, kind="classify")
    assert TaskRows([Encoded((ids(9),), 0)], own, settings, training=True).collate([0]).ids.shape == (1, 24)


def test_labels_are_sorted_and_numbers_by_size() -> None:
    assert label_names([Example("", ("a",), label) for label in ("10", "9", "10")], "classify") == ("9", "10")
    assert label_names([Example("", ("a",), label) for label in ("no", "Yes", "10")], "classify") == ("10", "Yes", "no")


def table(path: Path, *rows: str) -> str:
    path.write_text("label\ttext\n" + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(path)


def test_what_is_said_of_the_rows(tmp_path: Path) -> None:
    data = DataConfig(
        train=(table(tmp_path / "train.tsv", "a\tthe cook", "b\tthe song", "a\tthe more", "b\t "),),
        valid=(table(tmp_path / "valid.tsv", "a\t "),), tokenizer=TokenizerConfig(vocab_size=300),
    )  # fmt: skip
    said: list[str] = []
    prepared = prepare_task(RunConfig(data=data, task=TaskConfig(kind="classify")), said.append)
    assert prepared.labels == ("a", "b") and len(prepared.parts["train"]) == 3
    assert "train: rows without text: 1" in said
    assert "train: 3 rows; a 2 (66.7%), b 1 (33.3%)" in said
    assert "valid: 1 rows have no text, and are judged all the same" in said
    assert len(prepared.parts["valid"][0].parts[0]) <= 1


def test_labels_never_seen_are_refused_all_at_once(tmp_path: Path) -> None:
    valid = tmp_path / "valid.tsv"
    data = DataConfig(
        train=(table(tmp_path / "train.tsv", "a\tthe cook", "b\tthe song"),),
        valid=(table(valid, "a\tx", "c\tx", "d\tx", "c\tx"),), tokenizer=TokenizerConfig(vocab_size=300),
    )  # fmt: skip
    with pytest.raises(DataError) as raised:
        prepare_task(RunConfig(data=data, task=TaskConfig(kind="classify")))
    first, second = raised.value.problems
    assert (first.where, first.got, first.allowed) == (f"{valid}:3", "c", "a, b")
    assert (second.where, second.got) == (f"{valid}:4", "d")
    assert "train with rows that have it" in first.attempt


def test_a_tokenizer_without_marks_is_no_berts(tmp_path: Path) -> None:
    own = tokenizer("gpt")
    own.save(tmp_path / "tokenizer.json")
    data = DataConfig(
        train=(table(tmp_path / "train.tsv", "a\tthe cook", "b\tthe song"),),
        tokenizer=TokenizerConfig(path=str(tmp_path / "tokenizer.json")),
    )  # fmt: skip
    with pytest.raises(DataError, match="which BERT needs"):
        prepare_task(RunConfig(model=BertConfig(), data=data, task=TaskConfig(kind="classify")))
