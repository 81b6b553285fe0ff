"""Fine-tuning from the command line: train, evaluate, predict, seeds, report; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_input import Run

SMALL = ["--steps", "4", "--global_batch", "8", "--context", "32", "--model.d_model", "16", "--model.n_layers", "1",
         "--model.n_heads", "2", "--optimizer.warmup", "0", "--data.tokenizer.vocab_size", "300"]  # fmt: skip


def rows(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_classes_from_training_to_answers(run: Run, tmp_path: Path) -> None:
    code, trained, told = run("train", "bert-classify", "--run", "r", *SMALL)
    assert code == 0 and trained["step"] == 4 and trained["valid_loss"] > 0
    assert "train: 1,200 rows; " in told and "nats per row" in told
    code, found, told = run("evaluate", "r")
    assert code == 0 and "on 400 rows of the run's test part" in told
    assert {"accuracy", "f1", "matthews"} <= found.keys() and found["f1_of"] == "good"
    assert sum(label["support"] for label in found["by_label"]) == found["rows"] == 400
    text = tmp_path / "new.txt"
    text.write_text("the soup was good.\nthe fish seemed stale.\n", encoding="utf-8")
    code, answers, _ = run("predict", "r", text)
    assert code == 0 and [answer["text"] for answer in answers] == text.read_text().splitlines()
    assert answers[0]["probabilities"].keys() == {"bad", "good"}
    assert answers[0]["probability"] == max(answers[0]["probabilities"].values())
    table = rows(tmp_path / "new.jsonl", {"text": "the soup was good."})
    assert run("predict", "r", table)[1] == answers[:1], "tables need no labels"
    valid = rows(tmp_path / "v.jsonl", {"text": "x", "label": "good"}, {"text": "x", "label": "great"})
    code, answer, _ = run("evaluate", "r", "--text", valid)
    (problem,) = answer["error"]["problems"]
    assert code == 3 and problem["where"] == f"{valid}:2"
    assert (problem["got"], problem["allowed"]) == ("great", "bad, good")
    assert run("complete", "r", "the")[0] == 2 and run("evaluate", "r", "--stride", "4")[0] == 2
    assert run("report", "r", "--out", "r.html")[0] == 0
    assert "classify" in Path("r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "line", "more", "figures", "plain"), [
    ("regress", {"text": "the soup", "text_b": "the fish", "label": 2.5}, ["--task.text_b", "text_b"],
     {"pearson", "spearman", "mean_squared_error"}, "the soup\tthe fish"),
    ("tag", {"text": ["the", "soup"], "label": ["O", "B-x"]}, [], {"accuracy", "f1", "matthews", "words"}, "the soup"),
    ("span", {"text": "what", "passage": "the soup was good", "label": "the soup"}, ["--task.text_b", "passage"],
     {"exact_match", "f1"}, "what\tthe soup was good"),
    ("choice", {"text": "the soup", "choices": ["was good", "the of"], "label": 0}, [], {"accuracy"},
     "the soup\twas good\tthe of"),
])  # fmt: skip
def test_every_task_from_training_to_answers(
    kind: str, line: dict[str, Any], more: list[str], figures: set[str], plain: str, run: Run, tmp_path: Path
) -> None:
    table = rows(tmp_path / "t.jsonl", *[line] * 6)
    code, _, told = run(
        "train", "gpt-classify", "--run", "r", *SMALL, "--task.kind", kind, "--data.train", table, *more
    )
    assert code == 0, told
    code, found, _ = run("evaluate", "r", "--text", table)
    assert code == 0 and figures <= found.keys() and found["rows"] == 6
    (tmp_path / "new.txt").write_text(plain + "\n", encoding="utf-8")
    code, (answer,), _ = run("predict", "r", "new.txt")
    assert code == 0
    if kind == "regress":
        assert isinstance(answer["value"], float) and answer["text_b"] == "the fish"
    elif kind == "tag":
        assert answer["words"] == ["the", "soup"] and set(answer["labels"]) <= {"O", "B-x"}
    elif kind == "span":
        assert answer["answer"] == answer["text_b"][answer["begin"] : answer["end"]].strip() != ""
    else:
        assert answer["choices"][answer["choice"]] == answer["answer"]
        assert sum(answer["probabilities"]) == pytest.approx(1)
    (tmp_path / "new.txt").write_text("one\ttwo\tthree\tfour\n" if kind != "choice" else "one\n", encoding="utf-8")
    if kind != "tag":
        code, refusal, _ = run("predict", "r", "new.txt")
        assert code == 3 and refusal["error"]["problems"][0]["where"] == "new.txt:1"


def test_several_seeds(run: Run) -> None:
    arguments = ["train", "bert-classify", "--run", "r", "--seeds", "3,4", *SMALL]
    code, found, _ = run(*arguments)
    assert code == 0 and found["seeds"] == [3, 4]
    assert [Path(each["run"]).name for each in found["runs"]] == ["seed-3", "seed-4"]
    losses = [each["evaluation"]["loss"] for each in found["runs"]]
    assert losses[0] != losses[1]
    assert found["mean"]["loss"] == pytest.approx(sum(losses) / 2)
    assert found["deviation"]["loss"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert {"accuracy", "f1", "matthews", "valid_loss"} <= found["mean"].keys()
    assert run(*arguments)[0] == 2, "runs are never overwritten"
    code, again, _ = run(*arguments, "--resume")
    assert code == 0 and again["mean"] == found["mean"]


@pytest.mark.parametrize(("arguments", "said"), [
    (["train", "bert-classify", "--seeds", "1,1"], "these are no seeds"),
    (["train", "bert-classify", "--seeds", "a"], "these are no seeds"),
    (["train", "bert-classify", "--seeds", "1", "--seed", "2"], "the seed is given twice"),
    (["prepare", "bert-classify", "--out", "o"], "not prepared"),
    (["rehearse", "bert-classify", "--rank", "0", "--world", "1"], "differ in length"),
])  # fmt: skip
def test_what_is_refused(arguments: list[str], said: str, run: Run) -> None:
    code, answer, _ = run(*arguments)
    assert code == 2 and said in answer["error"]["problems"][0]["what"]


def test_a_run_without_a_task_predicts_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the more i read the more i learn\n" * 30, encoding="utf-8")
    small = [each for each in SMALL if each not in ("--context", "32")]
    assert run("train", "gpt", "--run", "r", *small, "--data.train", "t.txt", "--context", "8")[0] == 0
    code, answer, _ = run("predict", "r", "t.txt")
    assert code == 2 and "not tuned for a task" in answer["error"]["problems"][0]["what"]
