"""Batches: every token is learned, windows and streams are where they should be, and a step needs no history."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.errors import DataError
from gradatim.text.batches import IGNORE, Streams, Windows
from gradatim.text.tokenfile import TokenFile


def token_file(folder: Path, lengths: list[int]) -> TokenFile:
    """Documents whose tokens tell their own position in the text; 0 closes each."""
    documents, position = [], 1
    for length in lengths:
        documents.append(np.array([*range(position, position + length), 0]))
        position += length + 1
    return TokenFile.write(folder / "text", documents, vocab_size=10_000, boundary=0, tokenizer="abc", text_bytes=1)


@pytest.mark.parametrize("packing", ["across", "within"])
def test_windows_are_shifted_by_one(tmp_path: Path, packing: str) -> None:
    file = token_file(tmp_path, [30, 5, 1, 0, 64])
    batch = Windows(file, 8, 16, seed=3, packing=packing).batch(0)
    assert batch.ids.shape == batch.targets.shape == (16, 8)
    assert batch.ids.dtype == batch.targets.dtype == torch.int64
    assert batch.fresh
    inside = batch.targets[:, :-1] != IGNORE
    assert torch.equal(batch.ids[:, 1:][inside], batch.targets[:, :-1][inside])


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8), context=st.integers(1, 20), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=40)
def test_within_learns_every_token_once_an_epoch(tmp_path_factory: pytest.TempPathFactory, lengths: list[int],
                                                 context: int, seed: int) -> None:  # fmt: skip
    file = token_file(tmp_path_factory.mktemp("tokens"), lengths)
    windows = Windows(file, context, 1, seed, "within")
    for epoch in range(2):
        steps = range(epoch * windows.samples, (epoch + 1) * windows.samples)
        batches = [windows.batch(step) for step in steps]
        learned = torch.cat([batch.targets[batch.targets != IGNORE] for batch in batches])
        assert sorted(learned.tolist()) == sorted(file.tokens.tolist())
        for batch in batches:  # a boundary only ever opens a window's text or, as a target, closes it
            row = batch.targets[0]
            ends = torch.nonzero(row == 0)
            assert len(ends) <= 1
            assert bool((row[int(ends[0]) + 1 :] == IGNORE).all()) if len(ends) else True


@pytest.mark.parametrize("packing", ["across", "within", "streams"])
def test_what_opens_documents_is_read_and_never_learned(tmp_path: Path, packing: str) -> None:
    file, opening = token_file(tmp_path, [7, 9, 3, 30]), 9_999
    make = Streams if packing == "streams" else partial(Windows, seed=3, packing=packing)
    plain, opened = make(file, 8, 3).batch(0), make(file, 8, 3, opening=opening).batch(0)
    assert torch.equal(plain.targets, opened.targets) and bool((plain.ids == 0).any())
    assert torch.equal(opened.ids, plain.ids.masked_fill(plain.ids == 0, opening))


def test_across_learns_nearly_every_token_once_and_moves_its_grid(tmp_path: Path) -> None:
    file = token_file(tmp_path, [200, 99, 300])
    windows = Windows(file, 16, 1, 5, "across")
    starts = []
    for epoch in range(3):
        rows = [windows.batch(epoch * windows.samples + i).targets[0] for i in range(windows.samples)]
        positions = torch.cat(rows)
        positions = positions[positions != 0]
        assert len(set(positions.tolist())) == len(positions)
        assert windows.samples * 16 > len(file.tokens) - 1 - 16
        starts.append(min(int(row[0]) % 16 for row in rows if row[0] and row[0] < 100))
    assert len(set(starts)) > 1


def test_first_prediction_of_a_text_follows_a_boundary(tmp_path: Path) -> None:
    file = token_file(tmp_path, [10, 10])
    first = Streams(file, 5, 1).batch(0)
    assert first.ids[0].tolist() == [0, 1, 2, 3, 4]
    assert first.targets[0].tolist() == [1, 2, 3, 4, 5]


def test_steps_need_no_history_and_batches_regroup(tmp_path: Path) -> None:
    file = token_file(tmp_path, [1000])
    whole, half = Windows(file, 8, 8, 1), Windows(file, 8, 4, 1)
    later = whole.batch(12_345)
    whole.batch(0)
    assert torch.equal(whole.batch(12_345).ids, later.ids)
    assert torch.equal(torch.cat([half.batch(24_690).ids, half.batch(24_691).ids]), later.ids)
    assert half.draw(24_690)[0].tolist() == whole.draw(12_345)[0][:4].tolist()


def test_streams_are_contiguous_and_fresh_at_each_pass(tmp_path: Path) -> None:
    file = token_file(tmp_path, [100, 50, 80])
    streams = Streams(file, 7, 3)
    passes = [[streams.batch(step) for step in range(p * streams.steps, (p + 1) * streams.steps)] for p in range(2)]
    for batches in passes:
        assert [batch.fresh for batch in batches] == [True] + [False] * (streams.steps - 1)
        for row in range(3):
            targets = torch.cat([batch.targets[row] for batch in batches]).numpy()
            first = row * streams.row
            assert np.array_equal(targets, file.tokens[first : first + len(targets)])
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(*passes))
    assert len(file.tokens) - 3 * 7 * streams.steps < 3 * 7 + 4


@pytest.mark.parametrize("make", [lambda f: Windows(f, 64, 4, 0), lambda f: Streams(f, 8, 4)])
def test_too_little_text(tmp_path: Path, make: object) -> None:
    file = token_file(tmp_path, [10, 5])
    with pytest.raises(DataError, match=r"17 tokens(.|\n)*at least"):
        make(file)  # type: ignore[operator]


def test_documents_shorter_than_the_context_are_padded(tmp_path: Path) -> None:
    batch = Windows(token_file(tmp_path, [3]), 8, 1, 0, "within").batch(0)
    assert batch.ids[0, :4].tolist() == [0, 1, 2, 3]
    assert batch.targets[0].tolist() == [1, 2, 3, 0, *[IGNORE] * 4]
