"""The report of one run: what was trained, how the loss fell, what came out."""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from gradatim import __version__
from gradatim.config.derived import loss_unit, world_size
from gradatim.report import figures, page
from gradatim.report.layout import layout_sections, layout_text
from gradatim.train import Run
from gradatim.train.metrics import read_metrics


def run_report(directory: Path) -> str:
    """A self-contained page about a run.

    Raises:
        CheckpointError: the directory is not that of a run.
    """
    run = Run.open(directory)
    rows = read_metrics(run.metrics)
    sections = [page.section("What was trained", page.facts(_facts(run, rows)))]
    if any(row.get("loss") is not None for row in rows):
        losses = {
            "training": [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None],
            "validation": [(row["step"], row["valid_loss"]) for row in rows if row.get("valid_loss") is not None],
        }
        drawing = figures.curves(losses, title="Loss by step", x_label="step", y_label=loss_unit(run.config))
        sections.append(
            page.section(
                "Loss",
                page.figure(
                    drawing,
                    "Training loss of each step's batch, under dropout and smoothed labels where the recipe has them; "
                    "validation loss of the whole validation text, without either.",
                ),
            )
        )
        sections += _terms(rows)
        for key, heading, label, caption in (
            ("lr", "Learning rate", "learning rate", "Written into the optimizer before each step."),
            ("grad_norm", "Gradient", "norm before clipping", "Euclidean norm of the whole gradient."),
        ):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                drawing = figures.curves({label: points}, title=heading, x_label="step", y_label=label)
                sections.append(page.section(heading, page.figure(drawing, caption)))
    sections += layout_sections(directory, run.config, run.tokenizer.vocab_size, rows)
    config = (directory / "config.yaml").read_text(encoding="utf-8")
    sections.append(page.section("Configuration", f'<p class="text">{escape(config)}</p>'))
    return page.page(
        f"Run {directory.name}",
        f"A {run.config.model.kind} model, trained with gradatim.",
        sections,
        f"gradatim {__version__}",
    )


def _terms(rows: list[dict[str, Any]]) -> list[str]:
    """A figure for each part of a loss that has several, such as a BERT's words and pairs: they differ in scale."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("loss_"))
    if len(names) < 2:
        return []
    drawn = ""
    for name in names:
        part, points = (
            name.removeprefix("loss_"),
            [(row["step"], row[name]) for row in rows if row.get(name) is not None],
        )
        drawing = figures.curves({part: points}, title=f"Loss of {part}", x_label="step", y_label=part)
        drawn += page.figure(drawing, f"Training loss of {part} alone; the parts' sum is what is learned from.")
    return [page.section("Parts of the loss", drawn)]


def _facts(run: Run, rows: list[dict[str, Any]]) -> list[tuple[str, object]]:
    last = rows[-1] if rows else {}
    plain = run.config.task.kind == "none"
    per_token = plain and run.config.model.kind != "bert"
    valid = [row["valid_loss"] for row in rows if row.get("valid_loss") is not None]
    found: list[tuple[str, object]] = [
        ("model", run.config.model.kind),
        *([] if plain else [("task", run.config.task.kind)]),
        *([("labels", ", ".join(run.labels))] if run.labels else []),
        *([("begun from", run.config.init_from)] if run.config.init_from else []),
        *([("word vectors", "begun as counted")] if run.config.word_vectors == "counted" else []),
        ("vocabulary", run.tokenizer.vocab_size),
        ("text", ", ".join(run.config.data.train or (*run.config.data.train_source, *run.config.data.train_target))),
        *([("layout", layout_text(run.config.layout))] if world_size(run.config.layout) > 1 else []),
        ("steps", last.get("step")),
        ("tokens learned from", last.get("tokens")),
        ("seconds", last.get("seconds")),
        ("best validation loss", min(valid) if valid else None),
        *([("its perplexity", math.exp(min(valid)) if valid and min(valid) < 700 else None)] if per_token else []),
        *machine_facts(run.directory),
    ]
    return found


def machine_facts(directory: Path) -> list[tuple[str, object]]:
    """Processor and versions from a run's env.json."""
    path = directory / "env.json"
    env = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    packages = ", ".join(f"{name} {version}" for name, version in env.get("packages", {}).items())
    return [
        (
            "machine",
            f"{env.get('processor')}, {env.get('cores')} cores, {env.get('threads')} threads, {env.get('device')}",
        ),
        ("versions", f"Python {env.get('python')}, {packages}"),
        ("started", env.get("started")),
    ]
