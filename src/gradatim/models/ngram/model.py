"""An n-gram model over the language-model protocol: tables of log-probabilities and weights, looked up with sorts.

The tables form a tree whose edges are words: node (k, i) is the i-th k-gram, its children the (k+1)-grams that continue
it. A query walks from each shorter context to the longer one; where the word is no child, the weights of the contexts
that failed multiply the probability in the longest one that knows it (Katz 1987's back-off form, in which interpolated
models are stored too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from gradatim.config.settings import NgramConfig
from gradatim.errors import CheckpointError, DataError, Problem
from gradatim.models.ngram.counts import Integers, count_ngrams
from gradatim.models.ngram.smoothing import smooth

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Table:
    """The k-grams of one order."""

    first: Integers
    """Where the continuations of each (k-1)-gram begin, one entry more than there are contexts."""
    word: NDArray[np.int32]
    """Last words, ascending within a context."""
    log_prob: NDArray[np.float32]
    """Natural log of p(last word | the words before it)."""
    weight: NDArray[np.float32] | None
    """As a context: natural log of what multiplies the shorter context's probability; None for the highest order."""
    key: Integers
    """context · vocabulary + word, ascending."""


@dataclass(frozen=True, slots=True)
class NgramState:
    """The last order-1 tokens of each row, -1 before the text."""

    recent: Int[Tensor, "b past"]

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.recent.shape[0]

    def select(self, rows: Int[Tensor, " n"]) -> Self:
        """The given rows."""
        return type(self)(self.recent[rows])

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """The rows of several states."""
        return cls(torch.cat([state.recent for state in states]))


