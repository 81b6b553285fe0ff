"""Runs that are damaged, changed or gone, and what else is asked of them: refused with one clear error each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import GPT, LINES, NEURAL, Answer, Refused, copy

pytestmark = pytest.mark.usefixtures("here")


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
    before, _ = answer("evaluate", "run")
    text.write_text("xyz\n" * 20)
    assert answer("evaluate", "run")[0] == before  # what is judged has not changed
    (problem,) = refused("train", "gpt", *common, "--resume", code=4)
    assert problem["what"] == "the text or its tokenizer has changed since the run began"
    text.unlink()
    assert answer("evaluate", "run")[0] == before
    Path("valid.txt").unlink()
    (problem,) = refused("evaluate", "run", code=3)
    assert (problem["where"], problem["got"]) == ("data.valid", "valid.txt")


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
