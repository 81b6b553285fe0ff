"""What an audit of the command line found wrong once: ends of readers and processes, resumes, lists, hints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import GPT, LINES, NEURAL, Answer, Refused

from gradatim.cli.main import main
from gradatim.streams import Lasting

GRADATIM = [sys.executable, "-m", "gradatim"]
BERT = [
    "--model.d_model", "8", "--model.n_heads", "2", "--model.n_layers", "1", "--context", "16", "--steps", "1",
    "--global_batch", "4", "--data.document", "line", "--data.tokenizer.vocab_size", "60",
]  # fmt: skip
WITHOUT_STEPS = [*GPT[: GPT.index("--steps")], *GPT[GPT.index("--steps") + 2 :]]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("rank", [None, "1"])
def test_a_signal_where_nothing_is_to_save(number: signal.Signals, code: int, rank: str | None, here: Path) -> None:
    """It is told to programs, by one rank for all; a rank leaves SIGTERM to the system, as it may wait in C++."""
    began = "import sys, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's & ignores it
    script = f"{began}; from gradatim.cli.main import main; sys.exit(main())"
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "SLURM_PROCID")}
    environment |= {} if rank is None else {"RANK": rank}
    with subprocess.Popen(
        [sys.executable, "-c", script, "ngrams", "-", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stdin is not None
            process.stdin.write(b"a b\n" * 1_000_000)  # more than a pipe holds: when it is read, handlers are there
            process.stdin.flush()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    if rank is None:
        assert process.returncode == code
        assert json.loads(out)["error"]["exit_code"] == code
        assert json.loads(out)["error"]["problems"][0]["got"] == number.name
    else:
        assert (out, err) == (b"", b"")
        assert process.returncode == (-number if number == signal.SIGTERM else code)


def test_a_stream_without_a_reader_is_dropped() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as pipe:
        lasting = Lasting(pipe)
        assert lasting.write("one\n") == lasting.write("two\n") == 4
        lasting.flush()
        assert not lasting.isatty()


def test_without_a_standard_error(here: Path) -> None:
    script = f"exec {sys.executable} -m gradatim check gpt --steps 20 --json 2>&-"
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]


@pytest.mark.parametrize("layout", [[], ["--layout.dp", "2"]])
def test_training_goes_on_when_nobody_reads_its_progress(layout: list[str], here: Path) -> None:
    Path("text.txt").write_text("\n".join(LINES * 20), encoding="utf-8")
    data = ["--data.train", "text.txt", "--run", "run"]
    command = [*GRADATIM, "train", "gpt", *WITHOUT_STEPS, "--steps", "30", *data, *layout]
    with (
        Path("answer").open("wb") as answer,
        subprocess.Popen(command, stdout=answer, stderr=subprocess.PIPE) as process,
    ):
        try:
            assert process.stderr is not None
            process.stderr.readline()
            process.stderr.close()
            assert process.wait(120) == 0
        finally:
            process.kill()
    assert "steps" in Path("answer").read_text("utf-8") and Path("run/checkpoints/step-00000030").is_dir()


def test_a_run_keeps_its_warm_up_and_no_fewer_steps(kept: Path, here: Path, refused: Refused, answer: Answer) -> None:
    common = [*WITHOUT_STEPS, "--data.train", str(kept / "text.txt"), "--data.cache", "cache", "--run", "run"]
    answer("train", "gpt", *common, "--steps", "12", "--optimizer.warmup", "8")
    for step in Path("run/checkpoints").iterdir():  # as if it was stopped early
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    before = Path("run/config.yaml").read_text("utf-8")
    (problem,) = refused("train", "gpt", *common, "--steps", "5", "--resume", code=2)
    assert (problem["where"], problem["got"], problem["allowed"]) == ("--steps", "5", "at least 8")
    assert Path("run/config.yaml").read_text("utf-8") == before
    _, said = answer("train", "gpt", *common, "--steps", "9", "--resume")
    assert "shortens" not in said


def test_a_path_below_a_file(kept: Path, refused: Refused) -> None:
    Path("file").write_text("", encoding="utf-8")
    for command in (
        ["report", str(kept / "gpt"), "--out", "file/x.html"],
        ["schedule", "1f1b", "--stages", "2", "--microbatches", "2", "--svg", "file/x.svg"],
        ["plan", "gpt2-124m", "cpu", "--global-batch", "8", "--html", "file/x.html"],
    ):
        (problem,) = refused(*command, code=5)
        assert problem["where"].startswith("file/x.")


def test_wrong_options_and_a_wrong_recipe_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["gpt", "--stps", "5", "--model.n_heads", "7", "--seed", "1", "--seed", "2", "--context"]
    assert main(["check", *wrong, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    found = [problem["got"] or problem["where"] for problem in document["problems"]]
    assert document["ok"] is False and len(found) == 5
    assert {"--stps", "1 and 2", "--context"} <= set(found)
    assert main(["train", *wrong, "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert sorted(problem["what"] for problem in problems) == sorted(p["what"] for p in document["problems"])


def test_lists_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    lists = ["--optimizer.betas", "[0.9, 0.99]", "--data.train", "['a,b.txt', c.txt]"]
    assert main(["check", "gpt", *lists]) == 0
    out = capsys.readouterr().out
    assert "betas: [0.9, 0.99]" in out
    assert "train: ['a,b.txt', c.txt]" in out
    assert main(["check", "gpt", "--optimizer.betas", "[0.9, {a: 1}]"]) == 2


def test_held_out_files_are_judged_without_the_training_text(
    kept: Path, here: Path, answer: Answer, refused: Refused
) -> None:
    Path("train.txt").write_text("\n".join(LINES * 20), encoding="utf-8")
    Path("valid.txt").write_text("\n".join(LINES), encoding="utf-8")
    texts = ["--data.train", "train.txt", "--data.valid", "valid.txt", "--data.cache", "cache"]
    answer("train", "gpt", *GPT, *texts, "--run", "run")
    before, _ = answer("evaluate", "run")
    Path("train.txt").unlink()
    after, said = answer("evaluate", "run")
    assert before == after and "on the run's validation text" in said
    Path("valid.txt").unlink()
    (problem,) = refused("evaluate", "run", code=3)
    assert (problem["where"], problem["got"]) == ("data.valid", "valid.txt") and str(here) in problem["try"]


def test_blanks_of_held_out_files_are_judged_without_the_training_text(
    kept: Path, here: Path, answer: Answer, refused: Refused
) -> None:
    Path("train.txt").write_text("\n".join(LINES * 20), encoding="utf-8")
    Path("valid.txt").write_text("\n".join(LINES), encoding="utf-8")
    texts = ["--data.train", "train.txt", "--data.valid", "valid.txt", "--data.cache", "cache"]
    answer("train", "bert", *BERT, *texts, "--run", "run")
    before, _ = answer("evaluate", "run")
    Path("train.txt").unlink()
    assert answer("evaluate", "run")[0] == before
    Path("valid.txt").write_text(" \n", encoding="utf-8")
    (problem,) = refused("evaluate", "run", code=3)
    assert problem["where"] == "valid.txt" and "no text" in problem["what"]


def test_what_the_model_does_not_know_is_said(kept: Path, answer: Answer, refused: Refused) -> None:
    for verb in ("next", "complete"):
        _, said = answer(verb, kept / "gpt", "§")
        assert "tokens of the prompt that this model does not know: 1" in said
    (problem,) = refused("complete", kept / "gpt", "the", "--stop", "", code=2)
    assert problem["where"] == "--stop"


def test_hints_that_help(here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = ["--tp", "1", "--pp", "1", "--dp", "8", "--global-batch", "24"]
    (problem,) = refused("plan", "gpt3-175b", "selene-2021", *fixed, code=2)
    assert problem["try"].startswith("fix neither tp, pp nor dp, and --gpus ")
    Path("empty.yaml").write_text("", encoding="utf-8")
    (problem,) = refused("plan", "gpt2-124m", "empty.yaml", "--gpus", "8", "--global-batch", "8", code=2)
    assert problem["what"] == "a cluster file is a mapping of fields" and "calibrate" in problem["try"]
    Path("text.txt").write_text("a b", encoding="utf-8")
    monkeypatch.setattr(os, "access", lambda path, *_: Path(path).name not in ("text.txt", here.name))
    (problem,) = refused("calibrate", "--out", "here.yaml", code=5)
    assert "may not be written" in problem["what"]
    (problem,) = refused("train", "gpt", *NEURAL, "--data.train", "text.txt", "--run", "run", code=3)
    assert problem["where"] == "text.txt" and "may not be read" in problem["what"]


def test_the_precision_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt", "--precision", "fp16", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"][0]["try"] == "--precision bf16"


def test_figures_of_a_language_model_are_null_for_others(kept: Path, here: Path, answer: Answer) -> None:
    text = ["--data.train", str(kept / "text.txt"), "--data.cache", "cache"]
    answer("train", "bert", *BERT, *text, "--run", "bert")
    found, _ = answer("evaluate", "bert", "--text", kept / "text.txt")
    plain, _ = answer("evaluate", kept / "gpt", "--text", kept / "text.txt")
    assert plain.keys() - {"impossible"} <= found.keys()
    assert found["bits_per_byte"] is found["tokens"] is None and found["unknown"] == 0
    assert found["perplexity"] > 1 and found["blanks"] > 0
