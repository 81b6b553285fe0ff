"""Weights to start from instead of drawing them: those of a run, or of a Hugging Face directory (``init_from``).

Only weights are taken; moments, counters and the order of samples begin anew. Whatever would make them mean something
else (other heads, another norm, another tokenizer) is refused with everything that differs, before one is read. Each
rank of a layout reads a whole tensor at a time and keeps its part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradatim.config.derived import OF_TRAINING
from gradatim.config.origin import SOURCE_TOKENIZER, is_run, nothing_to_start_from
from gradatim.config.settings import ModelConfig, RunConfig
from gradatim.config.tuned import AnyModelConfig, TunedConfig
from gradatim.errors import CheckpointError, Problem
from gradatim.shapes import VOCAB, parameters
from gradatim.shapes.bert import OF_PAIRS
from gradatim.text.tokenizer import Tokenizer, load_tokenizer
from gradatim.train.run_directory import Run


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights come from, as far as it must be known before they are read."""

    where: str
    config: ModelConfig
    fingerprint: str | None
    """Of the tokenizer whose ids they were trained with; None where there is none to compare with."""
    source_fingerprint: str | None
    """The same of a translator's sources."""
    tokenizer: Path
    shapes: dict[str, tuple[int, ...]]
    absent: tuple[str, ...]
    """Parameters that the source may lack and does: they are drawn."""
    read: Callable[[str], Tensor]
    """A whole parameter by its name."""
    head: tuple[str, tuple[str, ...]] = ("none", ())
    """What the head was tuned for: the task's kind and its labels."""
    digest: str = ""
    """Of the files that hold them."""
    step: int | None = None
    """Of a run's checkpoint."""
    words: tuple[int, int] = (0, 0)
    """Entries of the tokenizer, and of that of a translator's sources, where there are any to compare with."""


def open_weights(path: Path, which: str = "best") -> Weights:
    """The weights of a run's checkpoint, or of a Hugging Face directory.

    Raises:
        CheckpointError, DataError: it is neither, or cannot be used.
    """
    if is_run(path):
        run = Run.open(path)
        checkpoint = run.checkpoint(which)
        files = [(file.name, file.bytes, file.crc32) for file in checkpoint.manifest.files]
        shapes, read = run.weights(checkpoint)
        return Weights(
            str(path), run.config.model, run.tokenizer.fingerprint, run.source_tokenizer.fingerprint,
            path / "tokenizer.json", shapes, (), read, (run.config.task.kind, run.labels),
            hashlib.sha256(json.dumps(files).encode()).hexdigest(), checkpoint.step,
            (run.tokenizer.vocab_size, run.source_tokenizer.vocab_size),
        )  # fmt: skip
    if (nothing := nothing_to_start_from(path)) is not None:
        raise CheckpointError(nothing)
    from gradatim.interop.huggingface.directory import open_directory

    found = open_directory(path)
    own = found.path / "tokenizer.json"
    tokenizer = load_tokenizer(own) if own.is_file() else None
    fingerprint, entries = (None, 0) if tokenizer is None else (tokenizer.fingerprint, tokenizer.vocab_size)
    words = found.vocab_size  # rows that theirs have, where ours would be filled up to a multiple
    shapes = {shape.name: (words, *shape.shape[1:]) if shape.split == VOCAB else shape.shape
              for shape in parameters(found.config, words, found.context)}  # fmt: skip
    given = {name: shapes[name] for name in found.names()}
    return Weights(
        str(path), found.config, fingerprint, None, own, given, found.absent, lambda name: found.read(name).float(),
        digest=found.digest(), words=(entries, entries),
    )  # fmt: skip


