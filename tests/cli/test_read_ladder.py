"""What a fresh reader of the ladder's story stumbled over, each as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bad_input import GPT as LINE_GPT
from bad_input import NEURAL as LINE_NEURAL
from bad_input import Run

from gradatim.config import load_config
from gradatim.errors import Terminated
from gradatim.text.sources import EMPTY, HINTS

LINES = ["the more i read", "the more i learn", "and i like it more than anything else", ""] * 20


def problems(answer: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = answer["error"]["problems"]
    return found


@pytest.fixture
def text(run: Run) -> list[str]:
    """Options that name a text of lines, some of them empty, and where prepared text goes."""
    Path("text.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    Path("held.txt").write_text("\n".join(LINES[:16]) + "\n", encoding="utf-8")
    return ["--data.train", "text.txt", "--data.valid", "held.txt", "--data.cache", "cache"]


NEURAL, GPT = LINE_NEURAL[2:], LINE_GPT[2:]
"""Without ``--data.document line``, which is for each test to say."""
NGRAM = ["--data.tokenizer.kind", "char", "--model.order", "3", "--model.discount_fallback", "true"]


def test_rungs_of_ones_own_text_answer_for_the_same_bytes(run: Run, text: list[str]) -> None:
    assert len({load_config(name).data.document for name in ("bigram", "ngram", "window", "rnn", "lstm", "gpt")}) == 1
    assert run("train", "ngram", "--run", "counted", *NGRAM, *text)[0] == 0
    assert run("train", "lstm", "--run", "learned", *NEURAL, *text)[0] == 0
    assert run("train", "ngram", "--run", "lines", *NGRAM, *text, "--data.document", "line")[0] == 0
    code, found, told = run("evaluate", "counted", "learned", "--text", "text.txt")
    assert code == 0 and found["same_bytes"] and "compare" not in told
    assert [facts["run"] for facts in found["runs"]] == ["counted", "learned"]
    alone = run("evaluate", "learned", "--text", "text.txt")[1]
    assert found["runs"][1] == {"run": "learned", "model": "lstm", **alone}
    code, found, told = run("evaluate", "lines", "learned", "--compare")
    assert code == 0 and not found["same_bytes"] and "lines line, learned file" in told
    assert f"{EMPTY}: 4{HINTS[EMPTY]}" in told
    code, answer, _ = run("evaluate", "learned", "--compare")
    assert code == 2 and problems(answer)[0]["try"] == "leave out --compare"


def test_what_a_document_is_goes_with_an_export(run: Run, text: list[str]) -> None:
    for kind, options, document in (("ngram", NGRAM, "file"), ("gpt", [*GPT, "--model.positions", "learned"], "line")):
        assert run("train", kind, "--run", kind, *options, *text, "--data.document", document)[0] == 0
        assert run("export", kind, f"{kind}-out")[0] == 0
        assert run("import", f"{kind}-out", f"{kind}-back")[0] == 0
        judged, again = (run("evaluate", where, "--text", "text.txt")[1] for where in (kind, f"{kind}-back"))
        assert again["bytes"] == judged["bytes"] and again["perplexity"] == pytest.approx(
            judged["perplexity"], rel=1e-5
        )
    code, _, told = run("import", "ngram-out/model.arpa", "alone", "--document", "line")
    assert code == 0 and "its words are tokens of ngram-out/tokenizer.json" in told
    assert "document: line" in Path("alone/config.yaml").read_text()


def test_a_model_of_neither_shape_says_how_to_train_one(run: Run, text: list[str]) -> None:
    assert run("train", "gpt", "--run", "gpt", *GPT, *text, "--model.positions", "rotary")[0] == 0
    code, answer, _ = run("export", "gpt", "out")
    assert code == 2 and problems(answer)[0]["try"] == "train one with --model.positions learned"


def test_other_settings_on_resume_lead_to_those_of_the_run(run: Run, text: list[str]) -> None:
    assert run("train", "lstm", "--run", "r", *NEURAL, *text)[0] == 0
    code, answer, _ = run("train", "lstm", "--run", "r", "--resume", *NEURAL, *text, "--seed", "7")
    assert code == 4
    assert problems(answer)[0]["try"].endswith("gradatim train r/config.yaml --run r --resume")
    assert run("train", "r/config.yaml", "--run", "r", "--resume")[0] == 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_stopped_before_its_first_step_a_run_may_be_started_again(
    run: Run, text: list[str], stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same command, as the message says."""
    command = ["train", "lstm", "--run", "r", *NEURAL, *text]

    def stopped(*_: object) -> None:
        assert Path("r/config.yaml").is_file()
        raise stop

    with monkeypatch.context() as patched:
        patched.setattr("gradatim.train.engine.SerialEngine.step", stopped)
        code, answer, _ = run(*command)
    assert code in (130, 143) and problems(answer)[0]["try"] == "the same command again"
    assert run(*command)[0] == 0
    assert run(*command)[0] == 2, "and once it has made steps it is there to stay"


def test_sequences_that_occur_most(run: Run, text: list[str]) -> None:
    rows = run("ngrams", "text.txt", "--top", 3)[1]["rows"]
    every = run("ngrams", "text.txt")[1]["rows"]
    assert [row["count"] for row in rows] == sorted((row["count"] for row in every), reverse=True)[:3]
    Path("noise").write_bytes(bytes(range(256)) * 40)
    code, answer, _ = run("ngrams", "noise")
    assert code == 3 and "NUL and invalid characters" in problems(answer)[0]["got"]
    Path("wide").write_bytes("the more i read".encode("utf-16"))
    code, answer, _ = run("ngrams", "wide")
    assert code == 3 and problems(answer)[0]["got"] == "UTF-16 by its first bytes"


@pytest.mark.parametrize(
    ("arguments", "where", "got", "allowed"),
    [
        (["ngrams", "text.txt", "--order", "0"], "--order", "0", "1 or more"),
        (["ngrams", "text.txt", "--order", "two"], "--order", "two", "1 or more"),
        (["export", "r", "out", "--format", "xml"], "--format", "xml", "hf, peft, arpa"),
        (["evaluate", "r", "--length-penalty", "long"], "--length-penalty", "long", "a number"),
        (["serve", "r", "--port", "70000"], "--port", "70000", "0 to 65535"),
        (["export", "r", "out", "--shard-size", "0"], "--shard-size", "0.0", "more than 0"),
    ],
)
def test_values_that_an_option_does_not_take(
    run: Run, arguments: list[str], where: str, got: str, allowed: str
) -> None:
    code, answer, _ = run(*arguments)
    (problem,) = problems(answer)
    assert code == 2
    assert (problem["where"], problem["got"], problem["allowed"]) == (where, got, allowed)


def test_a_model_that_ends_at_once_says_so(run: Run, text: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from gradatim.cli.main import main

    assert run("train", "ngram", "--run", "r", *NGRAM, *text, "--data.document", "line")[0] == 0
    assert main(["complete", "r", "and i like it more than anything else"]) == 0
    assert "the model ended the document at once" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_standard_output_is_told_on_standard_error() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [
            sys.executable,
            "-m",
            "gradatim",
            "schedule",
            "1f1b",
            "--stages",
            "2",
            "--microbatches",
            "2",
            "--json",
        ]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=120)
    assert done.returncode == 5 and b"No space left on device" in done.stderr and b"Traceback" not in done.stderr
