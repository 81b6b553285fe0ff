"""What a fresh reader of BERT's and GPT's story stumbled over, each as a user meets it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_input import Run

TUNE = ["--steps", "2", "--global_batch", "4", "--context", "32", "--model.d_model", "16", "--model.n_layers", "1",
        "--model.n_heads", "2", "--optimizer.warmup", "0"]  # fmt: skip
BERT = [*TUNE, "--data.tokenizer.vocab_size", "300"]


def write(name: str, *lines: str) -> str:
    Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return name


def documents() -> str:
    return write("text.txt", *(f"the cook has {word} soup. it was {word}. the guests ate it.\n" for word in
                               ("good", "bad", "cold", "warm", "old", "new")))  # fmt: skip


def problems(answer: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = answer["error"]["problems"]
    return found


def test_a_packaged_recipe_goes_on_from_a_model_of_another_shape(run: Run) -> None:
    text = ["--data.train", documents(), "--data.document", "blank-line", "--data.cache", "cache"]
    assert run("train", "bert", *BERT, *text, "--run", "first")[0] == 0
    code, _, told = run("train", "bert", "--init_from", "first", *text, "--steps", 2, "--global_batch", 4,
                        "--context", 32, "--run", "second")  # fmt: skip
    assert code == 0 and "first replaces the recipe's model.d_model" in told
    assert "starting from the weights of first" in told
    assert "path: first/tokenizer.json" in Path("second/config.yaml").read_text()
    code, answer, _ = run("train", "gpt-classify", "--init_from", "first")
    (problem,) = problems(answer)
    assert code == 2 and (problem["allowed"], problem["try"]) == ("bert", "the recipe bert-classify")
    code, answer, _ = run("train", "bert-classify", "--init_from", "fisrt")
    (problem,) = problems(answer)
    assert code == 4 and problem["try"] == "--init_from first"
    code, found, _ = run("check", "bert-classify", "--init_from", "fisrt")
    assert code == 0 and any("neither a run" in note for note in found["notes"])
    code, answer, _ = run("import", "first", "imported")
    (problem,) = problems(answer)
    assert code == 2 and problem["what"] == "this is a run already"
    # One document has no other one whose sentences could be a false B.
    code, answer, _ = run("evaluate", "first", "--text", write("one.txt", "the soup. it was good. they ate."))
    (problem,) = problems(answer)
    assert code == 3 and problem["where"] == "--text" and "blank line" in problem["allowed"]
    strange = write("strange.txt", "§ § § § §", "", "§ § § §")
    code, found, told = run("evaluate", "first", "--text", strange)
    assert code == 0 and found["unknown"] == 9 and "9 of 9 words are unknown" in told


def test_weights_without_their_directory_and_directories_that_are_no_run(run: Run) -> None:
    write("model.safetensors", "x")
    code, answer, _ = run("import", "model.safetensors", "r")
    (problem,) = problems(answer)
    assert code == 3 and problem["try"] == "gradatim import . r"
    Path("theirs").mkdir()
    write("theirs/config.json", "{}")
    code, answer, _ = run("evaluate", "theirs")
    (problem,) = problems(answer)
    assert code == 4 and problem["try"] == "gradatim import theirs RUN makes one of it"


def test_settings_by_the_names_that_others_give_them(run: Run) -> None:
    code, answer, _ = run("check", "gpt", "--optimizer.learning_rate", "1e-3", "--batch_size", 4, "--n_embd", 32)
    assert code == 2
    assert {problem["try"] for problem in answer["problems"]} == {"--optimizer.lr", "--global_batch", "--model.d_model"}


def test_rows_to_answer_have_a_line_of_names_or_none(run: Run) -> None:
    table = write("train.tsv", *(f"{label}\tthe soup was {label}\tso they say" for label in ("good", "bad") * 4))
    fields = ["--data.columns", "label,text,source", "--data.tokenizer.vocab_size", "300"]
    code, _, told = run("train", "bert-classify", *TUNE, "--data.train", table, *fields, "--run", "r")
    assert code == 0 and "columns that are not read: source; a second text is named by task.text_b" in told
    wanted = ["the soup was good", "the fish"]
    swapped = [f"b\t{text}\tbad" for text in wanted]
    for name, lines in {
        "swapped.tsv": ["source\ttext\tlabel", *swapped],
        "without.tsv": ["text\tsource", *(f"{text}\tb" for text in wanted)],
        "bare.tsv": [f"{text}\tb" for text in wanted],
        "whole.tsv": [f"bad\t{text}\tb" for text in wanted],
    }.items():
        code, answers, _ = run("predict", "r", write(name, *lines))
        assert code == 0 and [answer["text"] for answer in answers] == wanted, name
    Path("noise.txt").write_bytes(bytes(range(256)) * 8)
    code, answer, _ = run("predict", "r", "noise.txt")
    assert code == 3 and "NUL and invalid characters" in problems(answer)[0]["got"]
    code, answer, _ = run("predict", "r", write("narrow.tsv", "the soup"))
    (problem,) = problems(answer)
    assert code == 3 and "label, text, source" in problem["allowed"]


def test_all_texts_that_are_missing_before_any_is_read(run: Run) -> None:
    text = documents()
    code, answer, told = run("train", "gpt", "--data.train", f"{text},lost.txt", "--data.valid", "gone.txt")
    assert code == 3 and "vocabulary" not in told
    assert [(p["where"], p["got"]) for p in problems(answer)] == [
        ("data.train", "lost.txt"),
        ("data.valid", "gone.txt"),
    ]


def test_a_source_whose_neighbours_nobody_may_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def forbidden(folder: Path) -> Iterator[Path]:
        if folder == Path():
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    code, answer, _ = run("train", "bert-classify", "--init_from", "none")
    (problem,) = problems(answer)
    assert code == 4 and problem["what"] == "there is neither a run nor a Hugging Face directory"
