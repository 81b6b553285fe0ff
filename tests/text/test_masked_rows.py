"""Rows for BERT: what a row is made of, read against the documents; pure functions of the step; blanks as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gradatim.config.settings import BertConfig, TokenizerConfig
from gradatim.errors import DataError
from gradatim.text.batches import IGNORE, Batch
from gradatim.text.masked_rows import MaskedRows, sentence_starts
from gradatim.text.masking import mask, most_blanks
from gradatim.text.tokenfile import TokenFile
from gradatim.text.tokenizer import Marks, Tokenizer
from gradatim.text.vocabulary import train_tokenizer

SENTENCES = [
    "the cat sat on the mat.", "a dog barked at night!", 'who said "stop it?"', "unhappiness was unforgettable.",
    "it rained... then it poured.", "seven swans were swimming.", "nobody knows why.",
]  # fmt: skip
DOCUMENTS = [" ".join(SENTENCES[i:] + SENTENCES[:i]) + f" number {i} ends here." for i in range(7)] + ["tiny one."]
CONTEXT, ROWS = 24, 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=70, lowercase=True), DOCUMENTS)


@pytest.fixture(scope="module")
def file(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    ended = [np.append(ids, tokenizer.boundary) for ids in tokenizer.encode_batch(DOCUMENTS)]
    return TokenFile.write(
        tmp_path_factory.mktemp("pairs") / "text", ended, vocab_size=tokenizer.vocab_size, boundary=tokenizer.boundary,
        tokenizer=tokenizer.fingerprint, text_bytes=1,
    )  # fmt: skip


def make(file: TokenFile, tokenizer: Tokenizer, packing: str = "across", **fields: object) -> MaskedRows:
    config = BertConfig(**{"short": 0.0, **fields})  # type: ignore[arg-type]
    return MaskedRows(file, tokenizer, config, CONTEXT, ROWS, seed=3, packing=packing)


def unmasked(batch: Batch) -> NDArray[np.int64]:
    """Rows as they were before blanks."""
    ids = batch.ids.numpy().copy()
    assert batch.positions is not None
    for row, (places, targets) in enumerate(zip(batch.positions.numpy(), batch.targets.numpy(), strict=True)):
        for place, target in zip(places, targets, strict=True):
            if target != IGNORE:
                ids[row, place] = target
    return ids


def parts(row: NDArray[np.int64], length: int, marks: Marks) -> list[list[int]]:
    """What stands between the marks of a row."""
    assert row[0] == marks.begin and row[length - 1] == marks.end
    assert (row[length:] == marks.pad).all()
    cuts = np.flatnonzero(row[:length] == marks.end)
    return [row[a + 1 : b].tolist() for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]


def where_in(file: TokenFile, tokens: list[int]) -> list[tuple[int, int]]:
    """(document, offset) of every place at which tokens stand in a row."""
    found = []
    for number in range(len(file)):
        text = file.document(number).tolist()
        found += [(number, i) for i in range(len(text) - len(tokens) + 1) if text[i : i + len(tokens)] == tokens]
    return found


def every_row(rows: MaskedRows, steps: int = 30) -> list[tuple[NDArray[np.int64], int, int, NDArray[np.int64]]]:
    found = []
    for step in range(steps):
        batch = rows.batch(step)
        assert batch.segments is not None and batch.lengths is not None and batch.labels is not None
        ids = unmasked(batch)
        found += [
            (ids[i], int(batch.lengths[i]), int(batch.labels[i]), batch.segments[i].numpy()) for i in range(len(ids))
        ]
    return found


def test_a_true_pair_follows_in_the_text_and_a_false_one_is_of_another_document(
    file: TokenFile, tokenizer: Tokenizer
) -> None:
    rows, labels = make(file, tokenizer), []
    assert tokenizer.marks is not None
    for row, length, label, segments in every_row(rows):
        a, b = parts(row, length, tokenizer.marks)
        assert segments.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (CONTEXT - length)
        if label == 0:
            assert where_in(file, a + b)
        else:
            home, other = ({document for document, _ in where_in(file, part)} for part in (a, b))
            assert any(x != y for x in home for y in other)
        labels.append(label)
    assert 0.4 < np.mean(labels) < 0.6


def test_sentences_out_of_order_are_the_same_stretch(file: TokenFile, tokenizer: Tokenizer) -> None:
    assert tokenizer.marks is not None
    for row, length, label, _ in every_row(make(file, tokenizer, pairs="sentence-order")):
        a, b = parts(row, length, tokenizer.marks)
        assert where_in(file, b + a if label else a + b)


def test_out_of_order_are_whole_sentences(file: TokenFile, tokenizer: Tokenizer) -> None:
    """What stops, or begins, inside of a sentence would tell the order; it is left where there are not two."""
    assert tokenizer.marks is not None
    starts = set(sentence_starts(file.tokens, file.document_starts, tokenizer).tolist())
    starts |= set((file.document_starts[1:] - 1).tolist())  # a document's end is a sentence's
    whole = {0: 0, 1: 0}
    config = BertConfig(short=0.0, pairs="sentence-order")
    for row, length, label, _ in every_row(MaskedRows(file, tokenizer, config, 64, ROWS, seed=3), 60):
        a, b = parts(row, length, tokenizer.marks)
        text = b + a if label else a + b
        places = [int(file.document_starts[d]) + i for d, i in where_in(file, text)]
        inside = [len(starts & set(range(place + 1, place + len(text)))) for place in places]
        if min(inside) > 1:
            first = len(b) if label else len(a)
            assert any({place, place + first, place + len(text)} <= starts for place in places)
            whole[label] += 1
    assert min(whole.values()) > 10


def test_pairs_are_cut_between_sentences(file: TokenFile, tokenizer: Tokenizer) -> None:
    starts = sentence_starts(file.tokens, file.document_starts, tokenizer)
    found = [tokenizer.decode(ids) for ids in np.split(file.tokens, starts[1:])][:9]
    expected = [*SENTENCES[:4], "it rained...", "then it poured.", *SENTENCES[5:], "number 0 ends here."]
    assert [text.replace(" ", "") for text in found] == [text.replace(" ", "") for text in expected]
    assert tokenizer.marks is not None
    within = set(starts.tolist())
    for row, length, label, _ in every_row(make(file, tokenizer), 10):
        a, b = parts(row, length, tokenizer.marks)
        if label == 0:
            places = [int(file.document_starts[d]) + i for d, i in where_in(file, a + b)]
            inner = [within & set(range(place + 1, place + len(a + b))) for place in places]
            assert any(place + len(a) in cuts for place, cuts in zip(places, inner, strict=True)) or not any(inner)


def test_no_pair_is_told_by_where_its_texts_begin_or_end(file: TokenFile, tokenizer: Tokenizer) -> None:
    """Where no sentence begins inside of a stretch, B begins inside of one under either label; and it has its size."""
    assert tokenizer.marks is not None
    starts = set(sentence_starts(file.tokens, file.document_starts, tokenizer).tolist())
    rows = make(file, tokenizer)
    begins: dict[int, list[bool]] = {0: [], 1: []}
    full: dict[int, list[bool]] = {0: [], 1: []}
    for step in range(60):
        index, epoch = rows.draw(step)
        batch = rows.rows(index, epoch.astype(np.uint64), 12)  # most sentences are longer
        assert batch.lengths is not None and batch.labels is not None
        for row, length, label in zip(unmasked(batch), batch.lengths.tolist(), batch.labels.tolist(), strict=True):
            a, b = parts(row, length, tokenizer.marks)
            places = [int(file.document_starts[d]) + i for d, i in where_in(file, a)]
            if any(starts & set(range(place + 1, place + len(a) + 1)) for place in places):
                continue  # cut between sentences
            there = [int(file.document_starts[d]) + i for d, i in where_in(file, b)]
            begins[label].append(bool(starts & set(there)))
            full[label].append(length == 12)
    for label in (0, 1):
        assert len(begins[label]) > 50
        assert np.mean(begins[label]) < 0.1
    assert abs(np.mean(full[0]) - np.mean(full[1])) < 0.15


def test_a_row_depends_on_no_other_row_of_its_batch(file: TokenFile, tokenizer: Tokenizer) -> None:
    """Ranks that draw different rows draw the same ones, also those of the text's last sentence."""
    rows = make(file, tokenizer)
    for step in range(150):
        index, epoch = rows.draw(step)
        together = rows.rows(index, epoch.astype(np.uint64), 8)
        for number in range(len(index)):
            one = slice(number, number + 1)
            alone = rows.rows(index[one], epoch[one].astype(np.uint64), 8)
            assert torch.equal(alone.ids, together.ids[one])


