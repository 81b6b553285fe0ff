"""``gradatim VERB``: finds the verb's module when it is called for, and shows every failure in one way.

The table of verbs below is static, so that ``gradatim --help`` imports none of them (nor torch or numpy).
A verb is ``cli/<module>.py`` with a ``command``; ``cli/output.py`` shows how to write one. Exit codes:
0 fine, 2 wrong command or config, 3 data, 4 checkpoint, 5 environment, 10 stopped after saving, 11 not
finite, 12 hang, 13 replicas that differ; besides these 1 for a defect of ours, 130 and 143 for Ctrl-C and SIGTERM where
nothing was left to save, 141 where the answer's reader left.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module

import click

from gradatim import __version__
from gradatim.cli.output import show_problems
from gradatim.cli.usage import usage_problem
from gradatim.errors import ConfigError, GradatimError, Interrupted, LaunchError, Problem, Terminated
from gradatim.streams import lasting_errors

VERBS: dict[str, tuple[str, str]] = {
    "ngrams": ("ngrams", "Count the n-grams of a text: the maximum-likelihood table."),
    "prepare": ("prepare", "Train the tokenizer and write the token files of a recipe or of files."),
    "check": ("check", "Check a recipe and its overrides; list every problem at once."),
    "train": ("train", "Train the model of a recipe."),
    "evaluate": ("evaluate", "Measure a run: perplexity and bits per byte of held-out text; BLEU of translators."),
    "harness": ("harness", "Judge a run by tasks of the lm-evaluation-harness."),
    "score": ("score", "Rank sentences by their probability."),
    "next": ("next", "Show the distribution over the next token of a prompt."),
    "complete": ("complete", "Continue a prompt: greedy, sampled or by beam search."),
    "predict": ("predict", "Answer rows with a fine-tuned model: labels, numbers, spans, choices."),
    "translate": ("translate", "Translate sentences, and show where the model looked."),
    "schedule": ("schedule", "Draw a pipeline schedule: its timeline, bubble and memory."),
    "plan": ("plan", "Predict time and memory of every layout of a model on a cluster; pick and explain."),
    "calibrate": ("calibrate", "Measure this machine as a cluster to plan for."),
    "rehearse": ("rehearse", "Play one rank of a run of any size on fake devices: its memory, its messages."),
    "serve": ("serve", "Answer completions over HTTP, with a page to try it."),
    "export": ("export", "Write a run in another program's format."),
    "import": ("import_", "Make a run out of another program's files."),
    "report": ("report", "Draw a run as one self-contained HTML page."),
    "demo": ("demo", "Train the ladder on the embedded corpus and compare its rungs."),
}
"""Verb: its module in ``gradatim.cli`` and the line that stands for it in ``--help``."""


class Verbs(click.Group):
    """The group of verbs, each imported only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order in which one meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Import the verb's module and return its command."""
        if cmd_name not in VERBS:
            from gradatim.config.decode import nearest

            guess = nearest(cmd_name, VERBS)
            raise ConfigError(
                Problem(
                    where="gradatim",
                    what="there is no such verb",
                    got=cmd_name,
                    allowed=", ".join(VERBS),
                    attempt=f"gradatim {guess}" if guess else "gradatim --help",
                )
            )
        command = import_module(f"gradatim.cli.{VERBS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, importing none."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, sentence) for verb, (_, sentence) in VERBS.items()])


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    name="gradatim",
    invoke_without_command=True,
)
@click.version_option(__version__, message="gradatim %(version)s")
@click.option("--traceback", is_flag=True, help="Show Python's traceback of any failure.")
@click.pass_context
def gradatim(ctx: click.Context, traceback: bool) -> None:
    """Climb step by step from counting word pairs to training Transformers.

    RECIPE is a packaged recipe or a YAML file; any field of it is overridden as --section.field VALUE.
    `gradatim train --help` lists the recipes and all fields.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ConfigError.exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on ``argv`` (default: the process's) and return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    before_rest = args[: args.index("--")] if "--" in args else args
    as_json = "--json" in before_rest
    for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 shows \\u2026 instead of failing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with lasting_errors():
        try:
            with _termination(), gradatim.make_context("gradatim", list(args)) as ctx:
                gradatim.invoke(ctx)
            sys.stdout.flush()
            return 0
        except click.exceptions.Exit as stop:  # --help, --version, ctx.exit(code)
            return stop.exit_code
        except (KeyboardInterrupt, click.Abort):
            return _stopped(signal.SIGINT, as_json)
        except Terminated:
            return _stopped(signal.SIGTERM, as_json)
        except BrokenPipeError:
            return _reader_left()
        except Exception as failure:
            if args[:1] == ["--traceback"]:
                traceback.print_exc()
            error = _explain(failure)
            label = "stopped" if isinstance(error, Interrupted) else "error"
            return _show(error.problems, error.exit_code, as_json, label)


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Let SIGTERM unwind what is going on, as Ctrl-C does; whoever has something to save has its own handler.

    Not in a rank that a launcher started: it may wait in C++ code, where no handler of Python's is ever run.
    """

    def raise_it(*_: object) -> None:
        raise Terminated

    ours = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    ours = ours and _rank() is None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stopped(number: signal.Signals, as_json: bool) -> int:
    """Say so, once for all ranks; the exit code is that which shells give to such an end."""
    if _rank() in (None, "0"):
        what, attempt = "stopped by a signal where nothing was left to save", "the same command again"
        _show(
            [Problem(where="gradatim", what=what, got=number.name, attempt=attempt)], 128 + number, as_json, "stopped"
        )
    return 128 + number