class NgramModel:
    """Answers the protocol from tables, on the CPU whatever device asks.

    What an unseen word gets depends on the smoothing: a share of the shorter context (kneser-ney), a share of uniform
    (additive), or nothing, log-probability -inf (mle). A context never seen leaves the answer to the next shorter one.
    """

    context: int | None = None

    def __init__(self, config: NgramConfig, vocab_size: int, boundary: int, tables: list[Table]) -> None:
        self.config, self.vocab_size, self.boundary, self.tables = config, vocab_size, boundary, tables

    @property
    def order(self) -> int:
        """Longest sequence in the tables (shorter than asked for where the text is)."""
        return len(self.tables)

    def parameter_count(self) -> int:
        """Probabilities and weights stored."""
        return sum(len(t.word) + (0 if t.weight is None else len(t.weight)) for t in self.tables)

    # ------------------------------------------------------------------ the protocol

    def start(self, batch: int, source: Any = None) -> NgramState:
        """Nothing read."""
        return NgramState(torch.full((batch, max(0, self.config.order - 1)), -1))

    def log_prob(
        self, ids: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], state: NgramState
    ) -> tuple[Float[Tensor, "b t"], NgramState]:
        """Log-probability of each target after its context, 0 where it is -100."""
        contexts, after = self._contexts(ids, state)
        wanted = targets.cpu().numpy().ravel()
        words = np.where(wanted == IGNORE, 0, wanted)
        check_ids(words, self.vocab_size)
        found = self._score([level.ravel() for level in contexts], words)
        found[wanted == IGNORE] = 0.0
        return torch.from_numpy(found).view(targets.shape).to(targets.device), after

    def __call__(self, ids: Int[Tensor, "b t"], state: NgramState) -> tuple[Float[Tensor, "b t v"], NgramState]:
        """Log-probabilities of all next words, context by context from the shortest."""
        contexts, after = self._contexts(ids, state)
        places = (
            np.stack([level.ravel() for level in contexts], 1) if contexts else np.empty((ids.numel(), 0), np.int64)
        )
        rows = np.repeat(self.tables[0].log_prob.astype(np.float64)[None], ids.numel(), 0)
        for row, place in zip(rows, places, strict=True):
            for k, node in enumerate(place, start=1):
                if node < 0:
                    continue
                table, shorter = self.tables[k], self.tables[k - 1].weight
                assert shorter is not None
                begin, end = table.first[node], table.first[node + 1]
                if self.config.smoothing != "additive":
                    row += shorter[node]
                elif begin < end:  # what is unseen gets its share of uniform, not of the shorter context
                    row[:] = shorter[node] - np.log(self.vocab_size)
                row[table.word[begin:end]] = table.log_prob[begin:end]
        return torch.from_numpy(rows).view(*ids.shape, self.vocab_size).to(ids.device), after

    # ------------------------------------------------------------------ looking up

    def _contexts(self, ids: Tensor, state: NgramState) -> tuple[list[Integers], NgramState]:
        """For every position the node of the context that ends there, of lengths 1 to order-1; -1 where unseen."""
        past = state.recent.shape[1]
        text = torch.cat([state.recent, ids.cpu()], dim=1).numpy()
        check_ids(text[:, past:], self.vocab_size)
        nodes = text.astype(np.int64)
        levels = [nodes[:, past:]]
        for k in range(1, self.order - 1):
            before = np.concatenate([np.full((len(text), 1), -1), nodes[:, :-1]], axis=1)
            # A boundary ends its document: as the last token of a longer context it opens another one.
            usable = (before >= 0) & (text >= 0) & (text != self.boundary)
            nodes = np.full(text.shape, -1, np.int64)
            nodes[usable] = self._find(k, before[usable], text[usable])
            levels.append(nodes[:, past:])
        after = NgramState(torch.from_numpy(text[:, text.shape[1] - past :].copy()))
        return levels[: self.order - 1], after

    def _find(self, k: int, context: Integers, word: Integers) -> Integers:
        """Number of the (k+1)-gram of a k-gram and a word, -1 where there is none."""
        keys = self.tables[k].key
        if not len(keys):  # a pruned ARPA file may hold no n-grams of some order
            return np.full(len(word), -1)
        wanted = context * self.vocab_size + word
        # Searched in order, the table is walked once; at random, every step misses the cache.
        sorting = np.argsort(wanted)
        ordered = wanted[sorting]
        place = np.minimum(np.searchsorted(keys, ordered), len(keys) - 1)
        found = np.empty(len(wanted), np.int64)
        found[sorting] = np.where(keys[place] == ordered, place, -1)
        return found

    def _score(self, contexts: list[Integers], words: Integers) -> NDArray[np.float64]:
        """Log-probability of each word after its contexts, given shortest first."""
        total = self.tables[0].log_prob[words].astype(np.float64)
        additive = self.config.smoothing == "additive"
        for k, nodes in enumerate(contexts, start=1):
            seen = np.flatnonzero(nodes >= 0)
            node = nodes[seen]
            weight = self.tables[k - 1].weight
            assert weight is not None
            if additive:  # what is unseen gets its share of uniform, not of the shorter context
                parents = self.tables[k].first[node + 1] > self.tables[k].first[node]
                total[seen[parents]] = weight[node[parents]] - np.log(self.vocab_size)
            else:
                total[seen] += weight[node]
            found = self._find(k, node, words[seen])
            hit = found >= 0
            total[seen[hit]] = self.tables[k].log_prob[found[hit]]
        return total

    # ------------------------------------------------------------------ keeping

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: ``order1/first``, ``order1/word``, ``order1/log_prob``, ``order1/weight``, …"""
        kept = {"boundary": torch.tensor([self.boundary])}
        for k, table in enumerate(self.tables, start=1):
            for name in ("first", "word", "log_prob", "weight"):
                values = getattr(table, name)
                if values is not None:
                    kept[f"order{k}/{name}"] = torch.from_numpy(values)
        return kept

    @classmethod
    def from_tensors(cls, config: NgramConfig, vocab_size: int, tensors: dict[str, Tensor]) -> Self:
        """The inverse of ``tensors``.

        Raises:
            CheckpointError: the tensors are not those of an n-gram model of this vocabulary and order.
        """
        orders = sum(name.endswith("/word") for name in tensors)
        names = {"boundary"} | {
            f"order{k}/{name}" for k in range(1, orders + 1) for name in ("first", "word", "log_prob")
        }
        names |= {f"order{k}/weight" for k in range(1, orders)}
        if not orders or names != tensors.keys():
            raise _foreign("tensors", sorted(tensors)[:6], "order1/word, order1/log_prob, …")
        if orders > config.order:
            raise _foreign("orders", orders, f"at most model.order {config.order}")
        if len(tensors["order1/word"]) != vocab_size:
            raise _foreign("unigrams", len(tensors["order1/word"]), f"the tokenizer's {vocab_size} entries")
        tables = []
        for k in range(1, orders + 1):
            first, word, log_prob = (tensors[f"order{k}/{name}"].numpy() for name in ("first", "word", "log_prob"))
            weight = tensors.get(f"order{k}/weight")
            tables.append(make_table(first, word, log_prob, None if weight is None else weight.numpy(), vocab_size))
        return cls(config, vocab_size, int(tensors["boundary"][0]), tables)


def _foreign(what: str, got: object, allowed: str) -> CheckpointError:
    return CheckpointError(
        Problem(
            where=f"n-gram {what}", what="this checkpoint does not fit the run's config and tokenizer",
            got=str(got), allowed=allowed, attempt="restore the run's config.yaml and tokenizer.json",
        )
    )  # fmt: skip


def check_ids(ids: NDArray[Any], vocab_size: int) -> None:
    """Refuse ids outside the vocabulary, which would otherwise find the n-grams of other words.

    Raises:
        DataError: naming the first one.
    """
    wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(wrong):
        raise DataError(
            Problem(
                where=f"token {wrong[0]}", what="a token id is outside the vocabulary", got=str(ids.flat[wrong[0]]),
                allowed=f"0 to {vocab_size - 1}", attempt="use the tokenizer that the text was encoded with",
            )
        )  # fmt: skip


def make_table(first: Any, word: Any, log_prob: Any, weight: Any, vocab_size: int) -> Table:
    """A table with the keys that lookups search."""
    context = np.repeat(np.arange(len(first) - 1), np.diff(first))
    return Table(first, word, log_prob, weight, context * vocab_size + word)


def fit_ngram(config: NgramConfig, tokens: NDArray[Any], vocab_size: int, boundary: int) -> NgramModel:
    """Count and smooth a text of documents that each end with ``boundary``.

    Args:
        config: order and smoothing. A text whose longest document is shorter gives a model of lower order.
        tokens: ids, 1-d; every id of the vocabulary may be predicted, whether it occurs or not.
        vocab_size: number of ids. Kneser-Ney's last resort is uniform over them.
        boundary: the id that ends each document, and opens the first.

    Raises:
        DataError: no tokens, an id outside the vocabulary, or Kneser-Ney's discounts do not exist for this text.
    """
    if not len(tokens):
        raise DataError(Problem(where="n-grams", what="there is no text to count", attempt="name some in data.train"))
    check_ids(np.asarray(tokens), vocab_size)
    counts = count_ngrams(tokens, config.order, vocab_size, boundary)
    probabilities, weights = smooth(config, counts, vocab_size)
    tables = []
    for k, order in enumerate(counts):
        size = 1 if k == 0 else len(counts[k - 1].word)
        first = np.concatenate([[0], np.cumsum(np.bincount(order.context, minlength=size))])
        weight = weights[k].astype(np.float32) if k < len(weights) else None
        tables.append(
            make_table(first, order.word.astype(np.int32), probabilities[k].astype(np.float32), weight, vocab_size)
        )
    return NgramModel(config, vocab_size, boundary, tables)
