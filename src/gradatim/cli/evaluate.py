"""``gradatim evaluate RUN``: perplexity and bits per byte of a run's model; of translators, BLEU and chrF besides; of
a BERT, its blanks and pairs; of a model that was tuned for a task, how many answers are right.

``evaluate RUN OTHER…`` judges several language models, a row each; of translators, all on the same sentences, it says
which differences from the first one chance would not make.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradatim.cli.output import Table, Verb, emit, json_option, say
from gradatim.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradatim.config.settings import DataConfig
    from gradatim.evaluate.perplexity import Evaluation
    from gradatim.evaluate.translation import TranslationEvaluation
    from gradatim.text.pairs import Pair
    from gradatim.text.tokenfile import TokenFile
    from gradatim.train import Run


SECONDS_BETWEEN = 10.0
"""Of two lines that say how far it is, where nobody looks on."""
_NOT_ASKED: dict[str, Any] = dict.fromkeys(
    ("tokens", "unknown", "bytes", "nats_per_token", "perplexity", "perplexity_without_unknown", "bits_per_byte")
)
"""Figures of language models and translators, null in the JSON of other models: one program reads all runs."""


@click.command(cls=Verb)
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option("--text", metavar="PATH", help="A file to judge on [the run's test text, or validation].")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Advance of the windows of a limited context, at most all of it [half of it].",
)
@click.option("--source", metavar="FILE", help="Translators: source sentences to judge on, with --target.")
@click.option("--target", metavar="FILE", help="Translators: their translations.")
@click.option("--beams", type=click.IntRange(min=1), default=5, show_default=True, help="Translators: 1 is greedy.")
@click.option(
    "--length-penalty", type=float, default=1.0, show_default=True, help="Beams compare log-probability / length^this."
)
@click.option("--compare", is_flag=True, help="Refuse a single run; several are compared with or without it.")
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@click.option("--average", type=click.IntRange(min=1), default=1, show_default=True, help="Mean of the newest so many.")
@json_option
def command(
    runs: tuple[Path, ...], text: str | None, stride: int | None, source: str | None, target: str | None, beams: int,
    length_penalty: float, compare: bool, checkpoint: str, average: int, as_json: bool,
) -> None:  # fmt: skip
    """Judge the model of RUN: each token once, the end of each document included; of a BERT, blanks and pairs.

    Several runs: a row for each language model; of translators, their differences from the first, too.
    """
    from gradatim.cli.runs import find_run, refuse_choice_and_mean
    from gradatim.config.rules_pairs import is_pairs

    problems = []
    if text == "":
        problems.append(Problem(where="--text", what="the path is empty", attempt="name a file"))
    if compare and len(runs) == 1:
        problems.append(Problem(where="--compare", what="there is nothing to compare this run with",
                                got="1 run", allowed="RUN OTHER…", attempt="leave out --compare"))  # fmt: skip
    if (source is None) != (target is None):
        lacking = "--target" if target is None else "--source"
        problems.append(Problem(where="--source --target", what="pairs have two sides", allowed="both or neither",
                                attempt=f"{lacking} FILE besides"))  # fmt: skip
    if not -10 <= length_penalty <= 10:  # also refuses NaN
        problems.append(
            Problem(where="--length-penalty", what="out of range", got=str(length_penalty), allowed="-10 to 10")
        )
    if problems:
        raise ConfigError(*problems)
    refuse_choice_and_mean(average)
    opened = find_run(runs[0], checkpoint)
    if is_pairs(opened.config.data):
        if text is not None or stride is not None:
            raise ConfigError(Problem(where="--text" if text is not None else "--stride",
                                      what="translators are judged on pairs, sentence by sentence",
                                      attempt="--source FILE --target FILE" if text is not None
                                      else "leave --stride out"))  # fmt: skip
        _translators(runs, source, target, beams, length_penalty, checkpoint, average, as_json)
        return
    if source is not None:
        raise ConfigError(Problem(where="--source", what="this run does not translate", attempt="--text FILE"))
    if len(runs) > 1:
        from gradatim.cli.evaluate_ladder import judge_rungs, shown

        document = judge_rungs(
            runs, partial(find_run, checkpoint=checkpoint), partial(_rung, checkpoint, text, stride, average),
            one_text=text is not None,
        )  # fmt: skip
        emit(document, as_json, lambda: shown(document))
        return
    if opened.config.task.kind != "none":
        if stride is not None:
            what = "this model reads rows, not windows that advance"
            raise ConfigError(Problem(where="--stride", what=what, attempt="leave --stride out"))
        judged = judge_task(opened, checkpoint, text, average)
        emit(_NOT_ASKED | judged, as_json, lambda: _answers(judged))
        return
    if opened.config.model.kind == "bert":
        if stride is not None:
            what = "this model reads rows, not windows that advance"
            raise ConfigError(Problem(where="--stride", what=what, attempt="leave --stride out"))
        found = _blanks(opened, checkpoint, text, average)
        emit(_NOT_ASKED | found, as_json, lambda: _facts(found))
        return
    facts = asdict(_rung(checkpoint, text, stride, average, opened))
    emit(facts, as_json, lambda: _facts(facts))


def _rung(checkpoint: str, text: str | None, stride: int | None, average: int, opened: Run) -> Evaluation:
    """The figures of a language model, on a file or on its own held-out text."""
    from gradatim.evaluate.perplexity import evaluate_file, evaluate_text, evaluate_tokens

    model = opened.model(checkpoint, say, average)
    if stride is not None and model.context is None:
        say("the model reads the text in one go, so --stride changes nothing")
    elif stride is not None and model.context is not None and stride > model.context:
        raise ConfigError(Problem(where="--stride", what="windows further apart than they are long skip tokens",
                                  got=str(stride), allowed=f"1 to {model.context}, the context",
                                  attempt=f"--stride {model.context}"))  # fmt: skip
    if text is not None:
        return evaluate_file(model, opened.tokenizer, opened.config.data, Path(text), stride, say)
    if (split := _files_held_out(opened)) is not None:
        names = getattr(opened.config.data, split)
        say(_on(split))
        return evaluate_text(model, opened.tokenizer, opened.config.data, names, stride, say, split=split)
    file = _held_out(opened)
    return evaluate_tokens(model, opened.tokenizer, file.tokens, file.meta.bytes, stride)


def _facts(facts: dict[str, Any]) -> Table:
    return Table(["", "value"], [[name.replace("_", " "), value] for name, value in facts.items()])


def _answers(facts: dict[str, Any]) -> list[str | Table]:
    rows = facts.get("by_label", [])
    tables: list[str | Table] = [_facts({name: value for name, value in facts.items() if name != "by_label"})]
    columns = ["label", "precision", "recall", "f1", "support"]
    return [*tables, "", Table(columns, [list(row.values()) for row in rows])] if rows else tables


def judge_task(run: Run, checkpoint: str, text: str | None, average: int) -> dict[str, Any]:
    """The figures of a model that was tuned for a task: on a table, or the run's test rows, or its validation rows."""
    from gradatim.cli.runs import open_tuned
    from gradatim.text.examples import examples
    from gradatim.text.prepare_task import unseen
    from gradatim.text.sources import Tally
    from gradatim.text.table import names_of, table_rows

    data, tally = run.config.data, Tally()
    split = "test" if text is not None or names_of(data, "test") else "valid"
    names = (text,) if text is not None else names_of(data, split)
    if not names:
        raise DataError(Problem(where=str(run.directory), what="the run has neither test nor validation rows",
                                attempt="--text FILE"))  # fmt: skip
    found = list(examples(table_rows(names, split, data, tally), run.config.task))
    if not found:
        raise DataError(Problem(where=", ".join(names), what="there are no rows", attempt="name a table with rows"))
    unseen(found, run.labels, run.config.task.kind)
    say(f"on {len(found):,} rows" + ("" if text else f" of the run's {split} part"))
    for what, count in tally.dropped.items():
        say(f"{what}: {count:,}")
    return open_tuned(run, checkpoint, average).judge(found)


