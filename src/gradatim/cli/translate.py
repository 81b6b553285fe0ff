"""``gradatim translate RUN [FILE|-]``: translate sentences, one a line, and show where the model looked."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradatim.cli.output import Verb, emit, json_option, say
from gradatim.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from gradatim.decode.translate import Translated, Translating
    from gradatim.report.attention import Looked
    from gradatim.text.tokenizer import Tokenizer
    from gradatim.train import Run

EXAMPLES, EXAMPLE = 5, 30
"""Unknown words that are named, and the characters of each that are shown."""
FORMATS = (".png", ".svg", ".html", ".json", ".txt", ".pharaoh")


@click.command(cls=Verb)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option("--beams", type=click.IntRange(min=1), default=5, show_default=True, help="Hypotheses; 1 is greedy.")
@click.option("--n-best", type=click.IntRange(min=1), default=1, show_default=True, help="Translations of each.")
@click.option(
    "--length-penalty", type=float, default=1.0, show_default=True, help="Beams compare log-probability / length^this."
)
@click.option("--max-new", type=click.IntRange(min=1), help="Most tokens of a translation [twice the source's and 10].")
@click.option(
    "--attention", "picture", type=click.Path(path_type=Path, dir_okay=False),
    help="Write where the model looked: .png, .svg, .html, .json, or .txt (Pharaoh pairs of words).",
)  # fmt: skip
@click.option(
    "--forced",
    metavar="FILE",
    help="Translations to read instead of writing some: the log-probability of each, a tab and the text come back.",
)
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a step.")
@click.option("--average", type=click.IntRange(min=1), default=1, show_default=True, help="Mean of the newest so many.")
@json_option
def command(
    run: Path, file: str, beams: int, n_best: int, length_penalty: float, max_new: int | None, picture: Path | None,
    forced: str | None, checkpoint: str, average: int, as_json: bool,
) -> None:  # fmt: skip
    """Translate each line of FILE (or standard input) with the model of RUN; a line each comes back."""
    problems = []
    if n_best > beams:
        problems.append(
            Problem(where="--n-best", what="there are not so many beams", got=str(n_best), allowed=f"1 to {beams}",
                    attempt=f"--beams {n_best}")
        )  # fmt: skip
    if forced is not None and n_best > 1:
        problems.append(
            Problem(where="--n-best --forced", what="a given translation is one, and no others are searched for",
                    got=f"--n-best {n_best}", allowed="one of the two", attempt="leave --n-best out")
        )  # fmt: skip
    if not -10 <= length_penalty <= 10:  # also refuses NaN
        problems.append(
            Problem(where="--length-penalty", what="out of range", got=str(length_penalty), allowed="-10 to 10")
        )
    if picture is not None and picture.suffix.lower() not in FORMATS:
        problems.append(
            Problem(where="--attention", what="no such format", got=picture.name, allowed=", ".join(FORMATS),
                    attempt=str(picture.with_suffix(".png")))
        )  # fmt: skip
    elif picture is not None and not picture.absolute().parent.is_dir():
        missing = not any(above.is_file() for above in picture.absolute().parents)
        problems.append(
            Problem(where="--attention", what="there is no such folder", got=str(picture.parent),
                    attempt=f"mkdir -p {picture.parent}" if missing else "a file stands there: name another path")
        )  # fmt: skip
    if problems:
        raise ConfigError(*problems)

    from gradatim.cli.runs import open_translator, refuse_choice_and_mean
    from gradatim.decode.translate import align, translate

    refuse_choice_and_mean(average)
    opened, translating = open_translator(run, checkpoint, average)
    sentences = _lines(file)
    shows = picture is not None or as_json
    shows = shows and bool(translating.model.attention_names)
    if picture is not None:
        _refuse_picture(picture, translating, opened, sentences)
    targets = [] if forced is None else _lines(forced)
    warn_direction(opened, sentences, targets)
    if forced is None:
        found = translate(
            translating, sentences, beams=beams, n_best=n_best, alpha=length_penalty, max_new=max_new, attention=shows
        )
    else:
        if len(targets) != len(sentences):
            raise DataError(Problem(where=forced, what="every sentence needs its translation",
                                    got=f"{len(targets):,} lines", allowed=f"{len(sentences):,}"))  # fmt: skip
        _refuse_long(forced, targets, translating)
        found = [align(translating, *pair) for pair in zip(sentences, targets, strict=True)]
    report(found, translating)
    looked = [_looked(each, translating) for each in found] if shows else []
    if picture is not None:
        from gradatim.report.attention import write

        for note in write(picture, looked, translating.tokenizer.kind):
            say(note)
    emit(_document(found, looked), as_json, lambda: _answer(found, n_best, forced is not None))


def _lines(name: str) -> list[str]:
    """The sentences of a file or of standard input."""
    from gradatim.text.sources import Tally, mend, refuse_binary

    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except FileNotFoundError:
        raise DataError(Problem(where=name, what="there is no such file", attempt="check the path, or - for standard "
                                "input")) from None  # fmt: skip
    except IsADirectoryError:
        raise DataError(Problem(where=name, what="this is a folder", allowed="a file, a sentence a line")) from None
    except OSError as error:
        what = f"the text cannot be read ({error.strerror or error})"
        raise DataError(Problem(where=name, what=what, attempt="change its permissions, or name another")) from None
    refuse_binary(Path(name), io.BytesIO(raw))
    text = mend(raw.decode("utf-8", "replace").removeprefix("\ufeff"), Tally())
    if "\ufffd" in text and b"\xef\xbf\xbd" not in raw:
        say(f"{name}: bytes that are not UTF-8 were replaced")
    if not text:
        say(f"{name}: there are no sentences")
    return text.removesuffix("\n").split("\n") if text else []


def _refuse_picture(picture: Path, translating: Translating, run: Run, sentences: list[str]) -> None:
    if not translating.model.attention_names:
        raise ConfigError(Problem(where="--attention", what="this model has no attention to the source to show",
                                  got=f"kind {run.config.model.kind}",
                                  allowed="kind transformer, or seq2seq with attention"))  # fmt: skip
    many = sum(bool(sentence.strip()) for sentence in sentences)
    if picture.suffix.lower() in (".png", ".svg") and many != 1:
        raise ConfigError(Problem(where="--attention", what="a picture shows one sentence", got=f"{many} sentences",
                                  allowed="one sentence, or a .html, .json or .txt of all",
                                  attempt=str(picture.with_suffix(".html"))))  # fmt: skip


def _refuse_long(name: str, targets: list[str], translating: Translating) -> None:
    lengths = [len(ids) + 1 for ids in translating.tokenizer.encode_batch(targets)]
    problems = [
        Problem(where=f"{name}:{number}", what="the translation is longer than the context", got=f"{length:,} tokens",
                allowed=f"at most {translating.context:,}, the end included")
        for number, length in enumerate(lengths, 1) if length > translating.context
    ]  # fmt: skip
    if problems:
        raise DataError(*problems)


def warn_direction(run: Run, sources: list[str], targets: list[str]) -> None:
    """Say so where sources look like the language that is translated into, or targets like the other."""
    from gradatim.text.prepare_pairs import looks_like

    data, languages = run.config.data, run.languages
    if len(languages) != 2:
        return
    direction = f"and the run translates from {data.source_language} into {data.target_language}"
    backward = looks_like(" ".join(sources[:200]), languages) == data.target_language
    foreign = looks_like(" ".join(targets[:200]), languages) == data.source_language
    if backward and foreign:
        say(f"WARNING: the sources look like {data.target_language}, the targets like {data.source_language}, "
            f"{direction}; the two files may have changed places")  # fmt: skip
    elif backward:
        say(f"WARNING: this text looks like {data.target_language}, {direction}")
    elif foreign:
        say(f"WARNING: the translations look like {data.source_language}, {direction}")


def report(found: list[Translated], translating: Translating) -> None:
    """What was odd about the sentences, counted."""
    cut = [each for each in found if each.cut]
    unknown = sum(each.unknown for each in found)
    unended = sum(1 for each in found for best in each.translations[:1] if not best.ended)
    empty = sum(1 for each in found if not each.source.strip())
    if cut:
        say(
            f"{_many(len(cut), 'sentence')} longer than the context ({translating.context} tokens), cut: "
            f"{sum(each.cut for each in cut):,} tokens were not read"
        )
    if unknown:
        _name_unknown([each.source for each in found if each.unknown], unknown, translating.source_tokenizer)
    if given := sum(each.unknown_given for each in found):
        texts = [each.translations[0].text for each in found if each.unknown_given]
        _name_unknown(texts, given, translating.tokenizer, "of the given translations ")
    if unended:
        say(f"{_many(unended, 'translation')} reached the limit of length unfinished")
    if empty:
        say(f"{_many(empty, 'empty line')}, left empty")


def _name_unknown(texts: list[str], unknown: int, tokenizer: Tokenizer, whose: str = "") -> None:
    names = list(dict.fromkeys(piece for text in texts for piece in tokenizer.unseen(text)))
    some = [f"{name[:EXAMPLE]}…" if len(name) > EXAMPLE else name for name in names[:EXAMPLES]]
    some += ["…"] if len(names) > EXAMPLES else []
    noun = "character" if tokenizer.kind == "char" else "word"
    say(
        f"{_many(unknown, noun)} {whose}never seen in training, read as unknown"
        + (f": {', '.join(some)}" if some else "")
    )


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _looked(each: Translated, translating: Translating) -> Looked | None:
    from gradatim.report.attention import Looked

    if not each.translations or each.translations[0].attention is None:
        return None
    best = each.translations[0]
    assert best.attention is not None
    given = best.text if each.unknown_given else ""  # a word that the model itself calls unknown has no other name
    return Looked(
        _named(each.source_tokens, each.source, translating.source_tokenizer),
        _named(best.tokens, given, translating.tokenizer),
        translating.model.attention_names,
        best.attention.double().cpu().numpy(),
        each.source,
        each.cut,
    )


def _named(tokens: list[int], text: str, tokenizer: Tokenizer) -> list[str]:
    """Tokens as text, those that stand for unknown words as ‹word›."""
    words = iter(tokenizer.unseen(text))
    return [
        f"‹{word}›" if token == tokenizer.unknown and (word := next(words, None)) is not None
        else tokenizer.token_text(token)
        for token in tokens
    ]  # fmt: skip


def _document(found: list[Translated], looked: list[Looked | None]) -> list[dict[str, Any]]:
    document = []
    for place, each in enumerate(found):
        row: dict[str, Any] = {
            "source": each.source,
            "translations": [{"text": t.text, "log_probability": t.log_probability} for t in each.translations],
        }
        shown = looked[place] if looked else None
        row["attention"] = None if shown is None else shown.as_json()
        row |= {"source_tokens_cut": each.cut, "unknown": each.unknown}
        document.append(row)
    return document


def _answer(found: list[Translated], n_best: int, forced: bool) -> str | None:
    """What people read; of no sentences no line."""
    if not found:
        return None
    return _forced(found) if forced else _text(found, n_best)


def _forced(found: list[Translated]) -> str:
    """A line a pair: the log-probability of the given translation, and the translation."""
    return "\n".join(f"{t.log_probability:.3f}\t{t.text}" for each in found for t in each.translations)


def _text(found: list[Translated], n_best: int) -> str:
    """A line a sentence; of several translations, each with its log-probability and a blank line after the last."""
    if n_best == 1:
        return "\n".join(each.translations[0].text if each.translations else "" for each in found)
    return "\n".join(
        "".join(f"{t.log_probability:.3f}\t{t.text}\n" for t in each.translations) for each in found
    ).rstrip("\n")
