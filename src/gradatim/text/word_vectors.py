"""Vectors of words from the company they keep: pairs are counted, weighed, and reduced to the directions that say most.

n(a, b)   how often b stands at most ten tokens from a, in one document
m(a, b)   max(0, log n(a, b) / (n(a) q(b))),  q(b) = n(b)^0.75 / Σ n^0.75          positive pointwise mutual information
M ≈ U S Vᵀ,  the vector of a word is its row of U √S, at length 1

So the first rung of the ladder, a table of word pairs, becomes the embedding of a later one. What a network would learn
of words by predicting them is, at its best, such a factorisation (Levy & Goldberg 2014, "Neural word embedding as
implicit matrix factorization"); the window, the power 0.75 and √S are Levy, Goldberg & Dagan's (2015, TACL 3). The
decomposition is Halko, Martinsson & Tropp's randomised one (2011, arXiv:0909.4061, algorithms 4.4 and 5.1) with two
power iterations. It takes seconds where a million words do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gradatim.text.tokenfile import TokenFile

WINDOW = 10
"""Tokens to each side that keep a word company."""
POWER = 0.75
"""Of the counts of neighbours: rare ones would say too much otherwise."""
MOST_TOKENS = 20_000_000
"""Read of a longer text, which bounds time and memory."""
PIECE = 2_000_000
"""Tokens whose pairs are sorted at once."""
OVERSAMPLED, ITERATIONS = 10, 2
"""Directions tried beyond those that are kept, and power iterations (Halko et al.)."""


def counted_vectors(text: TokenFile, words: int, width: int) -> Float[Tensor, "words width"]:
    """A vector of length 1 for each id below ``words``, in float32; one without neighbours has a drawn direction.

    The same text gives the same vectors on the same machine; they do not depend on any seed of a run.

    Raises:
        ValueError: there are fewer words than the vectors are wide.
    """
    if words < width:
        raise ValueError(f"{words} words have no {width} directions")
    codes, counts = pair_counts(text, words)
    pairs = information(codes, counts, words)
    random = torch.Generator().manual_seed(0)
    vectors = leading_rows(pairs, width, random)
    lengths = vectors.norm(dim=1, keepdim=True)
    drawn = torch.randn(words, width, generator=random)
    vectors = torch.where(lengths > 1e-9 * lengths.max(), vectors, drawn)
    unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return unit


def pair_counts(text: TokenFile, words: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs that occur, as ``first * words + second`` in rising order, and how often: ``second`` at most ``WINDOW``
    tokens behind ``first``.
    """
    codes, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for piece in _pieces(text):
        found = []
        for distance in range(1, WINDOW + 1):
            pairs = [ids[:-distance] * words + ids[distance:] for ids in piece if len(ids) > distance]
            if pairs:
                found.append(np.unique(np.concatenate(pairs), return_counts=True))
        every = [(codes, counts), *found]
        codes, place = np.unique(np.concatenate([code for code, _ in every]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([count for _, count in every]), len(codes)).astype(np.int64)
    return codes, counts


def _pieces(text: TokenFile) -> Iterator[list[NDArray[np.int64]]]:
    """Documents, some at a time; a long one in parts, so that pairs across their ends are not counted."""
    piece: list[NDArray[np.int64]] = []
    held, left = 0, MOST_TOKENS
    for number in range(len(text)):
        document = text.document(number)
        for first in range(0, len(document), PIECE):
            part = document[first : first + PIECE][:left].astype(np.int64)
            piece.append(part)
            held, left = held + len(part), left - len(part)
            if held >= PIECE or left == 0:
                yield piece
                piece, held = [], 0
            if left == 0:
                return
    if piece:
        yield piece


def information(codes: NDArray[np.int64], counts: NDArray[np.int64], words: int) -> Tensor:
    """Positive pointwise mutual information of every pair, counted in both directions; sparse ``[words, words]``."""
    first, second = torch.from_numpy(codes // words), torch.from_numpy(codes % words)
    both = torch.stack([torch.cat([first, second]), torch.cat([second, first])])
    often = torch.from_numpy(counts).double().repeat(2)
    table = torch.sparse_coo_tensor(both, often, (words, words), check_invariants=False).coalesce()
    (row, column), often = table.indices(), table.values()
    total = torch.zeros(words, dtype=torch.float64).index_add_(0, row, often)
    share = total.pow(POWER) / total.pow(POWER).sum().clamp(min=1.0)
    found = (often / (total[row] * share[column])).log()
    kept, size = found > 0, (words, words)
    said: Tensor = torch.sparse_coo_tensor(table.indices()[:, kept], found[kept].float(), size, check_invariants=False)
    return said.coalesce()


def leading_rows(matrix: Tensor, rank: int, random: torch.Generator) -> Float[Tensor, "rows rank"]:
    """U √S of the ``rank`` largest singular values of a sparse matrix."""
    size = min(rank + OVERSAMPLED, *matrix.shape)
    other = matrix.t().coalesce()
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], size, generator=random, dtype=matrix.dtype)).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(other @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, _ = torch.linalg.svd((other @ basis).t(), full_matrices=False)
    leading: Tensor = (basis @ u)[:, :rank] * s[:rank].sqrt()
    return leading
