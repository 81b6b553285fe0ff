"""A run whose embedding begins as counted word vectors (``word_vectors: counted``, ``text/word_vectors.py``).

The process that leads counts once, before the first step, and keeps the vectors in the run directory; each rank of a
layout reads its part from there, so all begin as one process does. Everything else is drawn as ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError, ConfigError, Problem
from gradatim.shapes import parameters
from gradatim.text.prepare_task import AnyPrepared, PreparedTask
from gradatim.text.word_vectors import counted_vectors
from gradatim.train.publish import replace_durably
from gradatim.train.run_directory import WORD_VECTORS, Run, not_writable
from gradatim.train.start import Weights

EMBEDDING = "embed.tokens.weight"
"""The parameter that the vectors are for."""


def embedding_width(config: RunConfig, words: int) -> int:
    """Numbers a word is embedded as."""
    return next(shape.shape[1] for shape in parameters(config.model, words, config.context) if shape.name == EMBEDDING)


def refuse_few_words(config: RunConfig, prepared: AnyPrepared) -> None:
    """Raise ConfigError where the vocabulary is smaller than its vectors are wide: it has no so many directions."""
    words = prepared.tokenizer.vocab_size
    width = embedding_width(config, words)
    if words < width:
        raise ConfigError(
            Problem(
                where="word_vectors",
                what=f"counted vectors of {words:,} words have at most as many numbers, and the embedding is wider",
                got=str(width),
                allowed=f"at most {words}",
                attempt="--word_vectors drawn",
            )
        )


def keep_vectors(run: Run, config: RunConfig, prepared: AnyPrepared, say: Callable[[str], None]) -> None:
    """Count and write them, where that is not done already."""
    path = run.directory / WORD_VECTORS
    if path.is_file():
        return
    started, words = time.perf_counter(), prepared.tokenizer.vocab_size
    assert not isinstance(prepared, PreparedTask)  # the rules see to it
    vectors = counted_vectors(prepared.train, words, embedding_width(config, words))
    try:
        replace_durably(path, save({EMBEDDING: vectors}))
    except OSError as error:
        raise not_writable(run.directory, error) from None
    say(f"counted the neighbours of {words:,} words for their vectors in {time.perf_counter() - started:.1f} s")


def kept_vectors(run: Run, config: RunConfig) -> Weights:
    """What is kept, as weights to start from; all other parameters are absent.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = run.directory / WORD_VECTORS
    try:
        with safe_open(path, framework="pt") as file:
            vectors = file.get_tensor(EMBEDDING)
    except (OSError, SafetensorError) as error:
        what = "the word vectors that this run is to begin with cannot be read"
        attempt = "remove the file: they are counted again"
        raise CheckpointError(Problem(where=str(path), what=what, got=str(error)[:200], attempt=attempt)) from None
    names = [shape.name for shape in parameters(config.model, len(vectors), config.context)]
    return Weights(
        str(path), config.model, None, None, run.directory / "tokenizer.json", {EMBEDDING: tuple(vectors.shape)},
        tuple(name for name in names if name != EMBEDDING), lambda _: vectors,
    )  # fmt: skip
