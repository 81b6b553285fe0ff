"""Sentence pairs: where they come from, what is odd about them, what leaks, and batches that follow from the step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradatim.config.settings import DataConfig, TokenizerConfig
from gradatim.errors import DataError, LaunchError
from gradatim.text import phrasebook
from gradatim.text.batches import IGNORE
from gradatim.text.pair_batches import PairBatches, held_out_batches
from gradatim.text.pairs import parts, read_pairs
from gradatim.text.prepare import Prepared, prepare
from gradatim.text.prepare_pairs import looks_like
from gradatim.text.sources import Tally
from gradatim.text.tokenizer import load_tokenizer
from gradatim.text.vocabulary import train_tokenizer

WORDS = TokenizerConfig(kind="word", vocab_size=None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches and files in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**settings: Any) -> DataConfig:
    base: dict[str, Any] = {
        "train": (), "source_language": "fr", "target_language": "en", "cache": "cache", "tokenizer": WORDS,
    }  # fmt: skip
    return DataConfig(**{**base, **settings})


def read(split: str = "train", **settings: Any) -> tuple[list[tuple[str, str]], Tally]:
    tally = Tally()
    return read_pairs(config(**settings), split, tally), tally


def aligned(source: bytes, target: bytes) -> dict[str, Any]:
    Path("a.fr").write_bytes(source)
    Path("a.en").write_bytes(target)
    return {"train_source": ("a.fr",), "train_target": ("a.en",)}


# --------------------------------------------------------------------------- sources


def test_aligned_files_are_mended_and_empty_sides_dropped_and_counted() -> None:
    files = aligned("\ufeffun\r\n  deux \n\ntrois\n\n".encode(), b"one\ntwo\nlost\n\n\n")
    found, tally = read(**files)
    assert found == [("un", "one"), ("deux", "two")]
    assert tally.documents == 2 and tally.bytes == len("one\ntwo\n")
    assert tally.dropped["pairs with an empty side"] == 2
    assert tally.dropped["empty pairs"] == 1
    assert tally.dropped["byte-order marks"] == tally.dropped["carriage returns"] == 1


@pytest.mark.parametrize(
    ("source", "target", "got"), [(b"a\nb\nc", b"x\n", "3 and 1"), (b"a\n", b"x\ny\nz\n", "1 and 3")]
)
def test_files_of_different_length_are_refused_with_both_numbers(source: bytes, target: bytes, got: str) -> None:
    with pytest.raises(DataError, match=f"{got} lines"):
        read(**aligned(source, target))


def test_tables_give_their_columns_in_either_direction() -> None:
    Path("a.tsv").write_text("go\tva\tnote\nrun\tcours\tnote\n\n")
    table = {"train": ("a.tsv",), "columns": ("en", "fr", "note")}
    assert read(**table)[0] == [("va", "go"), ("cours", "run")]
    assert read(**table, source_language="en", target_language="fr")[0] == [("go", "va"), ("run", "cours")]
    Path("a.tsv").write_text("go\tva\nalone\n")
    with pytest.raises(DataError, match=r"a\.tsv:2: this line lacks a column"):
        read(**table)
    rows = [{"fr": "va", "en": "go"}, {"translation": {"en": "run", "fr": "cours"}}]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(train=("a.jsonl",))[0] == [("va", "go"), ("cours", "run")]
    with pytest.raises(DataError, match="no text in column 'de'"):
        read(train=("a.jsonl",), source_language="de")


def test_parquet_and_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"fr": ["va"], "en": ["go"]}), "a.parquet")
    assert read(train=("a.parquet",))[0] == [("va", "go")]
    rows = [{"translation": {"fr": "oui", "en": "yes"}}]
    asked = []

    def load(*names: Any, split: str) -> list[Any]:
        asked.append((*names, split))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert read("valid", train=("hf:a/b:c",), valid=("hf:a/b:c",))[0] == [("oui", "yes")]
    assert asked == [("a/b", "c", "validation")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LaunchError, match=r"gradatim\[hf\]"):
        read(train=("hf:a/b",))


def test_missing_files() -> None:
    with pytest.raises(DataError, match="no such file"):
        read(train_source=("a.fr",), train_target=("a.en",))
    with pytest.raises(DataError, match="no such file or corpus of pairs"):
        read(train=("nothing",))
    with pytest.raises(DataError, match="there are no pairs"):
        prepare(config(**aligned(b"\n", b"x\n")))


# --------------------------------------------------------------------------- the phrasebook


def test_the_phrasebook_agrees_and_leaks_nothing() -> None:
    found = phrasebook.corpus()
    pairs = [pair for part in found.values() for pair in part]
    assert len(pairs) == len({french for french, _ in pairs}) == phrasebook.PAIRS
    assert phrasebook.TALK in found["train"]
    english = [{target for _, target in found[part]} for part in ("train", "valid", "test")]
    assert not (english[0] & english[1] or english[0] & english[2] or english[1] & english[2])
    assert min(map(len, english)) > 100
    assert phrasebook.agree("heureux/heureuse", True, True) == "heureuses"
    assert phrasebook.agree("heureux/heureuse", False, True) == "heureux"
    assert phrasebook.elide("je ne aime pas le école de oiseau") == "je n'aime pas l'école d'oiseau"
    texts = [french for french, _ in pairs]
    assert not [text for text in texts if " ne a" in text or text.startswith("je a") or " le a" in text]
    assert any(text.startswith("elles ne sont pas") for text in texts)
    assert not [text for text in texts if re.search(r"\bdes (petit|grand|joli|long|mauvais)", text)]
    assert any(re.search(r"avons de (petit|grand)e?s ", text) for text in texts)
    thirds = [phrasebook.third_person(verb) for verb in ("watch", "carry", "buy", "draw")]
    assert thirds == ["watches", "carries", "buys", "draws"]


# --------------------------------------------------------------------------- splits and leaks


def test_components_are_held_out_whole() -> None:
    pairs = [(f"s{i // 3}", f"t{(i + i // 7) // 2}") for i in range(300)] + [("same", f"u{i}") for i in range(40)]
    found = parts(pairs, (0.1, 0.2))
    assert found == parts(pairs, (0.1, 0.2))
    sides = [[{pair[side] for pair, part in zip(pairs, found) if part == name} for name in ("train", "valid", "test")]
             for side in (0, 1)]  # fmt: skip
    for train, valid, test in sides:
        assert not (train & valid or train & test or valid & test)
    assert {part for pair, part in zip(pairs, found) if pair[0] == "same"} == {"train"}  # too large to hold out
    pairs = [(f"s{i}", f"t{i}") for i in range(1000)]
    counts = {name: parts(pairs, (0.05, 0.1)).count(name) for name in ("train", "valid", "test")}
    assert counts == {"train": 850, "valid": 50, "test": 100}


def test_leaks_are_counted_and_said() -> None:
    files = aligned(b"un\ndeux\n", b"one\ntwo\n")
    Path("b.fr").write_text("un\ntrois\n")
    Path("b.en").write_text("uno\ntwo\n")
    told: list[str] = []
    made = prepare(config(**files, test_source=("b.fr",), test_target=("b.en",)), say=told.append)
    assert made.report["splits"]["test"]["also in train"] == 1
    assert made.report["splits"]["test"]["sources also in train"] == 1
    assert any("1 sources and 1 targets of 2 pairs are also in train" in line for line in told)
    assert made.report["splits"]["test"]["source unknown"] == 1


def test_a_corpus_that_is_shared_out_is_read_and_counted_once() -> None:
    sources, targets = (b"".join(b"%c%d\n" % (side, number) for number in range(60)) for side in b"st")
    files = aligned(sources + b"lost\n", targets + b"\n")
    told: list[str] = []
    made = prepare(config(**files, split="component", held_out=(0.1, 0.1)), say=told.append)
    assert made.report["dropped"] == {"pairs with an empty side": 1}
    assert sum("empty side" in line for line in told) == 1
    assert {name: made.report["splits"][name]["documents"] for name in ("train", "valid", "test")} == {
        "train": 48, "valid": 6, "test": 6,
    }  # fmt: skip


def test_a_vocabulary_that_is_named_serves_both_languages() -> None:
    train_tokenizer(WORDS, ["a b c x y z"]).save(Path("own.json"))
    files = aligned(b"a b d\n", b"x y\n")
    named = TokenizerConfig(kind="word", vocab_size=None, path="own.json")
    told: list[str] = []
    made = prepare(config(**files, joint=True, tokenizer=named), say=told.append)
    assert made.tokenizer.fingerprint == load_tokenizer(Path("own.json")).fingerprint
    assert made.source_tokenizer is made.tokenizer and any("own.json" in line for line in told)


def test_one_vocabulary_or_two() -> None:
    files = aligned(b"a b c\na b d\n", b"x y\nx z\n")
    joint, own = (prepare(config(**files, joint=joint)) for joint in (True, False))
    assert joint.source_tokenizer is joint.tokenizer
    assert joint.tokenizer.vocab_size == 2 + 7
    assert own.source_tokenizer is not None
    assert (own.source_tokenizer.vocab_size, own.tokenizer.vocab_size) == (2 + 4, 2 + 3)
    assert own.source_tokenizer.decode(own.sources["train"].document(1)) == "a b d"
    assert own.tokenizer.decode(own.train.document(1)) == "x z"


def test_a_lower_cased_bpe_is_kept_as_such() -> None:
    files = aligned("Élan Σ\n".encode(), b"Big Dog\n")
    bpe = TokenizerConfig(kind="bpe", vocab_size=270, lowercase=True)
    made, again = (prepare(config(**files, tokenizer=bpe)) for _ in range(2))
    for tokenizer in (made.tokenizer, again.tokenizer):
        assert tokenizer.lowercase and not tokenizer.lossless
        assert tokenizer.decode(tokenizer.encode("Big ÉLAN ΣΑΣ")) == "big élan σασ"
        assert tokenizer.encode("Big ÉLAN") == tokenizer.engine.encode("Big ÉLAN", add_special_tokens=False).ids


def test_sources_that_changed_places_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equally many sentences, of this tokenizer: only the report tells which part they are of."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.fr": "x\ny z\n", "a.en": "u\nv\n", "b.fr": "y\nx x z\n", "b.en": "v\nu\n"}.items():
        Path(name).write_text(text)
    files = {"train_source": ("a.fr",), "train_target": ("a.en",), "test_source": ("b.fr",), "test_target": ("b.en",)}
    prepare(config(**files), tmp_path / "out")
    for end in ("bin", "idx", "meta.json"):
        one, other, aside = (tmp_path / "out" / f"{name}.{end}" for name in ("train.source", "test.source", "aside"))
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
    with pytest.raises(DataError, match=r"out/train.source: these are the tokens of another part or text"):
        prepare(config(**files), tmp_path / "out")


def test_a_text_in_the_wrong_language_is_noticed() -> None:
    languages = {"fr": ["le", "est", "pas", "a"], "en": ["the", "is", "not", "a"]}
    assert looks_like("the cat is not here", languages) == "en"
    assert looks_like("le chat n'est pas a", languages) in ("fr", None)
    assert looks_like("le chat est pas", languages) == "fr"
    assert looks_like("a a a", languages) is None


def test_a_split_whose_files_changed_places_is_noticed() -> None:
    files = aligned(b"le chat est ici\nle chien est la\n", b"the cat is here\nthe dog is there\n")
    Path("b.fr").write_text("le chien est ici\nle chat est la\n")
    Path("b.en").write_text("the dog is here\nthe cat is there\n")
    told: dict[str, list[str]] = {}
    for source, target in (("b.fr", "b.en"), ("b.en", "b.fr")):
        told[source] = []
        prepare(config(**files, valid_source=(source,), valid_target=(target,), cache=f"{source}-first"),
                say=told[source].append)  # fmt: skip
    assert not any("WARNING" in line for line in told["b.fr"])
    assert [line for line in told["b.en"] if "WARNING" in line] == [
        "WARNING: valid: its sources look like train's targets, its targets like train's sources; the two files may "
        "have changed places"
    ]


# --------------------------------------------------------------------------- batches


def phrases() -> Prepared:
    return prepare(config(train=("phrasebook",), cache="cache"))


def batches(made: Prepared, context: int = 32, **settings: Any) -> PairBatches:
    base = {"global_batch": 16, "batch_tokens": None, "seed": 3}
    return PairBatches(made.sources["train"], made.train, made.tokenizer.boundary, context, **{**base, **settings})


@pytest.mark.parametrize("batch_tokens", [None, 64, 1000, 100_000])
def test_every_epoch_sees_every_pair_once_in_an_order_of_its_own(batch_tokens: int | None) -> None:
    made = phrases()
    drawn = batches(made, batch_tokens=batch_tokens, global_batch=len(made.train))
    steps = int(drawn.steps_per_epoch)
    epochs = [np.concatenate([drawn.draw(e * steps + s)[0] for s in range(steps)]) for e in range(2)]
    for each in epochs:
        assert sorted(each) == list(range(len(made.train)))
    assert (epochs[0] != epochs[1]).any()
    again = batches(made, batch_tokens=batch_tokens, global_batch=len(made.train))
    for step in (0, steps - 1, 5 * steps + 1):  # seeking is taking
        assert (again.draw(step)[0] == drawn.draw(step)[0]).all()


def test_batches_by_tokens_are_full_and_hold_pairs_of_like_length() -> None:
    made = phrases()
    drawn = batches(made, batch_tokens=500)
    shapes = [
        (b.ids.shape, b.source.ids.shape) for s in range(int(drawn.steps_per_epoch)) if (b := drawn.batch(s)).source
    ]
    assert all(max(a[0] * a[1], b[0] * b[1]) <= 500 for a, b in shapes)
    assert np.mean([max(a[0] * a[1], b[0] * b[1]) for a, b in shapes]) > 380
    batch = drawn.batch(7)
    assert batch.source is not None
    filled = (batch.targets != IGNORE).float().mean()
    assert filled > 0.75


def test_a_batch_is_boundary_and_target_read_target_and_boundary_wanted() -> None:
    made = phrases()
    drawn = batches(made)
    batch, (numbers, _) = drawn.batch(4), drawn.draw(4)
    assert batch.source is not None
    for row, number in enumerate(numbers):
        target, source = made.train.document(number), made.sources["train"].document(number)
        wanted = batch.targets[row][batch.targets[row] != IGNORE]
        assert wanted.tolist() == target.tolist()
        assert batch.ids[row, : len(target)].tolist() == [made.tokenizer.boundary, *target[:-1].tolist()]
        assert batch.source.ids[row, : batch.source.lengths[row]].tolist() == source.tolist()
    halves = [drawn.batch(4, (i, 2)) for i in range(2)]
    assert sum(len(half.ids) for half in halves) == len(batch.ids)
    many = [drawn.batch(4, (i, 99)) for i in range(99)]  # more replicas than pairs: some learn nothing
    assert sum(int((part.targets != IGNORE).sum()) for part in many) == int((batch.targets != IGNORE).sum())
    assert min(len(part.ids) for part in many) == 1


def test_pairs_beyond_the_context_are_left_out_and_counted() -> None:
    made = phrases()
    longest = np.maximum(made.sources["train"].lengths, made.train.lengths)
    drawn = batches(made, context=7)
    assert drawn.left_out == int((longest > 7).sum()) > 0
    assert drawn.samples == int((longest <= 7).sum())
    with pytest.raises(DataError, match="every pair is longer"):
        batches(made, context=2)


def test_held_out_pairs_come_once() -> None:
    made = phrases()
    assert made.valid is not None
    found = list(held_out_batches(made.sources["valid"], made.valid, made.tokenizer.boundary, 32, 200))
    assert sum(len(batch.ids) for batch in found) == len(made.valid)
    assert all(batch.ids.numel() <= 200 for batch in found)
    some = list(held_out_batches(made.sources["valid"], made.valid, made.tokenizer.boundary, 32, 200, most=50))
    assert 0 < sum(int((batch.targets != IGNORE).sum()) for batch in some) <= 50