def test_a_text_without_sentences_is_cut_anywhere(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenizer.encode_batch(["cat dog night mat swans here"] * 3)
    ended = [np.append(part, tokenizer.boundary) for part in ids]
    file = TokenFile.write(
        tmp_path / "plain",
        ended,
        vocab_size=tokenizer.vocab_size,
        boundary=tokenizer.boundary,
        tokenizer="",
        text_bytes=1,
    )
    cuts = {
        tuple(row[:length].tolist()).index(tokenizer.boundary) for row, length, *_ in every_row(make(file, tokenizer))
    }
    assert len(cuts) > 2


def test_without_pairs_rows_are_stretches_of_the_text(file: TokenFile, tokenizer: Tokenizer) -> None:
    packed = make(file, tokenizer, pairs="none").batch(0)
    assert packed.lengths is None and packed.segments is None and packed.labels is None
    text = file.tokens.tolist()
    for row in unmasked(packed):
        assert any(text[i : i + CONTEXT - 2] == row[1:-1].tolist() for i in range(len(text)))
    padded = make(file, tokenizer, packing="within", pairs="none", short=0.5)
    assert tokenizer.marks is not None
    lengths = set()
    for step in range(10):
        batch = padded.batch(step)
        assert batch.lengths is not None
        for row, length in zip(unmasked(batch), batch.lengths.tolist(), strict=True):
            (stretch,) = parts(row, length, tokenizer.marks)
            assert where_in(file, stretch)
            lengths.add(length)
    assert max(lengths) == CONTEXT and len(lengths) > 5


@pytest.mark.parametrize("fields", [{}, {"pairs": "none"}, {"whole_words": True, "short": 0.3}], ids=str)
def test_batches_are_functions_of_seed_and_step(
    file: TokenFile, tokenizer: Tokenizer, fields: dict[str, object]
) -> None:
    one, two = make(file, tokenizer, **fields), make(file, tokenizer, **fields)
    two.batch(7)
    whole = one.batch(5)
    for rows in (slice(None), slice(0, 2), slice(3, 8)):
        part = two.batch(5, rows)
        for name in ("ids", "targets", "positions", "segments", "lengths", "labels"):
            ours, theirs = getattr(whole, name), getattr(part, name)
            assert (ours is None and theirs is None) or torch.equal(ours[rows], theirs)
    steps = one.samples // ROWS + 1
    again = one.batch(5 + steps)
    assert not torch.equal(again.ids, whole.ids), "another epoch has other blanks and cuts"


@pytest.mark.parametrize(
    "fields", [{}, {"pairs": "none"}, {"pairs": "sentence-order", "whole_words": True, "short": 0.3}], ids=str
)
def test_the_first_rows_may_be_shorter(file: TokenFile, tokenizer: Tokenizer, fields: dict[str, object]) -> None:
    assert tokenizer.marks is not None
    usual, rows = make(file, tokenizer, **fields), make(file, tokenizer, **fields, first_length=12, first_steps=3)
    for step in range(3):
        batch = rows.batch(step)
        assert batch.ids.shape == (ROWS, 12) and batch.positions is not None
        assert batch.segments is None or batch.segments.shape == (ROWS, 12)
        assert int(batch.positions.max()) < 12
        lengths = [12] * ROWS if batch.lengths is None else batch.lengths.tolist()
        assert max(lengths) == 12
        for row, length in zip(unmasked(batch), lengths, strict=True):
            for part in parts(row, length, tokenizer.marks):
                assert where_in(file, part), "stretches of the text, as in longer rows"
        assert torch.equal(batch.ids[2:5], rows.batch(step, slice(2, 5)).ids)
    for name in ("ids", "targets", "positions"):
        assert torch.equal(getattr(rows.batch(3), name), getattr(usual.batch(3), name))
    assert all(torch.equal(ours.ids, theirs.ids) for ours, theirs in zip(rows.every(), usual.every(), strict=True))


def test_every_reads_all_samples_always_alike(file: TokenFile, tokenizer: Tokenizer) -> None:
    rows = make(file, tokenizer)
    first, second = rows.every(), MaskedRows(
        file, tokenizer, BertConfig(short=0.0), CONTEXT, ROWS, seed=99
    ).every()  # fmt: skip
    assert sum(len(batch.ids) for batch in first) == rows.samples
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))
    assert sum(len(batch.ids) for batch in rows.every(CONTEXT * 3)) == 3


