"""``gradatim predict RUN FILE|-``: what a fine-tuned model says of new rows, with its probabilities."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradatim.cli.output import Verb, emit, json_option, say
from gradatim.errors import DataError, Problem

if TYPE_CHECKING:
    from gradatim.config.settings import RunConfig
    from gradatim.text.examples import Example

TABLES = (".jsonl", ".jsonl.gz", ".csv", ".tsv", ".parquet")
FEWEST = {"span": 2, "choice": 3}
"""Texts of a line: question and passage; prompt and two choices. Otherwise one, or two with task.text_b."""


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@click.option("--average", type=click.IntRange(min=1), default=1, show_default=True, help="Mean of the newest so many.")
@json_option
def command(run: Path, file: str, checkpoint: str, average: int, as_json: bool) -> None:
    """Answer each row of FILE (or standard input) with the model of RUN.

    A table (.jsonl, .csv, .tsv, .parquet) has the columns of the run's task, labels not needed; of any other file, and
    of standard input, each line is a row, with tabs between its texts: text and second text, question and passage,
    prompt and choices.
    """
    from gradatim.cli.runs import find_run, open_tuned, refuse_choice_and_mean

    refuse_choice_and_mean(average)
    opened = find_run(run, checkpoint)
    tuned = open_tuned(opened, checkpoint, average)
    found = _examples(file, opened.config)
    answered, _, rows = tuned.answer(found)
    for note in rows.notes():
        say(note)
    documents = [tuned.document(example, each) for example, each in zip(found, answered, strict=True)]
    emit(documents, as_json, lambda: "\n".join(map(_line, documents)))


def _examples(file: str, config: RunConfig) -> list[Example]:
    from gradatim.text.examples import Example, examples
    from gradatim.text.sources import Tally, lines_of, refuse_binary
    from gradatim.text.table import rows_of_file

    tally, path = Tally(), Path(file)
    if file != "-" and not path.is_file():
        raise DataError(Problem(where=file, what="there is no such file", attempt="check the path, or - for standard "
                                "input"))  # fmt: skip
    if file.endswith(TABLES):
        rows = rows_of_file(path, config.data.columns, tally, perhaps=config.task.label)
        found = list(examples(rows, config.task, labelled=False))
    else:
        task = config.task
        count = FEWEST.get(task.kind, 1 if task.text_b is None else 2)
        found = []
        with sys.stdin.buffer if file == "-" else path.open("rb") as opened:
            if file != "-":
                refuse_binary(path, opened)
            for number, line in enumerate(lines_of(opened, tally), start=1):
                text = line.removesuffix("\n")
                texts = tuple(text.split() if task.kind == "tag" else text.split("\t"))
                if task.kind != "tag" and (len(texts) < count if task.kind == "choice" else len(texts) != count):
                    raise DataError(Problem(where=f"{file}:{number}", what="this line has not the texts of a row",
                                            got=f"{len(texts)}, separated by tabs",
                                            allowed=f"{count}{' or more' if task.kind == 'choice' else ''}",
                                            attempt="a table with named columns, such as .jsonl"))  # fmt: skip
                found.append(Example(f"{file}:{number}", texts, None))
    tally.tell(say)
    return found


def _line(document: dict[str, Any]) -> str:
    """An answer in one line: what is said, how sure it is, and the text."""
    if "value" in document:
        return f"{document['value']:.4f}\t{document['text']}"
    if "words" in document:
        return " ".join(f"{word}/{label or '?'}" for word, label in zip(document["words"], document["labels"]))
    answer = document["answer"] if "answer" in document else document["label"]
    return f"{answer}\t{document['probability']:.4f}\t{document['text']}"