def _files_held_out(run: Run) -> str | None:
    """``test`` or ``valid`` where that names files: they are read with the run's tokenizer, without the training text.

    None where there is no such text, or where it is a part of a corpus, which is checked for being the same.
    """
    from gradatim.text.sources import is_corpus

    split = "test" if run.config.data.test else "valid"
    names = getattr(run.config.data, split)
    return split if names and not any(map(is_corpus, names)) else None


def _on(split: str) -> str:
    return f"on the run's {'validation' if split == 'valid' else split} text"


def _held_out(run: Run) -> TokenFile:
    """The run's test text, or its validation text."""
    from gradatim.text.prepare import prepare
    from gradatim.text.sources import brings_its_own_splits

    where, data = str(run.directory), run.config.data
    if not (data.test or data.valid or brings_its_own_splits(data.train)):
        raise DataError(
            Problem(where=where, what="the run has neither test nor validation text", attempt="--text FILE")
        )
    prepared = prepare(data, say=say)
    split, file = ("test", prepared.test) if prepared.test is not None else ("valid", prepared.valid)
    assert file is not None
    if prepared.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise DataError(Problem(where=where, what="the text has changed since the run began", attempt="--text FILE"))
    say(_on(split))
    return file


def _blanks(run: Run, checkpoint: str, text: str | None, average: int) -> dict[str, Any]:
    """The figures of a model that fills in blanks and judges pairs."""
    import tempfile
    from dataclasses import replace

    from gradatim.evaluate.masked import evaluate_masked
    from gradatim.models.bert import BERT
    from gradatim.text.masked_rows import MaskedRows
    from gradatim.text.prepare import prepare
    from gradatim.text.sources import Tally, is_corpus, read_documents

    config = run.config
    model = run.network(checkpoint, say, average)
    assert isinstance(model, BERT)
    with tempfile.TemporaryDirectory() as folder:
        split = None if text is not None else _files_held_out(run)
        if text is None and split is None:
            file = _held_out(run)
        else:
            own = replace(config.data.tokenizer, path=str(run.directory / "tokenizer.json"))
            names = getattr(config.data, split) if split is not None else (str(text),)
            data = replace(config.data, train=names, valid=(), test=(), tokenizer=own)
            if split is not None:
                say(_on(split))
            if not any(map(is_corpus, names)):  # say where the files that cannot be read were named
                where = "" if split is not None else "--text"
                if next(read_documents(names, split or "test", config.data, Tally(), where), None) is None:
                    raise DataError(Problem(where=", ".join(names), what="there is no text in it",
                                            attempt="name a file that holds text"))  # fmt: skip
            prepared = prepare(data, Path(folder) / "text", say)
            file = prepared.test or prepared.train  # a corpus that brings its own parts was trained on
        if split is None and text is not None and len(file) < 2 and model.config.pairs == "next-sentence":
            ends = {"line": "with each line", "blank-line": "with a blank line", "file": "with its file"}
            raise DataError(Problem(where="--text", what="every other B is of another document, and this text is one",
                                    allowed=f"two documents; in this run one ends {ends[config.data.document]}",
                                    attempt="a longer text"))  # fmt: skip
        unknown, words = int((file.tokens == run.tokenizer.unknown).sum()), len(file.tokens) - len(file)
        if 2 * unknown > words:
            say(f"{unknown:,} of {words:,} words are unknown to the run's tokenizer, and read as one and the same")
        rows = MaskedRows(
            file, run.tokenizer, model.config, config.context, config.global_batch, config.seed, config.data.packing
        )
        return {"unknown": unknown, **asdict(evaluate_masked(model, rows))}