def test_every_may_pair_a_text_anew(file: TokenFile, tokenizer: Tokenizer) -> None:
    rows = make(file, tokenizer)
    usual, once, again = ([*rows.every()], [*rows.every(draw=1)], [*rows.every(draw=1)])
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(once, again, strict=True))
    labels = [torch.cat([batch.labels for batch in drawn if batch.labels is not None]) for drawn in (usual, once)]
    assert len(labels[0]) == len(labels[1]) and not torch.equal(*labels)


def test_what_cannot_be_paired_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def write(name: str, texts: list[str]) -> TokenFile:
        ended = [np.append(ids, tokenizer.boundary) for ids in tokenizer.encode_batch(texts)]
        size, end = tokenizer.vocab_size, tokenizer.boundary
        return TokenFile.write(tmp_path / name, ended, vocab_size=size, boundary=end, tokenizer="", text_bytes=1)

    with pytest.raises(DataError, match="there is one only"):
        make(write("one", [DOCUMENTS[0]]), tokenizer)
    with pytest.raises(DataError, match="shorter than one step needs"):
        make(write("none", ["", ""]), tokenizer)
    characters = train_tokenizer(TokenizerConfig(kind="char"), DOCUMENTS)
    with pytest.raises(DataError, match="has no \\[CLS\\]"):
        make(write("two", DOCUMENTS[:2]), characters)