def _rank() -> str | None:
    """The process's number among those that torchrun or Slurm started; None where neither did."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID"))


def _show(problems: Sequence[Problem], exit_code: int, as_json: bool, label: str) -> int:
    """Show what went wrong, even if nobody is there to read it."""
    try:
        show_problems(problems, exit_code=exit_code, as_json=as_json, label=label)
        sys.stdout.flush()
    except BrokenPipeError:
        _reader_left()
    except OSError:  # standard output takes no more; standard error may
        _reader_left()
        show_problems(problems, exit_code=exit_code, as_json=False, label=label)
    return exit_code


def _explain(failure: Exception) -> GradatimError:
    """The failure in our words: problems and an exit code."""
    if isinstance(failure, GradatimError):
        return failure
    if isinstance(failure, click.ClickException):
        return ConfigError(usage_problem(failure))
    if isinstance(failure, MemoryError) or type(failure).__name__ == "OutOfMemoryError":  # the latter is torch's
        return LaunchError(
            Problem(
                where="memory",
                what="the machine has not enough memory for this",
                got=str(failure).split("\n")[0],
                attempt="a smaller --layout.microbatch (the result stays the same), --context or model",
            )
        )
    if isinstance(failure, ModuleNotFoundError) and not (failure.name or "").startswith("gradatim"):
        return LaunchError(
            Problem(
                where=failure.name or "import",
                what="this package is missing",
                attempt=f"pip install {failure.name}",
            )
        )
    if isinstance(failure, OSError) and failure.errno in _MACHINE:
        return LaunchError(
            Problem(
                where=str(failure.filename or "system"),
                what=os.strerror(failure.errno or 0),
                attempt=_MACHINE[failure.errno],
            )
        )
    return _defect(failure)


_MACHINE: dict[int | None, str] = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or write elsewhere",
    errno.EROFS: "write elsewhere: this file system is read-only",
    errno.EACCES: "change the permissions, or name another path",
    errno.EPERM: "change the permissions, or name another path",
    errno.ENOTDIR: "name another path: a file stands where a folder should be",
    errno.EISDIR: "name a file: this is a folder",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What the machine refuses (errno), and what to do about it."""


def _defect(failure: Exception) -> GradatimError:
    """Keep the traceback of a failure nobody foresaw in a file, and say where."""
    with tempfile.NamedTemporaryFile(
        "w",
        prefix="gradatim-failure-",
        suffix=".log",
        delete=False,
        encoding="utf-8",
        errors="backslashreplace",
    ) as log:
        log.write(f"gradatim {__version__}, Python {sys.version}\n{sys.argv}\n\n")
        log.write("".join(traceback.format_exception(failure)))
    return GradatimError(
        Problem(
            where="gradatim",
            what="an unforeseen failure, which is a defect of this program and not yours",
            got=f"{type(failure).__name__}: {failure}".strip().split("\n")[0],
            attempt=f"report it with the traceback in {log.name}",
        )
    )


def _reader_left() -> int:
    """Whoever read our output (``| head``) has seen enough: end quietly, without a last flush."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13  # as a shell reports SIGPIPE: a caller that needs the whole answer can tell