def _translators(
    runs: tuple[Path, ...], source: str | None, target: str | None, beams: int, alpha: float, checkpoint: str,
    average: int, as_json: bool,
) -> None:  # fmt: skip
    from gradatim.cli.runs import open_translator
    from gradatim.evaluate.bleu import compare, remark
    from gradatim.evaluate.translation import evaluate_pairs

    found: list[tuple[Path, TranslationEvaluation, list[str]]] = []
    pairs: list[Pair] = []
    every = [(run, *open_translator(run, checkpoint, average)) for run in runs]
    for run, opened, _ in every:  # what is wrong with one is said before another is judged for minutes
        own = _pairs(opened, source, target, quiet=bool(pairs))
        if pairs and own != pairs:
            raise DataError(Problem(where=str(run), what="this run is judged on other pairs than the first",
                                    got=f"{len(own):,} pairs", allowed=f"the {len(pairs):,} pairs of {runs[0]}",
                                    attempt="--source FILE --target FILE"))  # fmt: skip
        pairs = own
    lowercase, tell = False, _now_and_then()
    for run, opened, translating in every:
        lowercase = lowercase or translating.tokenizer.lowercase
        tokenised = opened.config.data.tokenised
        note = remark([pair[1] for pair in pairs], tokenised)
        if note and not found:
            say(note)
        result, hypotheses = evaluate_pairs(translating, pairs, tokenised=tokenised, beams=beams, alpha=alpha, say=tell)
        found.append((run, result, hypotheses))
    if len(found) == 1:
        facts = asdict(found[0][1])
        emit(facts, as_json, lambda: _one(facts))
        return
    references = [pair[1] for pair in pairs]
    first = found[0]
    differences = [
        {"run": str(run), "baseline": str(first[0]),
         **asdict(compare(hypotheses, first[2], references, lowercase=lowercase))}
        for run, _, hypotheses in found[1:]
    ]  # fmt: skip
    document = {
        "runs": [{"run": str(run), **asdict(result)} for run, result, _ in found],
        "comparisons": differences,
    }
    emit(document, as_json, lambda: _several(document))


