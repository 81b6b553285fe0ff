"""A Hugging Face directory as a run: its weights in a checkpoint that any layout reads, written part by part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from torch import Tensor

from gradatim.config.settings import BertConfig, DataConfig, RunConfig, TokenizerConfig
from gradatim.errors import DataError, Problem
from gradatim.interop.beside import remembered
from gradatim.interop.huggingface.directory import HuggingFaceDirectory, in_parts, open_directory
from gradatim.models import new_model
from gradatim.models.layers.init import draw
from gradatim.shapes import parameters
from gradatim.text.tokenizer import BOUNDARY, UNKNOWN, Tokenizer, load_tokenizer, wrap
from gradatim.text.words import LIBRARY_SPACE
from gradatim.train.checkpoint import Held, complete, write_part
from gradatim.train.continuing import training_hash
from gradatim.train.manifest import Manifest
from gradatim.train.publish import new_temporary
from gradatim.train.run_directory import MODEL, Run, config_error_existing, config_error_foreign

PART_BYTES = 2 << 30
"""Weights held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of a directory."""

    run: str
    architecture: str
    parameters: int
    absent: tuple[str, ...]
    """Parameters that the directory lacks, drawn as for a new model."""
    tokenizer: str
    """Its kind, or that there was none."""


def import_directory(
    source: Path, directory: Path, say: Callable[[str], None] = lambda _: None, document: str | None = None
) -> Imported:
    """Make a run of a Hugging Face directory.

    ``document``: as ``data.document``; None: what the directory remembers, or a file, of a BERT what blank lines end.

    Raises:
        ConfigError: there is a run in the directory already.
        DataError: weights, config or tokenizer do not fit; see ``open_directory``.
    """
    run = Run(directory)
    if run.exists:
        raise config_error_existing(directory, "name another RUN")
    if run.foreign:
        raise config_error_foreign(directory, "name a RUN that is empty or new")
    found = open_directory(source)
    tokenizer, told = tokenizer_of(found)
    if tokenizer.vocab_size > found.vocab_size:
        raise DataError(
            Problem(
                where=str(found.path / "tokenizer.json"),
                what="this tokenizer does not belong to these weights: it has words that they know nothing of",
                got=f"{tokenizer.vocab_size:,} words",
                allowed=f"at most {found.vocab_size:,}",
                attempt="the tokenizer.json that the model was trained with",
            )
        )
    if tokenizer.vocab_size < found.vocab_size:
        say(f"{found.vocab_size - tokenizer.vocab_size:,} rows of the embedding stand for no word and are left out")
    for name in found.absent:
        say(f"{source} has no {name}: it is drawn anew")
    stand_in = not (found.path / "tokenizer.json").is_file()
    kind: TokenizerConfig = TokenizerConfig(
        kind="wordpiece" if isinstance(found.config, BertConfig) else "bpe",
        path=None if stand_in else str(found.path / "tokenizer.json"),
    )
    usual = "blank-line" if isinstance(found.config, BertConfig) else "file"
    document = document or remembered(source) or usual
    data = DataConfig(train=(), tokenizer=kind, document=document)  # type: ignore[arg-type]
    config = RunConfig(model=found.config, context=found.context, data=data)
    run = Run.create(directory, config, tokenizer)
    manifest = Manifest(step=0, tokens=0, samples=0, config_hash=training_hash(config), data_fingerprint="",
                        tokenizer_fingerprint=tokenizer.fingerprint)  # fmt: skip
    count = _write(found, config, tokenizer.vocab_size, run.checkpoints, manifest)
    return Imported(
        run=str(directory), architecture=found.architecture, parameters=count, absent=found.absent, tokenizer=told
    )


def _write(found: HuggingFaceDirectory, config: RunConfig, words: int, checkpoints: Path, manifest: Manifest) -> int:
    """A checkpoint of the weights, holding one part of them at a time; how many numbers it has."""
    shapes = {shape.name: shape.shape for shape in parameters(config.model, words, config.context)}
    sizes = {name: torch.Size(shape).numel() * 4 for name, shape in shapes.items()}
    temporary = new_temporary(checkpoints, manifest.step)
    try:
        parts = []
        for number, names in enumerate(in_parts(list(shapes), sizes, PART_BYTES)):
            tensors = {name: weight(found, config, name, shapes[name], words) for name in names}
            held = [Held(MODEL + name, tuple(t.shape), [((0,) * t.dim(), t)]) for name, t in tensors.items()]
            parts.append(write_part(temporary, number, held))
        complete(temporary, manifest, parts)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def weight(found: HuggingFaceDirectory, config: RunConfig, name: str, shape: tuple[int, ...], words: int) -> Tensor:
    """One of our parameters in float32, of its padded shape; drawn as for a new model where the directory lacks it."""
    if name in found.absent:
        with torch.device("meta"):
            model = new_model(config.model, words, config.context)
        return draw(model.initial(name), name, shape, config.seed)
    tensor = found.read(name, words).float()
    if tensor.shape != shape:  # padding of the vocabulary
        padded = tensor.new_zeros(shape)
        padded[: len(tensor)] = tensor
        return padded
    return tensor


# --------------------------------------------------------------------------- tokenizers


def tokenizer_of(found: HuggingFaceDirectory) -> tuple[Tokenizer, str]:
    """The directory's tokenizer, or one of numbers where there is none; and what to tell of it."""
    path = found.path / "tokenizer.json"
    if path.is_file():
        tokenizer = load_tokenizer(path)
        return tokenizer, type(tokenizer).__name__
    return numbers(found), "none: words are the numbers of tokens"


def numbers(found: HuggingFaceDirectory) -> Tokenizer:
    """A tokenizer whose words are the ids themselves, ``17 4 256``, so that a model without one can be asked."""
    size = found.vocab_size
    if isinstance(found.config, BertConfig):
        names = [str(number) for number in range(size)]
        marks = {"[PAD]": 0, "[UNK]": size - 1, "[CLS]": size - 4, "[SEP]": size - 3, "[MASK]": size - 2}
        for name, number in marks.items():
            names[number] = name
        engine = tokenizers.Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
        engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return wrap(engine)
    facts = json.loads((found.path / "config.json").read_text(encoding="utf-8"))
    end = facts.get("eos_token_id")
    end = end if isinstance(end, int) and 0 <= end < size else size - 1
    names = [str(number) for number in range(size)]
    names[end], names[end - 1] = BOUNDARY, UNKNOWN
    engine = tokenizers.Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token=UNKNOWN))
    engine.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(LIBRARY_SPACE), "removed")
    return wrap(engine)
