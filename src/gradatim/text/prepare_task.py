"""From a task's tables to ids and numbered labels: read, learn (or take) the tokenizer, encode, count.

Labels are those of the training rows, in alphabetical order (numbers by size); they are kept in the run, and one that
only other parts have is an error, for no output of the head stands for it. Tables are read afresh by every process:
nothing is cached but the tokenizer that a run keeps.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradatim.config.settings import BertConfig, RunConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.errors import DataError, Problem
from gradatim.text.examples import Answer, Example, examples
from gradatim.text.prepare import Prepared, prepare, quiet
from gradatim.text.sources import Tally, files_of
from gradatim.text.table import MADE, Row, names_of, table_rows
from gradatim.text.tokenizer import Ids, Tokenizer, load_tokenizer
from gradatim.text.vocabulary import train_tokenizer

SPLITS = ("train", "valid", "test")
NO_ANSWER = "no answer"
"""A span task's one label, where training has passages that do not answer."""
SHOWN = 12
"""Labels that a message lists."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example in ids."""

    parts: tuple[Ids, ...]
    """Of each text; of a task's words, all of them in a row."""
    label: Any = None
    """A label's number (classify), a number (regress), one for each word (tag), the right choice, or the first and last
    of the passage's tokens that answer, -1 where none does (span); None where there is none."""
    places: Ids | None = None
    """tag: which token speaks for each word, -1 for a word without tokens."""
    offsets: tuple[tuple[int, int], ...] = ()
    """span: the characters of each token of the passage."""


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task's rows, ready for training. Stands where ``Prepared`` does for plain text."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    """What the numbers of classes mean (span: whether no answer is one); none of other tasks."""
    parts: dict[str, list[Encoded]]
    """Of train, and of valid and test where there are any."""
    report: dict[str, Any]
    fingerprint: str
    """Of the settings and the tables."""
    read: dict[str, list[Example]] = field(default_factory=dict)
    """The same rows before they were encoded."""
    source_tokenizer: None = None
    """There are no pairs of languages."""

    @property
    def valid(self) -> list[Encoded] | None:
        """The rows that training is judged on."""
        return self.parts.get("valid")


AnyPrepared = Prepared | PreparedTask


def prepare_run(config: RunConfig, say: Callable[[str], None] = quiet) -> AnyPrepared:
    """What a run reads: prepared text, or a task's rows. Raises what ``prepare`` and ``prepare_task`` do."""
    return prepare(config.data, say=say) if config.task.kind == "none" else prepare_task(config, say)


def prepare_task(config: RunConfig, say: Callable[[str], None] = quiet) -> PreparedTask:
    """Read a task's tables.

    Raises:
        DataError: a table that cannot be read, rows without text or label, a label that training has not seen.
    """
    data, task = config.data, config.task
    read: dict[str, list[Example]] = {}
    splits: dict[str, Any] = {}
    for split in SPLITS:
        names = names_of(data, split)
        if not names:
            continue
        tally = Tally()
        rows = table_rows(names, split, data, tally)
        found = list(examples(_told_of_columns(rows, task, say) if split == "train" else rows, task))
        empty = sum(example.empty for example in found)
        if empty and split == "train":
            tally.dropped["rows without text"] += empty
            found = [example for example in found if not example.empty]
        elif empty:
            say(f"{split}: {empty:,} rows have no text, and are judged all the same")
        if not found:
            raise DataError(Problem(where=f"data.{split}", what="there are no rows", got=", ".join(names),
                                    attempt="name tables with rows"))  # fmt: skip
        tally.tell(say, split)
        read[split] = found
        splits[split] = {"rows": len(found), "dropped": dict(tally.dropped)}
    labels = label_names(read["train"], task.kind)
    counts = {split: _count(found, task.kind) for split, found in read.items()}
    for split, found in read.items():
        unseen(found, labels, task.kind)
        splits[split]["labels"] = counts[split]
        say(_told(split, len(found), counts[split]))
    tokenizer = _tokenizer(config, read["train"], say)
    parts = {split: encode(found, tokenizer, config, labels) for split, found in read.items()}
    report = {"splits": splits, "labels": list(labels), "tokenizer": tokenizer.fingerprint,
              "vocabulary": tokenizer.vocab_size}  # fmt: skip
    return PreparedTask(tokenizer, labels, parts, report, _fingerprint(config, tokenizer), read)


def _told_of_columns(
    rows: Iterator[tuple[str, Row]], task: TaskConfig, say: Callable[[str], None]
) -> Iterator[tuple[str, Row]]:
    """The rows; before the first, what they have that the task leaves unread."""
    for number, (where, row) in enumerate(rows):
        unread = [name for name in row if name not in {task.text, task.text_b, task.label, *task.choices}]
        if number == 0 and unread:
            pairs = task.kind in ("classify", "regress") and task.text_b is None
            hint = "; a second text is named by task.text_b" if pairs else ""
            say(f"columns that are not read: {', '.join(map(str, unread))}{hint}")
        yield where, row


def label_names(found: Sequence[Example], kind: str) -> tuple[str, ...]:
    """The labels that occur, in order; none where a task has numbers or choices."""
    if kind == "span":
        return (NO_ANSWER,) if any(isinstance(e.label, Answer) and not e.label.texts for e in found) else ()
    if kind not in ("classify", "tag"):
        return ()
    names = set(_labels(found))
    numbers = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def _labels(found: Sequence[Example]) -> Iterator[str]:
    for example in found:
        if isinstance(example.label, str):
            yield example.label
        elif isinstance(example.label, tuple):
            yield from example.label


