"""``evaluate score next complete`` on one tiny run of each kind: what programs read, what people see, exit codes."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradatim.cli.main import main
from gradatim.cli.next import BAR

KINDS = ["ngram", "lstm", "gpt"]
CONTEXT = 8
LINES = ["the more i read the more i learn", "and i like it more than anything"]
VALID = ["i like it more", "the more i read"]
NEURAL = [
    "--steps",
    "6",
    "--context",
    str(CONTEXT),
    "--global-batch",
    "4",
    "--model.d_model",
    "16",
    "--model.n_layers",
    "1",
]
OWN = {
    "ngram": ["--model.order", "3", "--model.discount_fallback", "true"],
    "lstm": NEURAL,
    "gpt": [*NEURAL, "--model.n_heads", "2"],
}  # fmt: skip
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind over characters, a few steps old."""
    root = tmp_path_factory.mktemp("runs")
    (root / "train.txt").write_text("\n".join(LINES * 30) + "\n", encoding="utf-8")
    (root / "valid.txt").write_text("\n".join(VALID) + "\n", encoding="utf-8")
    data = [
        "--data.train", str(root / "train.txt"), "--data.valid", str(root / "valid.txt"), "--data.document", "line",
        "--data.cache", str(root / "cache"), "--data.tokenizer.kind", "char",
    ]  # fmt: skip
    for kind in KINDS:
        assert main(["train", kind, "--run", str(root / kind), *OWN[kind], *data]) == 0
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, runs: dict[str, Path]) -> Path:
    return runs[request.param]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command with --json and read its one document."""

    def run_it(*args: str | Path, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, args), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run_it


@pytest.fixture
def plain(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command and read what people see."""

    def run_it(*args: str | Path) -> str:
        capsys.readouterr()
        assert main([*map(str, args)]) == 0
        return capsys.readouterr().out

    return run_it


# --------------------------------------------------------------------------- evaluate


def test_evaluate_judges_the_run_s_held_out_text(run: Path, ask: Ask, plain: Callable[..., str]) -> None:
    found = ask("evaluate", run)
    assert found.keys() >= {
        "tokens", "unknown", "bytes", "nats_per_token", "perplexity", "perplexity_without_unknown", "bits_per_byte",
    }  # fmt: skip
    size = sum(len(line) + 1 for line in VALID)
    assert (found["tokens"], found["bytes"], found["unknown"]) == (size, size, 0)
    assert (
        found["perplexity"] == found["perplexity_without_unknown"] == pytest.approx(math.exp(found["nats_per_token"]))
    )
    assert found["bits_per_byte"] == pytest.approx(found["nats_per_token"] * found["tokens"] / math.log(2) / size)
    assert 1 < found["perplexity"] < 20
    rows = [line.rsplit(maxsplit=1) for line in plain("evaluate", run).splitlines()[1:]]
    assert dict(rows)["tokens"] == str(size)
    assert dict(rows)["bits per byte"] == f"{found['bits_per_byte']:.5g}"


def test_evaluate_a_file_equals_the_held_out_part_of_the_same_text(run: Path, ask: Ask) -> None:
    text = run.parent / "valid.txt"
    for stride in ("1", "3", str(CONTEXT)):
        assert ask("evaluate", run, "--stride", stride) == ask("evaluate", run, "--text", text, "--stride", stride)


