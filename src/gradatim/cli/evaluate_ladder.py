"""``gradatim evaluate RUN OTHER…`` of language models: one row a run, and whether the rows may be compared at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradatim.cli.output import Table, say
from gradatim.config.rules_pairs import is_pairs
from gradatim.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gradatim.evaluate.perplexity import Evaluation
    from gradatim.train import Run


def plain(run: Run) -> bool:
    """Whether a run's model predicts the next token, so that its figures are those of a rung."""
    config = run.config
    return config.task.kind == "none" and config.model.kind != "bert" and not is_pairs(config.data)


def judge_rungs(
    paths: tuple[Path, ...], find: Callable[[Path], Run], judge: Callable[[Run], Evaluation], one_text: bool
) -> Any:
    """Figures of several language models, in the order given; ``one_text``: each on the same file.

    Raises:
        ConfigError: one of them is no language model.
    """
    runs = [find(path) for path in paths]
    problems = [
        Problem(where=str(path), what="this run is no language model, so it is no rung beside others",
                allowed="language models, or translators alone", attempt=f"gradatim evaluate {path}")
        for path, run in zip(paths, runs, strict=True) if not plain(run)
    ]  # fmt: skip
    if problems:
        raise ConfigError(*problems)
    found = []
    for path, run in zip(paths, runs, strict=True):
        say(f"{path}:")
        found.append({"run": str(path), "model": run.config.model.kind, **asdict(judge(run))})
    same_bytes = len({facts["bytes"] for facts in found}) == 1
    same_tokens = len({run.tokenizer.fingerprint for run in runs}) == 1
    if not same_bytes:
        documents = ", ".join(f"{path} {run.config.data.document}" for path, run in zip(paths, runs, strict=True))
        attempt = "" if one_text else "--text FILE judges all on one text, and "
        say("not of the same bytes, so bits per byte do not compare: "
            f"{attempt}data.document should be one (it is: {documents})")  # fmt: skip
    if not same_tokens:
        say("not of the same tokens: perplexities and nats per token do not compare, bits per byte do")
    return {"runs": found, "same_bytes": same_bytes, "same_tokens": same_tokens}


COLUMNS = ("model", "tokens", "unknown", "bytes", "perplexity", "bits_per_byte")


def shown(document: Any) -> Table:
    """The figures as a table."""
    rows = [[facts["run"], *(facts[name] for name in COLUMNS)] for facts in document["runs"]]
    return Table(["run", *(name.replace("_", " ") for name in COLUMNS)], rows)