def _count(found: Sequence[Example], kind: str) -> dict[str, int]:
    if kind == "span":
        without = sum(isinstance(example.label, Answer) and not example.label.texts for example in found)
        return {"answered": len(found) - without, "without an answer": without}
    if kind == "choice":
        return {str(label): count for label, count in sorted(Counter(example.label for example in found).items())}
    return dict(Counter(_labels(found)).most_common())


def _told(split: str, rows: int, counts: dict[str, int]) -> str:
    """A line of how many rows there are, and of how their labels are shared out."""
    if not counts:
        return f"{split}: {rows:,} rows"
    total = sum(counts.values())
    shown = [f"{name} {count:,} ({count / total:.1%})" for name, count in list(counts.items())[:SHOWN]]
    more = f", and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    return f"{split}: {rows:,} rows; {', '.join(shown)}{more}"


def unseen(found: Sequence[Example], labels: Sequence[str], kind: str) -> None:
    """Refuse labels that no training row has. Raises DataError, with each of them where it first stands."""
    if kind not in ("classify", "tag"):
        return
    known, first = set(labels), dict[str, str]()
    for example in found:
        for label in _labels([example]):
            if label not in known:
                first.setdefault(label, example.where)
    listed = ", ".join(labels[:SHOWN]) + (f", and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else "")
    if first:
        raise DataError(*(
            Problem(where=where, what="no training row has this label, so the model cannot answer it", got=label[:100],
                    allowed=listed, attempt="correct the label, leave the row out, or train with rows that have it")
            for label, where in list(first.items())[:SHOWN]
        ))  # fmt: skip


# --------------------------------------------------------------------------- tokens


def _tokenizer(config: RunConfig, found: Sequence[Example], say: Callable[[str], None]) -> Tokenizer:
    """The one that the config names, or that of the weights to start from, or one learned from the training rows."""
    own = config.data.tokenizer.path
    if own is None and config.init_from is not None:
        path = Path(config.init_from) / "tokenizer.json"
        if not path.is_file():
            what = "the weights to start from have no tokenizer.json, so nobody knows what their ids mean"
            raise DataError(Problem(where=config.init_from, what=what, attempt="--data.tokenizer.path FILE"))
        own = str(path)
    if own is not None:
        say(f"taking the vocabulary of {own}")
        tokenizer = load_tokenizer(Path(own))
    else:
        say(f"learning a {config.data.tokenizer.kind} vocabulary from the training rows")
        texts = [" ".join(e.texts) if config.task.kind == "tag" else text for e in found for text in e.texts]
        tokenizer = train_tokenizer(config.data.tokenizer, dict.fromkeys(texts))
    if isinstance(config.model, BertConfig) and tokenizer.marks is None:
        what = "this tokenizer has no [CLS], [SEP], [MASK] and [PAD], which BERT needs"
        raise DataError(Problem(where="data.tokenizer", what=what, attempt="data.tokenizer.kind wordpiece"))
    return tokenizer


def encode(found: Sequence[Example], tokenizer: Tokenizer, config: RunConfig, labels: Sequence[str]) -> list[Encoded]:
    """The ids of some examples, and the numbers of their labels."""
    numbers = {label: number for number, label in enumerate(labels)}
    kind = config.task.kind
    if kind == "tag":
        last = not isinstance(config.model, BertConfig)  # a GPT has read the whole word only there
        return [_words(example, tokenizer, numbers, last) for example in found]
    if kind == "span":
        return [_passage(example, tokenizer) for example in found]
    flat = tokenizer.encode_batch([text for example in found for text in example.texts])
    done, at = [], 0
    for example in found:
        parts = tuple(flat[at : at + len(example.texts)])
        at += len(example.texts)
        label = numbers[example.label] if isinstance(example.label, str) else example.label
        done.append(Encoded(parts, label))
    return done


def _words(example: Example, tokenizer: Tokenizer, numbers: dict[str, int], last: bool) -> Encoded:
    # Words of these know of the space before them, which some put there themselves.
    spaced = tokenizer.kind in ("bpe", "char") and not tokenizer.prepends
    pieces = tokenizer.encode_batch([f" {w}" if spaced and i else w for i, w in enumerate(example.texts)])
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    ends = np.cumsum(sizes)
    places = np.where(sizes > 0, ends - 1 if last else ends - sizes, -1)
    label = np.array([numbers[tag] for tag in example.label], np.int64) if isinstance(example.label, tuple) else None
    return Encoded((np.concatenate([*pieces, np.zeros(0, np.int64)]),), label, places)


def _passage(example: Example, tokenizer: Tokenizer) -> Encoded:
    question, passage = example.texts
    found = tokenizer.engine.encode(passage, add_special_tokens=False)
    offsets = tuple((int(begin), int(end)) for begin, end in found.offsets)
    answer, label = example.label, None
    if isinstance(answer, Answer):
        inside = [n for n, (begin, end) in enumerate(offsets) if end > answer.begin and begin < answer.end]
        # An answer of which no token is left lies nowhere in the row, like one that the context cuts off.
        ends = [inside[0], inside[-1]] if inside else [0, len(offsets)]
        label = np.array(ends if answer.texts else [-1, -1], np.int64)
    ids = (np.asarray(tokenizer.encode(question), np.int64), np.asarray(found.ids, np.int64))
    return Encoded(ids, label, offsets=offsets)


def _fingerprint(config: RunConfig, tokenizer: Tokenizer) -> str:
    facts = asdict(config.data)
    for unread in ("cache", "packing", "tokenizer"):
        del facts[unread]
    state = hashlib.sha256(json.dumps([facts, asdict(config.task), tokenizer.fingerprint]).encode())
    for name in (name for split in SPLITS for name in getattr(config.data, split)):
        for path in [] if name in MADE or name.startswith("hf:") else files_of(name):
            with path.open("rb") as file:
                state.update(str(path).encode() + hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()
