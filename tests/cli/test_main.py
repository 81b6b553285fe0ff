"""The command line's frame: lazy verbs, quick answers, every failure shown in one way with its exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

from gradatim.cli import main as frame
from gradatim.cli.main import VERBS, main
from gradatim.cli.output import Verb, emit, json_option, overrides_argument
from gradatim.errors import CheckpointError, DataError, Interrupted, NonFiniteError, Problem, Terminated

PYTHON = [sys.executable, "-W", "error"]
QUICK = 1.0
"""Seconds within which help and check answer, on an idle machine."""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, "-m", "gradatim", *args], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("args", [["--help"], ["check", "gpt"], ["check", "--help"], ["--version"], ["chekc"]])
def test_answers_at_once_and_without_torch_or_numpy(args: list[str]) -> None:
    script = (
        "import sys, gradatim.cli.main as m; code = m.main(sys.argv[1:]);"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'tokenizers'} & set(sys.modules)), file=sys.stderr)"
    )
    times = []
    for _ in range(3):  # the best of three: other work on the machine is not ours to measure
        start = time.perf_counter()
        done = subprocess.run([*PYTHON, "-c", script, *args], capture_output=True, text=True, timeout=60, check=True)
        times.append(time.perf_counter() - start)
        assert done.stderr.splitlines()[-1] == "[]"
        if times[-1] < QUICK:
            break
    assert min(times) < QUICK


def test_no_verb_at_all_is_answered_with_the_help() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout


def test_help_lists_every_verb_without_importing_any() -> None:
    script = (
        "import sys, gradatim.cli.main as m; m.main(['--help']);"
        "print([v for v, (module, _) in m.VERBS.items() if 'gradatim.cli.' + module in sys.modules])"
    )
    done = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb, (_, sentence) in VERBS.items():
        assert f"  {verb} " in done.stdout
        assert sentence.split()[0] in done.stdout


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_a_module_with_a_command(verb: str) -> None:
    with gradatim_context() as ctx:
        command = frame.gradatim.get_command(ctx, verb)
    assert isinstance(command, Verb)
    assert command.help


def gradatim_context() -> click.Context:
    return click.Context(frame.gradatim, info_name="gradatim")


def test_console_script_and_module_agree() -> None:
    script = Path(sys.executable).with_name("gradatim")
    if not script.exists():
        pytest.skip("gradatim is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == run("--version").stdout
    assert done.stdout.startswith("gradatim ")


# --------------------------------------------------------------------------- wrong commands


def problems_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    captured = capsys.readouterr()
    assert captured.err == ""
    problems = json.loads(captured.out)["error"]["problems"]
    assert isinstance(problems, list)
    return problems


def test_a_misspelt_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "gpt", "--json"]) == 2
    (problem,) = problems_of(capsys)
    assert (problem["got"], problem["try"]) == ("trian", "gradatim train")
    assert problem["allowed"] == ", ".join(VERBS)


def test_a_misspelt_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpt", "--jsno"]) == 2
    assert "try: --json" in capsys.readouterr().err
    assert main(["check", "gpt", "--stesp", "3", "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["got"], problem["try"]) == ("--stesp", "--steps")
    assert main(["prepare", "gpt", "--lr", "3", "--json"]) == 2
    (problem,) = problems_of(capsys)
    assert (problem["got"], problem["try"]) == ("--lr", "--optimizer.lr")
    assert main(["--verison"]) == 2
    assert "--version" in capsys.readouterr().err


def test_a_missing_recipe_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    text = capsys.readouterr().err
    assert "RECIPE" in text
    assert "lstm" in text
    assert "Traceback" not in text


def test_no_verb_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) in (0, 2)
    captured = capsys.readouterr()
    assert "Verbs:" in captured.out + captured.err


# --------------------------------------------------------------------------- failures inside a verb

Install = Callable[[BaseException | None], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Install a verb ``fail`` that raises what it is given, or ends well."""

    def install(failure: BaseException | None) -> None:
        @click.command(cls=Verb)
        @overrides_argument
        @json_option
        def command(overrides: dict[str, str], as_json: bool) -> None:
            """Fail."""
            if failure is not None:
                raise failure
            emit({"overrides": overrides}, as_json, lambda: str(overrides))

        module = ModuleType("gradatim.cli.fail")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gradatim.cli.fail", module)
        monkeypatch.setitem(VERBS, "fail", ("fail", "Fail."))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (DataError(Problem(where="a.txt", what="empty")), 3),
        (CheckpointError(Problem(where="runs/x", what="damaged")), 4),
        (Interrupted(Problem(where="runs/x", what="saved at step 3")), 10),
        (NonFiniteError(Problem(where="step 3", what="loss is not finite")), 11),
        (MemoryError("out of it"), 5),
        (ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow"), 5),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 5),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 5),
        (click.UsageError("N must be positive."), 2),
        (ZeroDivisionError("division by zero"), 1),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (click.exceptions.Exit(7), 7),
        (None, 0),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(
    failing: Install,
    capsys: pytest.CaptureFixture[str],
    failure: BaseException | None,
    code: int,
    as_json: bool,
) -> None:
    failing(failure)
    assert main(["fail", *(["--json"] if as_json else [])]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    if failure is None or code == 7:
        return
    if as_json:
        error = json.loads(captured.out)["error"]
        assert error["exit_code"] == code
        assert set(error["problems"][0]) == {"where", "what", "got", "allowed", "try"}
    else:
        assert captured.out == ""
        assert captured.err.startswith("stopped: " if code in (10, 130, 143) else "error: ")


def test_torch_out_of_memory_is_told_from_its_name(failing: Install, capsys: pytest.CaptureFixture[str]) -> None:
    failing(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.\nlong story"))
    assert main(["fail", "--json"]) == 5
    (problem,) = problems_of(capsys)
    assert problem["got"] == "CUDA out of memory."
    assert "microbatch" in problem["try"]


def test_an_unforeseen_failure_leaves_its_traceback_in_a_file(
    failing: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failing(ZeroDivisionError("division by zero"))
    assert main(["fail"]) == 1
    text = capsys.readouterr().err
    (log,) = tmp_path.glob("gradatim-failure-*.log")
    assert str(log) in text
    assert "ZeroDivisionError: division by zero" in text
    assert "Traceback (most recent call last)" in log.read_text()


def test_traceback_is_shown_on_request(failing: Install, capsys: pytest.CaptureFixture[str]) -> None:
    failing(DataError(Problem(where="a.txt", what="empty")))
    assert main(["--traceback", "fail"]) == 3
    assert "Traceback (most recent call last)" in capsys.readouterr().err


# --------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.order", "5"], {"model.order": "5"}),
        (["--model.order=5"], {"model.order": "5"}),
        (["--steps", "5", "--data.train", "a,b"], {"steps": "5", "data.train": "a,b"}),
        (["--model.n-kv-heads", "2", "--global-batch=8"], {"model.n_kv_heads": "2", "global_batch": "8"}),
        (["--optimizer.min_lr", "-1"], {"optimizer.min_lr": "-1"}),
        (["--data.test", ""], {"data.test": ""}),
        (["--data.test=a=b"], {"data.test": "a=b"}),
        (["--nonsense.field", "5"], {"nonsense.field": "5"}),  # the decoder will say what it is not
    ],
)
def test_overrides_are_collected(
    failing: Install, capsys: pytest.CaptureFixture[str], args: list[str], expected: dict[str, str]
) -> None:
    failing(None)
    assert main(["fail", *args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"overrides": expected}


def test_overrides_without_a_value(failing: Install, capsys: pytest.CaptureFixture[str]) -> None:
    failing(None)
    assert main(["fail", "--steps", "--compile", "--json"]) == 2
    assert [p["where"] for p in problems_of(capsys)] == ["--steps", "--compile"]


def test_an_override_given_twice_is_refused_with_both_values(
    failing: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(None)
    args = ["fail", "--model.d_model", "64", "--seed=1", "--model.d-model=128", "--compile", "--data.test", ""]
    assert main([*args, "--json"]) == 2
    problems = problems_of(capsys)
    assert [(p["where"], p["got"]) for p in problems] == [("--compile", ""), ("--model.d_model", "64 and 128")]
    assert main(["check", "gpt", "--steps", "5", "--steps", "5"]) == 2
    assert "got: 5 and 5" in capsys.readouterr().err


def test_own_options_keep_their_values_and_may_be_spelt_either_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command(cls=Verb)
    @click.argument("words", nargs=-1)
    @click.option("--max-new", type=int)
    @click.option("--stop")
    @click.option("--quiet/--loud", default=False)
    @overrides_argument
    def command(words: tuple[str, ...], max_new: int, stop: str, quiet: bool, overrides: dict[str, str]) -> None:
        print(words, max_new, stop, quiet, overrides)

    command.main(
        ["a", "--max_new", "3", "--stop", "--seed", "--quiet", "--seed", "4", "b", "--", "--steps", "5"],
        standalone_mode=False,
    )
    assert capsys.readouterr().out == "('a', 'b', '--steps', '5') 3 --seed True {'seed': '4'}\n"


# --------------------------------------------------------------------------- streams


def test_a_reader_that_leaves_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PYTHON, "-m", "gradatim", "check", "gpt"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141  # as SIGPIPE


def test_a_terminal_without_utf8_gets_escapes() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*PYTHON, "-m", "gradatim", "check", "réseau"],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert b"r\\xe9seau" in done.stderr