def test_a_stride_beyond_the_context_is_refused_and_one_without_effect_said(
    runs: dict[str, Path], ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    (problem,) = ask("evaluate", runs["gpt"], "--stride", str(CONTEXT + 1), code=2)["error"]["problems"]
    assert (problem["where"], problem["got"], problem["try"]) == ("--stride", str(CONTEXT + 1), f"--stride {CONTEXT}")
    assert main(["evaluate", str(runs["lstm"]), "--stride", "100"]) == 0
    assert "--stride changes nothing" in capsys.readouterr().err


def test_a_document_is_the_score_of_its_text(run: Path, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("i like", encoding="utf-8")
    judged = ask("evaluate", run, "--text", tmp_path / "one.txt")
    (scored,) = ask("score", run, "i like")
    assert judged["tokens"] == scored["tokens"] == 7
    assert judged["perplexity"] == pytest.approx(scored["perplexity"], rel=1e-5)


def test_unknown_characters_are_counted_and_have_no_bits(run: Path, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("ZZ top\n", encoding="utf-8")
    found = ask("evaluate", run, "--text", tmp_path / "odd.txt")
    assert (found["unknown"], found["tokens"], found["bits_per_byte"]) == (3, 7, None)
    assert found["perplexity"] > 1
    assert found["perplexity_without_unknown"] > 1


# --------------------------------------------------------------------------- score


def test_score_ranks_sentences(run: Path, ask: Ask, plain: Callable[..., str]) -> None:
    found = ask("score", run, "zzz", "i", "more i", "")
    fields = {"text", "log_probability", "tokens", "perplexity", "unknown"}
    assert {frozenset(entry) for entry in found} == {frozenset(fields)}
    assert {entry["text"]: entry["unknown"] for entry in found} == {"zzz": 3, "i": 0, "more i": 0, "": 0}
    values = [entry["log_probability"] for entry in found]
    assert values == sorted(values, reverse=True)
    assert {entry["text"]: entry["tokens"] for entry in found} == {"zzz": 4, "i": 2, "more i": 7, "": 1}
    for entry in found:
        assert entry["perplexity"] == pytest.approx(math.exp(-entry["log_probability"] / entry["tokens"]))
    lines = plain("score", run, "zzz", "i", "more i").splitlines()
    assert lines[0].split() == ["sentence", "log-probability", "tokens", "perplexity", "unknown"]
    assert [line.split("  ")[0] for line in lines[1:]] == [entry["text"] for entry in found if entry["text"]]


def test_score_is_the_product_of_next(run: Path, ask: Ask) -> None:
    (scored,) = ask("score", run, "i re")
    total = 0.0
    for place, follows in enumerate([*"i re", "<|endoftext|>"]):
        table = {entry["text"]: entry["probability"] for entry in ask("next", run, "i re"[:place], "--top", "99")}
        total += math.log(table[follows])
    assert scored["log_probability"] == pytest.approx(total, rel=1e-4)


def test_a_counted_model_prefers_what_it_read(runs: dict[str, Path], ask: Ask) -> None:
    assert ask("score", runs["ngram"], "eht erom i", "the more i", "i more the")[0]["text"] == "the more i"


# --------------------------------------------------------------------------- next


def test_next_is_a_distribution_likeliest_first(run: Path, ask: Ask, plain: Callable[..., str]) -> None:
    whole = ask("next", run, "the mor", "--top", "999")
    values = [entry["probability"] for entry in whole]
    assert {frozenset(entry) for entry in whole} == {frozenset({"text", "probability"})}
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, rel=1e-4)
    letters = {*"".join(LINES), "<|endoftext|>", "<unk>"}
    assert {entry["text"] for entry in whole} == letters
    assert ask("next", run, "the mor") == whole[:10]
    assert ask("next", run, "the mor", "--top", "1") == whole[:1]
    lines = plain("next", run, "the mor", "--top", "3").splitlines()
    assert lines[0].split() == ["next", "probability"]
    assert [line[0] for line in lines[1:]] == [entry["text"][0] for entry in whole[:3]]
    lengths = [line.count("█") for line in lines[1:]]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == int(round(8 * BAR * values[0]) // 8)


def test_next_of_a_counted_model_is_what_followed(runs: dict[str, Path], ask: Ask) -> None:
    assert ask("next", runs["ngram"], "the mor")[0] == {"text": "e", "probability": pytest.approx(1, abs=0.05)}


# --------------------------------------------------------------------------- complete


def test_complete_is_greedy_by_default(run: Path, ask: Ask, plain: Callable[..., str]) -> None:
    answer = ask("complete", run, "the m", "--max-new", "6")
    assert answer["tokens_per_second"] > 0
    (completion,) = answer["completions"]
    assert completion.keys() >= {"text", "log_probability", "tokens"}
    text, total = "", 0.0
    for _ in range(completion["tokens"]):
        if len("the m" + text) >= CONTEXT and run.name == "gpt":
            break  # the end of the text is read anew from here on
        likeliest = ask("next", run, "the m" + text, "--top", "1")[0]
        total += math.log(likeliest["probability"])
        text += likeliest["text"].replace("<|endoftext|>", "")
    else:
        assert completion["log_probability"] == pytest.approx(total, rel=1e-4)
        assert completion["text"] == text
    assert completion["text"].startswith(text)
    assert plain("complete", run, "the m", "--max-new", "6") == f"the m{completion['text']}\n"


def test_one_beam_is_greedy_and_more_find_no_less(run: Path, ask: Ask) -> None:
    def best(*options: str) -> Any:
        return ask("complete", run, "i li", "--max-new", "3", "--length-penalty", "0", *options)["completions"]

    assert best("--beams", "1") == best()
    exhaustive = best("--beams", "400", "--n", "5")
    values = [completion["log_probability"] for completion in exhaustive]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    assert values[0] >= best()[0]["log_probability"] - 1e-6
    assert len({completion["text"] for completion in exhaustive}) >= 4  # one text may end by itself or by the limit
    assert best("--beams", "400") == exhaustive[:1]


def test_a_seed_repeats_and_rows_are_those_of_fewer(run: Path, ask: Ask, plain: Callable[..., str]) -> None:
    def texts(*options: str) -> list[str]:
        answer = ask("complete", run, "the", "--max-new", "12", "--temperature", "1.3", *options)
        return [completion["text"] for completion in answer["completions"]]

    three = texts("--n", "3", "--seed", "5")
    assert len(set(three)) > 1
    assert texts("--n", "3", "--seed", "5") == three
    assert texts("--seed", "5") == three[:1]
    assert texts("--n", "3", "--seed", "6") != three
    shown = plain("complete", run, "the", "--max-new", "12", "--temperature", "1.3", "--n", "3", "--seed", "5")
    assert shown == "\n\n".join("the" + text for text in three) + "\n"


@pytest.mark.parametrize("filters", [["--top-k", "1"], ["--top-p", "1e-9"], ["--min-p", "1"], ["--temperature", "0"]])
def test_filters_that_leave_one_token_are_greedy(run: Path, ask: Ask, filters: list[str]) -> None:
    greedy = ask("complete", run, "and", "--max-new", "5")["completions"]
    assert ask("complete", run, "and", "--max-new", "5", "--seed", "3", *filters)["completions"] == greedy


def test_stop_cuts(runs: dict[str, Path], ask: Ask) -> None:
    (whole,) = ask("complete", runs["ngram"], "the mor", "--max-new", "12")["completions"]
    (cut,) = ask("complete", runs["ngram"], "the mor", "--max-new", "12", "--stop", whole["text"][1:3])["completions"]
    assert cut["text"] == whole["text"][: whole["text"].index(whole["text"][1:3])]
    assert cut["tokens"] < whole["tokens"]


class Terminal(io.StringIO):
    """A terminal that remembers each piece it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_words_are_kept_apart_where_the_prompt_ends(ask: Ask, plain: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(LINES * 9) + "\n", encoding="utf-8")
    options = ["--data.train", str(tmp_path / "text.txt"), "--data.cache", str(tmp_path / "cache")]
    options += ["--data.tokenizer.kind", "word", "--data.tokenizer.vocab_size", "null", "--model.order", "2"]
    ask("train", "ngram", "--run", tmp_path / "run", "--model.smoothing", "mle", *options)
    assert plain("complete", tmp_path / "run", "like", "--max-new", "2") == "like it more\n"
    assert plain("complete", tmp_path / "run", "like ", "--max-new", "2") == "like it more\n"
    assert plain("complete", tmp_path / "run", "", "--max-new", "2")[0] in "at"


def test_on_a_terminal_text_comes_token_by_token(
    run: Path, plain: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["complete", run, "i", "--max-new", "7", "--temperature", "1", "--seed", "2"]
    whole = plain(*command)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main([*map(str, command)]) == 0
    assert screen.getvalue() == whole
    assert [piece for piece in screen.pieces if piece] == ["i", *whole[1:-1], "\n"]


# --------------------------------------------------------------------------- prompts at the edges


@pytest.mark.parametrize("verb", ["next", "complete"])
def test_a_prompt_longer_than_the_context_is_read_from_its_end_and_said(
    run: Path, verb: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "the more i learn and i"  # with the boundary 23 tokens
    assert main([verb, str(run), long]) == 0
    said = capsys.readouterr().err
    if run.name == "gpt":
        assert f"its first {len(long) + 1 - CONTEXT} tokens were not read" in said
        same = "Z" + long[-CONTEXT:]  # likewise without the beginning
        assert ask("next", run, long) == ask("next", run, same)
    else:
        assert said == ""
    assert ask("complete", run, long)["prompt_tokens_dropped"] == (15 if run.name == "gpt" else 0)
    assert ask("complete", run, long[: CONTEXT - 1])["prompt_tokens_dropped"] == 0


def test_the_empty_prompt_opens_a_document(run: Path, ask: Ask) -> None:
    first = ask("next", run, "", "--top", "99")
    (scored,) = ask("score", run, "")
    ends = next(entry["probability"] for entry in first if entry["text"] == "<|endoftext|>")
    assert math.log(ends) == pytest.approx(scored["log_probability"], rel=1e-4)
    (completion,) = ask("complete", run, "", "--max-new", "1")["completions"]
    assert completion["log_probability"] == pytest.approx(math.log(first[0]["probability"]), rel=1e-4)


def test_a_sentence_longer_than_the_context_is_refused(runs: dict[str, Path], ask: Ask) -> None:
    (problem,) = ask("score", runs["gpt"], "i", "x" * CONTEXT, code=2)["error"]["problems"]
    assert problem == {
        "where": "x" * CONTEXT, "what": "longer than the model's context", "got": f"{CONTEXT + 1} tokens",
        "allowed": str(CONTEXT), "try": "evaluate RUN --text FILE, which reads long texts in windows",
    }  # fmt: skip
    assert len(ask("score", runs["lstm"], "x" * 100)) == 1


# --------------------------------------------------------------------------- wrong commands


@pytest.mark.parametrize(
    ("arguments", "code", "where"),
    [
        (["evaluate", "RUN", "--stride", "0"], 2, "--stride"),
        (["evaluate", "RUN", "--text", "absent.txt"], 3, "--text"),
        (["evaluate", "RUN", "--checkpoint", "newest"], 2, "--checkpoint"),
        (["next", "RUN", "a", "--checkpoint", "123"], 4, "checkpoints"),
        (["next", "RUN", "a", "--top", "0"], 2, "--top"),
        (["next", "RUN"], 2, "gradatim next"),
        (["score", "RUN"], 2, "gradatim score"),
        (["score", "absent-run", "a"], 4, "absent-run"),
        (["complete", "RUN", "a", "--max-new", "0"], 2, "--max-new"),
        (["complete", "RUN", "a", "--temperature", "-1"], 2, "temperature"),
        (["complete", "RUN", "a", "--top-p", "nan"], 2, "top"),
        (["complete", "RUN", "a", "--beams", "2", "--top-k", "3"], 2, "--top-k"),
        (["complete", "RUN", "a", "--beams", "2", "--n", "3"], 2, "--n"),
        (["complete", "RUN", "a", "--beams", "2", "--stop", "e"], 2, "--stop"),
        (["complete", "RUN", "a", "--beams", "2", "--repetition-penalty", "2"], 2, "--repetition-penalty"),
        (["complete", "RUN", "a", "--length-penalty", "nan"], 2, "--length-penalty"),
        (["complete", "RUN", "a", "--tpo-k", "3"], 2, "gradatim complete"),
    ],
)
def test_mistakes(
    runs: dict[str, Path], arguments: list[str], code: int, where: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(runs["gpt"]) if argument == "RUN" else argument for argument in arguments]
    error = ask(*command, code=code)["error"]
    assert error["exit_code"] == code
    assert any(where in problem["where"] for problem in error["problems"])
    assert main(command) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
