"""Rows of tables and the examples in them: every form that is read, and what is said of the others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gradatim.config.settings import DataConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.errors import DataError
from gradatim.text.examples import Answer, Example, examples
from gradatim.text.opinions import corpus
from gradatim.text.sources import Tally
from gradatim.text.table import names_of, table_rows


def read(path: Path, task: TaskConfig, columns: tuple[str, ...] = ()) -> list[Example]:
    data = DataConfig(train=(str(path),), columns=columns)
    return list(examples(table_rows(data.train, "train", data, Tally()), task))


def refused(path: Path, task: TaskConfig, columns: tuple[str, ...] = ()) -> str:
    with pytest.raises(DataError) as raised:
        read(path, task, columns)
    return str(raised.value)


CLASSES = TaskConfig(kind="classify")


@pytest.mark.parametrize(("name", "text", "columns"), [
    ("a.tsv", "label\ttext\n1\tfine, \"so to say\"\n0\tbad\n", ()),
    ("b.tsv", "1\tfine, \"so to say\"\n\n0\tbad\n", ("label", "text")),
    ("c.tsv", "label\ttext\n1\tfine, \"so to say\"\n0\tbad\n", ("label", "text")),
    ("d.csv", "text,label\n\"fine, \"\"so to say\"\"\",1\r\nbad,0\r\n", ()),
    ("e.jsonl", '{"text": "fine, \\"so to say\\"", "label": 1, "more": []}\n\n{"label": "0", "text": "bad"}\n', ()),
])  # fmt: skip
def test_every_form_of_table_holds_the_same(name: str, text: str, columns: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    found = read(path, CLASSES, columns)
    assert [(e.texts, e.label) for e in found] == [(('fine, "so to say"',), "1"), (("bad",), "0")]
    assert all(e.where.startswith(f"{path}:") for e in found)


def test_packed_and_parquet_tables(tmp_path: Path) -> None:
    rows = [{"text": "fine", "label": True}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(rows[0]))
    assert read(tmp_path / "a.jsonl.gz", CLASSES)[0].label == "true"
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is optional: pip install 'gradatim[hf]'")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional: pip install 'gradatim[hf]'")
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet", CLASSES)
    assert (found.where, found.texts) == (f"{tmp_path / 'a.parquet'} row 1", ("fine",))


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.tsv", "1\tfine\n0\tbad\n", ["a.tsv:2: there is no column 'text'", "--data.columns NAME,NAME"]),
    ("a.tsv", "label\ttext\n1\tfine\tmore\n", ["a.tsv:2: this row has not one cell for each column", "3 cells"]),
    ("a.csv", 'label,text\n1,"fine\n', ["a.csv:2: this is not CSV"]),
    ("a.jsonl", '{"text": "x", "label": 1}\n["x"]\n', ["a.jsonl:2: a row of a table is an object"]),
    ("a.jsonl", '{"text": "x", "label": null}\n', ["a.jsonl:1: this row has no label"]),
    ("a.jsonl", '{"text": 5, "label": 1}\n', ["a.jsonl:1: column 'text' holds no text"]),
    ("a.xml", "<a/>", ["no table is known by this ending"]),
])  # fmt: skip
def test_what_cannot_be_read_is_named_by_file_and_line(name: str, text: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    message = refused(tmp_path / name, CLASSES)
    assert all(words in message for words in said), message


def test_a_missing_table(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "none.tsv", CLASSES)


def one(tmp_path: Path, task: TaskConfig, **row: Any) -> Example:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (found,) = read(path, task)
    return found


def test_what_each_task_reads(tmp_path: Path) -> None:
    assert one(tmp_path, TaskConfig(kind="regress"), text="a", label="2.5").label == 2.5
    tags = TaskConfig(kind="tag")
    found = one(tmp_path, tags, text="a cook sings", label=["O", "B-x", "O"])
    assert (found.texts, found.label) == (("a", "cook", "sings"), ("O", "B-x", "O"))
    span = TaskConfig(kind="span", text_b="b")
    assert one(tmp_path, span, text="who", b="a cook, a cook", label="cook").label == Answer(("cook",), 2, 6)
    given = {"text": ["cook", "a cook"], "answer_start": [10, 8]}
    assert one(tmp_path, span, text="who", b="a cook, a cook", label=given).label == Answer(("cook", "a cook"), 10, 14)
    for nothing in ("", None, {"text": [], "answer_start": []}):
        assert one(tmp_path, span, text="who", b="a cook", label=nothing).label == Answer(())
    choice = TaskConfig(kind="choice")
    found = one(tmp_path, choice, text="he", choices=["sings", "reads"], label="reads")
    assert (found.texts, found.label) == (("he", "sings", "reads"), 1)
    several = TaskConfig(kind="choice", choices=("c0", "c1"))
    assert one(tmp_path, several, text="he", c0="sings", c1="reads", label="1").label == 1


@pytest.mark.parametrize(("task", "row", "said"), [
    ({"kind": "regress"}, {"text": "a", "label": "nan"}, "a regression learns numbers"),
    ({"kind": "regress"}, {"text": "a", "label": True}, "a regression learns numbers"),
    ({"kind": "tag"}, {"text": "a b", "label": "O"}, "every word needs its label"),
    ({"kind": "tag"}, {"text": {"a": 1}, "label": "O"}, "holds no list of words"),
    ({"kind": "span", "text_b": "b"}, {"text": "q", "b": "a cook", "label": "nobody"}, "does not hold this answer"),
    ({"kind": "span", "text_b": "b"}, {"text": "q", "b": "a cook", "label": 5}, "this is no answer"),
    ({"kind": "span", "text_b": "b"}, {"text": "q", "b": "a cook", "label": {"text": ["a"], "answer_start": [3]}},
     "does not hold this answer there"),
    ({"kind": "choice"}, {"text": "a", "choices": ["x"], "label": 0}, "holds no list of choices"),
    ({"kind": "choice"}, {"text": "a", "choices": ["x", "y"], "label": 2}, "none of the choices"),
])  # fmt: skip
def test_what_a_task_cannot_read(task: dict[str, Any], row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    message = refused(path, TaskConfig(**task))
    assert said in message and f"{path}:1" in message


def test_a_label_that_could_be_two_choices_and_one_that_is_no_number_are_refused(tmp_path: Path) -> None:
    choice = TaskConfig(kind="choice", text="q", choices=("options",))
    row = {"q": "?", "options": ["1", "2", "3"], "label": 1}
    (found,) = examples(iter([("f:1", row)]), choice)
    assert found.label == 1, "a number is no text"
    (found,) = examples(iter([("f:1", row | {"label": "3"})]), choice)
    assert found.label == 2
    with pytest.raises(DataError, match="text of one choice and the number of another"):
        list(examples(iter([("f:1", row | {"label": "1"})]), choice))
    with pytest.raises(DataError, match="no label"):
        list(examples(iter([("f:1", {"text": "a", "label": float("nan")})]), TaskConfig(kind="classify")))


def test_the_small_table_is_fair() -> None:
    """No text in two parts, both labels in each, and words alone do not decide."""
    parts = corpus()
    texts = [row["text"] for rows in parts.values() for row in rows]
    assert len(texts) == len(set(texts)) == 1800
    for rows in parts.values():
        assert 0.4 < sum(row["label"] == "good" for row in rows) / len(rows) < 0.6
    assert parts == corpus()
    assert names_of(DataConfig(train=("small-opinions",)), "test") == ("small-opinions",)
    assert names_of(DataConfig(train=("small-opinions",), valid=("v.tsv",)), "test") == ()