class Start:
    """The weights of a run that is to begin, each of the shape that its model has.

    A task's head is taken only from a run of that task with the same labels; else it is drawn, and what the source has
    for other purposes is left.

    Args:
        weights: of the source.
        config: of the run.
        tokenizer: of the run.
        source_tokenizer: of a translation run.
        model: what its network is built from, where that is not the config's model alone.
        labels: of a task.

    Raises:
        CheckpointError: they are of another model or tokenizer, with everything that differs.
    """

    def __init__(
        self, weights: Weights, config: RunConfig, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None = None,
        model: AnyModelConfig | None = None, labels: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.weights, words = weights, tokenizer.vocab_size
        source_words = words if source_tokenizer is None else source_tokenizer.vocab_size
        model = model or config.model
        self.shapes = {shape.name: shape for shape in parameters(model, words, config.context, source_words)}
        tuned = isinstance(model, TunedConfig)
        same = weights.head == (config.task.kind, labels)
        drawn = [name for name in self.shapes if name.startswith("head.classifier.") and not same]
        drawn += [name for name in self.shapes if name.startswith(OF_PAIRS) and name not in weights.shapes]
        lacking = [name for name in weights.absent if name in self.shapes]
        self.drawn = tuple(dict.fromkeys([*lacking, *drawn]))
        """What the source has not: it stays as it was drawn."""
        self.left = tuned
        """Whether the source may have a head of another purpose."""
        self.words = {name: source_words if name.startswith("source_embed.") else words for name in self.shapes}
        settings = list(_other_settings(weights, config.model))
        tokenizers = list(_other_tokenizer(weights, tokenizer, source_tokenizer))
        # Of another model every shape would be told besides, of another tokenizer the number of its words.
        shapes = [] if settings else list(self._other_shapes(other_words=bool(tokenizers)))
        if problems := [*settings, *tokenizers, *shapes]:
            raise CheckpointError(*problems)

    def _other_shapes(self, other_words: bool) -> Iterator[Problem]:
        where, attempt = self.weights.where, "is it of another model?"
        for name, shape in self.shapes.items():
            if name in self.drawn:
                continue
            if name not in self.weights.shapes:
                yield Problem(where=where, what=f"there is no parameter {name}", attempt=attempt)
                continue
            found, wanted = self.weights.shapes[name], shape.shape
            least = self.words[name] if shape.split == VOCAB else wanted[0]
            rows_fit = found[0] >= least if self._cut(name) else found[0] == least
            rows_fit = rows_fit or (other_words and shape.split == VOCAB)
            if found[1:] != wanted[1:] or not rows_fit:
                what, got = f"{name} has another shape", str(list(found))
                shorter = name.endswith("embed.positions.weight") and found[1:] == wanted[1:]
                hint = f"--context {found[0]}" if shorter else attempt
                yield Problem(where=where, what=what, got=got, allowed=str([least, *wanted[1:]]), attempt=hint)
        for name in self.weights.shapes.keys() - self.shapes.keys():
            if name.startswith("head." if self.left else OF_PAIRS):
                continue
            yield Problem(where=where, what=f"the model has no parameter {name}", attempt=attempt)

    def _cut(self, name: str) -> bool:
        """Whether the source may have more rows: padding of words, positions beyond a shorter context."""
        return self.shapes[name].split == VOCAB or name.endswith("embed.positions.weight")

    def read(self, name: str, offset: tuple[int, ...], local: tuple[int, ...]) -> Tensor | None:
        """A rectangle of a parameter; None where the source has none, so that what was drawn stays."""
        if name in self.drawn:
            return None
        tensor, rows = self.weights.read(name), self.shapes[name].shape[0]
        if self.shapes[name].split == VOCAB:
            tensor = tensor[: self.words[name]]
        if len(tensor) < rows:
            tensor = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
        return tensor[tuple(slice(begin, begin + size) for begin, size in zip(offset, local))]


def _other_settings(weights: Weights, config: ModelConfig) -> Iterator[Problem]:
    theirs, ours = asdict(weights.config), asdict(config)
    grouped = any(each.get("n_kv_heads") for each in (theirs, ours))
    for each in (theirs, ours):  # null stands for a number
        each["n_kv_heads"] = each.get("n_kv_heads") or each.get("n_heads") if grouped else None
        each.pop("d_ff", None)  # the shapes tell
    if theirs.get("positions") != "rotary":
        theirs.pop("rope_theta", None)
        ours.pop("rope_theta", None)
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in OF_TRAINING and theirs.get(name) != ours.get(name):
            what = "the weights are of a model with another setting"
            got, allowed = str(ours.get(name)), str(theirs.get(name))
            attempt = f"--model.{name} {allowed}"
            yield Problem(where=f"model.{name}", what=what, got=got, allowed=allowed, attempt=attempt)


def _other_tokenizer(weights: Weights, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None) -> Iterator[Problem]:
    if weights.fingerprint is None and weights.source_fingerprint is None:
        return
    theirs, ours = weights.fingerprint, tokenizer.fingerprint
    their_source, our_source = weights.source_fingerprint, source_tokenizer.fingerprint if source_tokenizer else None
    attempt = f"--data.tokenizer.path {weights.tokenizer}"
    if our_source is not None and (sources := weights.tokenizer.parent / SOURCE_TOKENIZER).is_file():
        attempt += f" --data.tokenizer.source_path {sources} --data.joint false"
    elif our_source is not None and our_source != ours:
        attempt += " --data.joint true"
    if theirs is not None and theirs != ours:
        got, allowed = _told_apart((tokenizer.vocab_size, ours), (weights.words[0], theirs))
        yield Problem(
            where="data.tokenizer",
            what=f"the weights of {weights.where} were trained with another tokenizer, so ids would mean other words",
            got=got,
            allowed=allowed,
            attempt=attempt,
        )
        if (their_source, our_source) == (theirs, ours):  # of one tokenizer for both languages that is all
            return
    if source_tokenizer is not None and None not in (their_source, our_source) and their_source != our_source:
        got, allowed = _told_apart((source_tokenizer.vocab_size, our_source), (weights.words[1], their_source))
        yield Problem(
            where="data.tokenizer",
            what=f"the weights of {weights.where} were trained with another tokenizer of the sources",
            got=got,
            allowed=allowed,
            attempt=attempt,
        )


def _told_apart(ours: tuple[int, str | None], theirs: tuple[int, str | None]) -> tuple[str, str]:
    """Two tokenizers by the number of their entries, or by their fingerprints where that is the same."""
    if ours[0] != theirs[0]:
        return f"{ours[0]:,} entries", f"{theirs[0]:,} entries"
    return str(ours[1])[:16], str(theirs[1])[:16]
