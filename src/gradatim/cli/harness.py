"""``gradatim harness RUN TASK…``: a run judged by tasks of the lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("tasks", nargs=-1, required=True)
@click.option("--include", type=click.Path(path_type=Path), help="A folder of further tasks (their YAML files).")
@click.option("--shots", type=click.IntRange(min=0), help="Solved examples before each question [as the task says].")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many documents of each task.")
@click.option("--rows", type=click.IntRange(min=1), default=16, show_default=True, help="Rows read side by side.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@json_option
def command(
    run: Path, tasks: tuple[str, ...], include: Path | None, shots: int | None, limit: int | None, rows: int,
    checkpoint: str, as_json: bool,
) -> None:  # fmt: skip
    """Figures of RUN on each TASK, which lm_eval loads (and may have to download)."""
    from gradatim.cli.runs import open_run
    from gradatim.errors import ConfigError, Problem
    from gradatim.evaluate.harness import Answers, harness_model

    opened, model = open_run(run, checkpoint)
    answering = harness_model(Answers(model, opened.tokenizer, rows), str(run))
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        attempt = "lm_eval ls tasks names them; --include FOLDER for your own"
        raise ConfigError(
            *(Problem(where="TASK", what="the harness has no such task", got=n, attempt=attempt) for n in unknown)
        )
    found = lm_eval.simple_evaluate(
        model=answering, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager, log_samples=False
    )
    answer = {name: _plain(figures) for name, figures in found["results"].items()}
    say(f"lm_eval {lm_eval.__version__}")
    emit(
        {"results": answer, "documents": {name: n["effective"] for name, n in found["n-samples"].items()}},
        as_json,
        lambda: Table(
            ["task", "figure", "value", "standard error"],
            [
                [name, figure, value, figures.get(f"{figure}_stderr")]
                for name, figures in answer.items()
                for figure, value in figures.items()
                if not figure.endswith("_stderr") and isinstance(value, float)
            ],
        ),
    )


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures by their own names, without the harness's filter where that is none; numbers only where there is one."""
    named = {key.replace(",none", "").replace("_stderr,", "_stderr,"): value for key, value in figures.items()}
    return {
        key: (None if value == "N/A" else value)
        for key, value in named.items()
        if key not in ("alias", "name", "sample_len", "sample_count")
    }