def _now_and_then() -> Callable[[str], None]:
    """How far it is: on a terminal each time, into a log at most every ten seconds."""
    import sys
    import time

    last = time.monotonic()

    def tell(message: str) -> None:
        nonlocal last
        if sys.stderr.isatty() or time.monotonic() - last >= SECONDS_BETWEEN:
            last = time.monotonic()
            say(message)

    return tell


def _pairs(run: Run, source: str | None, target: str | None, quiet: bool = False) -> list[Pair]:
    """What to judge on: the files given, or the run's test pairs, or its validation pairs."""
    from dataclasses import replace

    from gradatim.cli.translate import warn_direction
    from gradatim.text.pairs import read_pairs
    from gradatim.text.sources import Tally

    data, tally = run.config.data, Tally()
    if source is not None and target is not None:
        _refuse_other_languages(data, source, target)
        data = replace(data, test=(), split="given", test_source=(source,), test_target=(target,))
    for split in ("test",) if source is not None else ("test", "valid"):
        try:
            found = read_pairs(data, split, tally)
        except DataError as error:
            named = {"data.test_source": "--source", "data.test_target": "--target"} if source is not None else {}
            raise DataError(*(replace(each, where=named.get(each.where, each.where)) for each in error.problems)) from (
                None
            )
        if found:
            if not quiet:
                say(f"on {len(found):,} pairs" + ("" if source else f" of the run's {split} part"))
                for what, count in tally.dropped.items():
                    say(f"{what}: {count:,}")
                warn_direction(run, [pair[0] for pair in found], [pair[1] for pair in found])
            return found
    if source is not None:
        raise DataError(Problem(where=f"{source} and {target}", what="there are no pairs",
                                attempt="name files with a sentence on both sides of a line"))  # fmt: skip
    raise DataError(
        Problem(where=str(run.directory), what="the run has neither test nor validation pairs",
                attempt="--source FILE --target FILE")
    )  # fmt: skip


def _refuse_other_languages(data: DataConfig, source: str, target: str) -> None:
    """As training does, by the endings of files."""
    from gradatim.config.rules_pairs import not_of

    first, second = data.source_language, data.target_language
    crossed = source.endswith(f".{second}") and target.endswith(f".{first}")
    problems = []
    for flag, name, own, other in (("--source", source, first, second), ("--target", target, second, first)):
        if what := not_of(name, own, other):
            attempt = f"--source {target} --target {source}" if crossed else f"{flag} FILE.{own}"
            problems.append(Problem(where=flag, what=what, got=name, allowed=f"a file of {own}", attempt=attempt))
    if problems:
        raise ConfigError(*problems)


def _one(facts: dict[str, Any]) -> list[str | Table]:
    rows = facts["by_source_length"]
    plain = {name: value for name, value in facts.items() if name != "by_source_length"}
    by_length = Table(["source words", "sentences", "BLEU"], [list(row.values()) for row in rows])
    return [_facts(plain), "", by_length]


def _several(document: dict[str, Any]) -> list[str | Table]:
    names = ["bleu", "chrf", "bleu_tokenised", "perplexity", "sentences_per_second"]
    runs = [[row["run"], *(row[name] for name in names)] for row in document["runs"]]
    lengths = [part["words"] for part in document["runs"][0]["by_source_length"]]
    by_length = [[row["run"], *(part["bleu"] for part in row["by_source_length"])] for row in document["runs"]]
    pairs = [[row["run"], row["difference"], row["low"], row["high"], row["p"]] for row in document["comparisons"]]
    signature = document["runs"][0]["signature"]
    return [
        Table(["run", *(name.replace("_", " ") for name in names)], runs),
        f"sacreBLEU {signature}; bleu tokenised by {document['runs'][0]['bleu_tokenised_by']}",
        "",
        Table(["BLEU by source words", *lengths], by_length),
        "",
        Table(
            ["run", "BLEU less the first's", "from", "to", "p"], pairs, "paired bootstrap, 1,000 samples, 95 % between"
        ),
    ]