# --------------------------------------------------------------------------- blanks

MARKS = Marks(pad=0, begin=2, end=3, blank=4, unknown=1)


def blanks(share: float = 0.15, rows: int = 2000, t: int = 64, continues: NDArray[np.bool_] | None = None):
    generator = np.random.default_rng(0)
    ids = generator.integers(5, 100, (rows, t))
    lengths = generator.integers(4, t + 1, rows)
    ids[:, 0], ids[:, t // 2] = MARKS.begin, MARKS.end
    ids[np.arange(t) >= lengths[:, None]] = MARKS.pad
    keys = generator.integers(0, 2**63, rows).astype(np.uint64)
    return ids, lengths, *mask(ids, lengths, keys, MARKS, 100, share, continues)


def test_blanks_are_as_published() -> None:
    ids, lengths, masked, positions, targets = blanks()
    known = targets != IGNORE
    assert (known.sum(1) == np.maximum(1, np.rint(lengths * 0.15))).all()
    row = np.broadcast_to(np.arange(len(ids))[:, None], positions.shape)
    assert (ids[row[known], positions[known]] == targets[known]).all()
    assert not np.isin(targets[known], [0, 1, 2, 3, 4]).any()
    put = masked[row[known], positions[known]]
    assert np.mean(put == MARKS.blank) == pytest.approx(0.8, abs=0.01)
    assert np.mean(put == targets[known]) == pytest.approx(0.1 + 0.1 / 95, abs=0.01)
    others = put[(put != MARKS.blank) & (put != targets[known])]
    assert set(others) == set(range(5, 100))
    elsewhere = np.ones(ids.shape, bool)
    elsewhere[row[known], positions[known]] = False
    assert (masked[elsewhere] == ids[elsewhere]).all()
    assert positions.shape[1] == most_blanks(64, 0.15) == 10
    inside = positions[known] / (lengths[row[known]] - 1)
    assert inside.mean() == pytest.approx(0.5, abs=0.02)


def test_whole_words_are_chosen_whole() -> None:
    continues = np.arange(100) % 3 == 0
    ids, lengths, _, positions, targets = blanks(continues=continues)
    partial = 0
    for row in range(len(ids)):
        chosen = set(positions[row][targets[row] != IGNORE].tolist())
        assert 1 <= len(chosen) <= max(1, round(lengths[row] * 0.15))
        words, word = [], 0
        for place in range(lengths[row]):
            free = ids[row, place] > 4
            if not (free and continues[ids[row, place]] and place and ids[row, place - 1] > 4):
                word += 1
            words.append(word if free else 0)
        whole = {words[place] for place in chosen}
        complete = {place for place in range(lengths[row]) if words[place] in whole}
        assert chosen == complete or len(whole) == 1
        partial += chosen != complete
    assert partial < len(ids) / 10
