"""Counted word vectors: pairs by hand, information and directions by dense arithmetic, neighbours that are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gradatim.text import word_vectors
from gradatim.text.tokenfile import TokenFile
from gradatim.text.word_vectors import POWER, WINDOW, counted_vectors, information, leading_rows, pair_counts


def write(folder: Path, documents: list[list[int]], words: int) -> TokenFile:
    ids = [np.array(document) for document in documents]
    return TokenFile.write(folder / "text", ids, vocab_size=words, boundary=0, tokenizer="test", text_bytes=1)


def topics(words: int = 40, documents: int = 60, seed: int = 0) -> list[list[int]]:
    """Each document draws its words from the even ids, or from the odd ones."""
    random = np.random.default_rng(seed)
    return [(2 * random.integers(0, words // 2, 50) + number % 2).tolist() for number in range(documents)]


def dense(documents: list[list[int]], words: int) -> NDArray[np.float64]:
    """Counts of pairs by two loops."""
    table = np.zeros((words, words))
    for document in documents:
        for place, first in enumerate(document):
            for second in document[place + 1 : place + 1 + WINDOW]:
                table[first, second] += 1
    return table


def test_pairs_are_counted_within_documents(tmp_path: Path) -> None:
    documents = [[1, 2, 1], [3], [2, *[4] * WINDOW, 1]]
    codes, counts = pair_counts(write(tmp_path, documents, 5), 5)
    expected = dense(documents, 5)
    assert expected[2, 1] == 1, "the 1 of the last document is one token too far"
    assert codes.tolist() == np.flatnonzero(expected).tolist()
    assert counts.tolist() == expected[expected > 0].tolist()


def test_counts_do_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write(tmp_path, topics(), 40)
    whole = pair_counts(text, 40)
    monkeypatch.setattr(word_vectors, "PIECE", 170)  # several documents each, cut nowhere
    for one, other in zip(pair_counts(text, 40), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(word_vectors, "PIECE", 20)  # documents of 50 in three parts
    parts = [document[first : first + 20] for document in topics() for first in (0, 20, 40)]
    np.testing.assert_array_equal(pair_counts(text, 40)[1].sum(), dense(parts, 40).sum())
    monkeypatch.setattr(word_vectors, "MOST_TOKENS", 110)
    first = [*topics()[:2], topics()[2][:10]]
    parts = [document[first : first + 20] for document in first for first in (0, 20, 40)]
    np.testing.assert_array_equal(pair_counts(text, 40)[1].sum(), dense(parts, 40).sum())


def test_information_and_its_leading_rows_are_those_of_dense_arithmetic(tmp_path: Path) -> None:
    documents, words, width = topics(), 40, 6
    found = information(*pair_counts(write(tmp_path, documents, words), words), words)
    table = dense(documents, words)
    table += table.T
    total = table.sum(1)
    with np.errstate(divide="ignore"):
        expected = np.log(table / np.outer(total, total**POWER / (total**POWER).sum()))
    expected[expected < 0] = 0.0
    np.testing.assert_allclose(found.to_dense().numpy(), expected, rtol=1e-6, atol=1e-7)
    rows = leading_rows(found.double(), width, torch.Generator().manual_seed(0)).numpy()
    u, s, _ = np.linalg.svd(expected)
    best = (u[:, :width] * s[:width]) @ u[:, :width].T
    # U S Uᵀ of both, which no signs of directions change; the randomised one is near the best there is.
    lost = np.linalg.norm(rows @ rows.T - best) / np.linalg.norm(best)
    assert lost < 0.02
    np.testing.assert_allclose((rows**2).sum(0), s[:width], rtol=0.01)


def test_words_of_one_topic_are_neighbours_and_a_word_never_seen_has_a_vector(tmp_path: Path) -> None:
    text = write(tmp_path, topics(), 41)
    vectors = counted_vectors(text, 41, 8)
    assert vectors.shape == (41, 8) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(41))
    alike = vectors[:40] @ vectors[:40].T
    same = (torch.arange(40)[:, None] - torch.arange(40)) % 2 == 0
    assert alike[same].min() > alike[~same].max()
    torch.testing.assert_close(counted_vectors(text, 41, 8), vectors, rtol=0, atol=0)


def test_texts_without_pairs_and_widths_beyond_the_vocabulary(tmp_path: Path) -> None:
    alone = write(tmp_path, [[1], [2]], 5)
    torch.testing.assert_close(counted_vectors(alone, 5, 3).norm(dim=1), torch.ones(5))
    with pytest.raises(ValueError, match="5 words have no 6 directions"):
        counted_vectors(alone, 5, 6)
