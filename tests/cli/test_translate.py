"""``translate`` and ``evaluate`` of a translation run: answers, pictures, and every sort of odd input."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradatim.cli.main import main
from gradatim.cli.translate import report
from gradatim.config.settings import TokenizerConfig
from gradatim.decode.translate import Translated, Translation
from gradatim.report.attention import Looked, labels
from gradatim.text.vocabulary import train_tokenizer

TINY = ["--steps", "3", "--batch_tokens", "200", "--model.d_model", "16", "--optimizer.warmup", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny runs on the phrasebook, which know nothing."""
    folder = tmp_path_factory.mktemp("runs")
    cache = ["--data.cache", str(folder / "cache")]
    for recipe in ("attention", "transformer", "translate-lm"):
        more = ["--model.n_layers", "1"] if recipe == "transformer" else []
        assert main(["train", recipe, "--run", str(folder / recipe), *TINY, *more, *cache]) == 0
    return folder


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    found = capsys.readouterr()
    return found.out, found.err


def given(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_a_line_comes_back_for_each_line(runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    file = tmp_path / "text.fr"
    file.write_text("je suis étudiant\n\nelle est inconnue zut\n")
    for recipe in ("attention", "transformer", "translate-lm"):
        out, err = answer(capsys, "translate", runs / recipe, file, "--beams", 2, "--max-new", 5)
        assert out.count("\n") == 3
        assert out.split("\n")[1] == ""
        assert "1 empty line," in err and "2 words never seen in training, read as unknown: inconnue, zut\n" in err
    given(monkeypatch, "je suis étudiant")
    assert answer(capsys, "translate", runs / "attention", "--beams", 1)[0].count("\n") == 1
    given(monkeypatch, "")
    assert answer(capsys, "translate", runs / "attention")[0].strip() == ""


def test_the_document_has_translations_and_attention(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    for recipe, shows in (("attention", True), ("transformer", True), ("translate-lm", False)):
        given(monkeypatch, "je suis étudiant\n")
        out, _ = answer(capsys, "translate", runs / recipe, "--json", "--n-best", 3, "--max-new", 6)
        ((row),) = json.loads(out)
        assert row["source"] == "je suis étudiant"
        values = [each["log_probability"] for each in row["translations"]]
        assert len(values) == 3 and all(value < 0 for value in values)
        if not shows:
            assert row["attention"] is None
            continue
        weights = row["attention"]["weights"]
        assert row["attention"]["source"][:3] == ["je", "suis", "étudiant"]
        assert [len(line) for line in weights] == [4] * len(row["attention"]["target"])
        assert [sum(line) for line in weights] == pytest.approx([1.0] * len(weights), abs=1e-5)


def test_attention_in_every_format(runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>", ".json": b"[{", ".txt": b""}
    for ending, begin in begins.items():
        given(monkeypatch, "je suis étudiant\n")
        path = tmp_path / f"attention{ending}"
        answer(capsys, "translate", runs / "transformer", "--attention", path, "--max-new", 4, "--beams", 1)
        assert path.read_bytes().startswith(begin)
    (document,) = json.loads((tmp_path / "attention.json").read_text())
    assert list(document["heads"]) == [f"layer 1 head {head}" for head in range(1, 5)]
    mean = sum(table[0][0] for table in document["heads"].values()) / 4
    assert document["weights"][0][0] == pytest.approx(mean)
    assert "src=" not in (tmp_path / "attention.html").read_text()
    links = (tmp_path / "attention.txt").read_text().split()
    assert all(0 <= int(link.split("-")[0]) < 3 for link in links)


def test_a_picture_of_many_tokens_says_what_it_leaves_out(
    runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    long = ["--context", "450", "--batch_tokens", "450", "--data.cache", runs / "cache"]
    small = ["--steps", "1", "--model.d_model", "16", "--model.n_layers", "1", "--optimizer.warmup", "1"]
    answer(capsys, "train", "transformer", "--run", runs / "long", *long, *small)
    given(monkeypatch, "chat " * 400)
    _, err = answer(capsys, "translate", runs / "long", "--attention", tmp_path / "a.png", "--max-new", 3, "--beams", 1)
    assert "401 tokens on a side are too many to label each" in err
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_alignments_are_those_of_the_lines(runs: Path, tmp_path: Path, capsys: Any) -> None:
    file, links, weights, page = (tmp_path / name for name in ("text.fr", "links.txt", "weights.json", "page.html"))
    file.write_text("je suis étudiant\n\nelle est inconnue\n")
    for path in (links, weights, page):
        answer(capsys, "translate", runs / "attention", file, "--attention", path, "--max-new", 4)
    lines = links.read_text().split("\n")
    assert len(lines) == 4 and lines[0] and not lines[1] and lines[2] and not lines[3]
    first, second, third = json.loads(weights.read_text())
    assert first["source"][:3] == ["je", "suis", "étudiant"] and second is None
    assert third["source"][:3] == ["elle", "est", "‹inconnue›"]
    assert "<h2>je suis étudiant" in page.read_text() and "<h2>elle est inconnue" in page.read_text()


def test_a_given_translation_has_its_log_probability_and_its_unknown_words_told(
    runs: Path, tmp_path: Path, capsys: Any
) -> None:
    source, target, weights = tmp_path / "a.fr", tmp_path / "a.en", tmp_path / "weights.json"
    source.write_text("je suis étudiant\nje suis étudiant\n")
    target.write_text("I am a student\nI am a zebra\n")
    out, err = answer(capsys, "translate", runs / "attention", source, "--forced", target, "--attention", weights)
    rows = [line.split("\t") for line in out.splitlines()]
    assert [text for _, text in rows] == ["I am a student", "I am a zebra"] and all(
        float(value) < 0 for value, _ in rows
    )
    assert "1 word of the given translations never seen in training, read as unknown: zebra\n" in err
    assert json.loads(weights.read_text())[1]["target"][:4] == ["I", "am", "a", "‹zebra›"]


def test_a_checkpoint_is_not_chosen_beside_a_mean(runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    for verb in ("translate", "evaluate"):
        _, err = answer(capsys, verb, runs / "attention", "--average", 2, "--checkpoint", "best", code=2)
        assert "--checkpoint --average" in err and "one of the two" in err
    given(monkeypatch, "je suis étudiant\n")
    _, err = answer(capsys, "translate", runs / "attention", "--checkpoint", 7, code=4)
    assert "there is no such checkpoint" in err and "one of 3" in err


def test_a_comparison_looks_at_all_runs_before_it_judges_one(
    runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def judged(*_: object, **__: object) -> None:
        raise AssertionError("a run was judged")

    monkeypatch.setattr("gradatim.evaluate.translation.evaluate_pairs", judged)
    (tmp_path / "empty").mkdir()
    answer(capsys, "evaluate", runs / "attention", tmp_path / "empty", "--compare", code=4)


def test_labels_of_a_picture_show_where_words_begin() -> None:
    tokens = ["L", "'", "accord", " z", "one", " ", "$", "1", "9", ".", "<|endoftext|>"]
    pieces = ["L", "'", "accord", "z", "·one", "␣", r"\$", "1", "·9", ".", "(end)"]
    assert labels(tokens, "bpe") == pieces
    assert labels(["un", "chat", "<|endoftext|>"], "word") == ["un", "chat", "(end)"]


def test_links_are_between_words_however_they_are_spelt() -> None:
    """The end mark is none, and a translation that did not reach its end keeps its last word."""
    end = "<|endoftext|>"

    def linked(source: list[str], target: list[str], pieces: str) -> str:
        weights = np.eye(len(target), len(source))[None]
        return Looked(source, target, ("attention",), weights).pharaoh(pieces)

    assert linked(["je", "suis", "ici", end], ["i", "am", "here", end], "word") == "0-0 1-1 2-2"
    assert linked(["je", "suis", "ici", end], ["i", "am", "here"], "word") == "0-0 1-1 2-2"
    assert linked(["je", "su", "##is", "[SEP]"], ["i", "a", "##m", "[SEP]"], "wordpiece") == "0-0 1-1"
    assert linked(["je", " su", "is", end], ["i", " a", "m", end], "bpe") == "0-0 1-1"
    assert labels(["su", "##is", "\x01", "[SEP]"], "wordpiece") == ["su", "·is", r"\x01", "[SEP]"]


def test_forced_decoding_reads_the_given_translation(runs: Path, tmp_path: Path, capsys: Any) -> None:
    source, target = tmp_path / "a.fr", tmp_path / "a.en"
    source.write_text("je suis étudiant\n")
    target.write_text("I am a student\n")
    out, _ = answer(capsys, "translate", runs / "attention", source, "--forced", target, "--json")
    ((row),) = json.loads(out)
    assert row["translations"][0]["text"] == "I am a student"
    assert row["attention"]["target"][:4] == ["I", "am", "a", "student"]
    target.write_text("I am a student\nagain\n")
    _, err = answer(capsys, "translate", runs / "attention", source, "--forced", target, code=3)
    assert "2 lines" in err
    target.write_text("I am " * 40)
    _, err = answer(capsys, "translate", runs / "attention", source, "--forced", target, code=3)
    assert "a.en:1: the translation is longer than the context\n    got: 81 tokens" in err


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--n-best", "3", "--beams", "2"], 2, "not so many beams"),
        (["--length-penalty", "nan"], 2, "out of range"),
        (["--attention", "a.bmp"], 2, "no such format"),
        (["--attention", "nowhere/a.png"], 2, "no such folder"),
        (["missing.fr"], 3, "no such file"),
        (["."], 3, "this is a folder"),
        (["--average", "99"], 2, "not kept so many"),
    ],
)
def test_mistakes_are_told(
    runs: Path, capsys: Any, monkeypatch: Any, arguments: list[str], code: int, what: str
) -> None:
    given(monkeypatch, "je suis étudiant\n")
    _, err = answer(capsys, "translate", runs / "attention", *arguments, code=code)
    assert what in err


def test_odd_files_are_told_apart(runs: Path, tmp_path: Path, capsys: Any) -> None:
    """UTF-16 and binary files are refused by every verb; one pair trains, and nothing is held out of it."""
    wide, own, empty = tmp_path / "wide.fr", tmp_path / "own.en", tmp_path / "empty.txt"
    wide.write_text("je suis là\n", encoding="utf-16")
    own.write_text("I am here\n")
    empty.write_text("")
    both = ["--data.train_source", wide, "--data.train_target", own]
    for verb in (["translate", runs / "attention", wide], ["train", "attention", "--run", tmp_path / "a", *TINY, *both],
                 ["evaluate", runs / "attention", "--source", wide, "--target", own]):  # fmt: skip
        assert "not text in UTF-8\n    got: UTF-16" in answer(capsys, *verb, code=3)[1]
    wide.write_bytes(bytes(range(256)) * 9)
    assert "not text in UTF-8" in answer(capsys, "translate", runs / "attention", wide, code=3)[1]
    assert "there are no sentences" in answer(capsys, "translate", runs / "attention", empty)[1]
    _, err = answer(capsys, "evaluate", runs / "attention", "--source", empty, "--target", empty, code=3)
    assert "there are no pairs" in err
    wide.write_text("je suis là\n")
    held = ["--data.valid_source", wide, "--data.valid_target", own, "--data.cache", tmp_path / "cache"]
    answer(capsys, "train", "attention", "--run", tmp_path / "held", *TINY, *both, *held)
    _, err = answer(capsys, "evaluate", tmp_path / "held", "--source", empty, "--target", empty, code=3)
    assert "there are no pairs" in err, "and the run's own are not judged instead"
    more = ["--data.split", "component", "--data.cache", tmp_path / "cache"]
    _, err = answer(capsys, "train", "attention", "--run", tmp_path / "b", *TINY, *both, *more)
    assert "valid: too few pairs to hold any out" in err
    found, _ = answer(capsys, "translate", tmp_path / "b", wide, "--beams", 99, "--n-best", 99, "--max-new", 1)
    assert len(found.splitlines()) == 5  # as many as there are words, the end and the unknown


def test_pictures_that_cannot_be(runs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    given(monkeypatch, "je suis étudiant\n")
    _, err = answer(capsys, "translate", runs / "translate-lm", "--attention", tmp_path / "a.png", code=2)
    assert "no attention to the source" in err
    given(monkeypatch, "je suis\nil est\n")
    _, err = answer(capsys, "translate", runs / "attention", "--attention", tmp_path / "a.png", code=2)
    assert "a picture shows one sentence" in err and ".html" in err


def test_long_sentences_and_the_wrong_language_are_noticed(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    given(monkeypatch, "chat " * 50 + "\n")
    _, err = answer(capsys, "translate", runs / "attention", "--max-new", 3, "--beams", 1)
    assert "longer than the context (32 tokens)" in err and "19 tokens were not read" in err
    given(monkeypatch, "the small cats are not black and the house is red\n")
    _, err = answer(capsys, "translate", runs / "attention", "--max-new", 3, "--beams", 1)
    assert "looks like en" in err


def test_what_is_odd_is_counted(capsys: Any) -> None:
    """An unfinished translation, whatever a tiny model would do; one thing is one, several are some."""
    words = train_tokenizer(TokenizerConfig(kind="word", vocab_size=None), ["a b"])
    translating: Any = SimpleNamespace(context=8, source_tokenizer=words)
    odd = Translated("a zut", [2, 1, 0], 0, 1, [Translation("x", -1.0, [3], ended=False)])
    fine = Translated("a", [2, 0], 0, 0, [Translation("x", -1.0, [3, 0], ended=True)])
    report([odd, fine], translating)
    assert capsys.readouterr().err == (
        "1 word never seen in training, read as unknown: zut\n1 translation reached the limit of length unfinished\n"
    )
    report([odd, odd, fine], translating)
    assert "2 words never seen" in (err := capsys.readouterr().err) and "2 translations reached" in err
    report([fine], translating)
    assert capsys.readouterr().err == ""


def test_a_translator_is_asked_to_translate_and_nothing_else_is(runs: Path, tmp_path: Path, capsys: Any) -> None:
    for verb in (["score", "x"], ["next", "x"], ["complete", "x"]):
        _, err = answer(capsys, verb[0], runs / "attention", verb[1], code=2)
        assert "this run translates" in err
    cache = ["--data.cache", runs / "cache"]
    answer(capsys, "train", "small-english", "--run", tmp_path / "ngram", *cache)
    _, err = answer(capsys, "translate", tmp_path / "ngram", runs / "attention" / "config.yaml", code=2)
    assert "does not translate" in err


def test_evaluate_adds_bleu_and_its_signature(runs: Path, tmp_path: Path, capsys: Any) -> None:
    out, err = answer(capsys, "evaluate", runs / "transformer", "--json", "--beams", 1)
    found = json.loads(out)
    for name in ("bleu", "chrf", "bleu_tokenised", "perplexity", "nats_per_token", "sentences_per_second"):
        assert found[name] >= 0
    assert found["signature"].startswith("nrefs:1")
    assert sum(row["sentences"] for row in found["by_source_length"]) == found["sentences"]
    assert "test part" in err
    source, target = tmp_path / "a.fr", tmp_path / "a.en"
    source.write_text("je suis étudiant\nil est grand\n")
    target.write_text("I am a student\nhe is tall\n")
    out, _ = answer(capsys, "evaluate", runs / "attention", "--source", source, "--target", target, "--json")
    assert json.loads(out)["sentences"] == 2
    assert "source words" in answer(capsys, "evaluate", runs / "attention", "--beams", 1)[0]


def test_runs_are_compared_on_the_same_sentences(runs: Path, capsys: Any) -> None:
    both = [runs / "attention", runs / "transformer"]
    out, _ = answer(capsys, "evaluate", *both, "--compare", "--beams", 1, "--json")
    found = json.loads(out)
    assert [row["run"] for row in found["runs"]] == list(map(str, both))
    (difference,) = found["comparisons"]
    assert difference["baseline"] == str(both[0])
    bleu = [row["bleu"] for row in found["runs"]]
    assert difference["difference"] == pytest.approx(bleu[1] - bleu[0])
    assert "p" in answer(capsys, "evaluate", *both, "--compare", "--beams", 1)[0]
    assert json.loads(answer(capsys, "evaluate", *both, "--beams", 1, "--json")[0])["comparisons"] == [difference]
    _, err = answer(capsys, "evaluate", runs / "attention", "--compare", code=2)
    assert "nothing to compare" in err
    _, err = answer(capsys, "evaluate", runs / "attention", "--stride", 3, code=2)
    assert "judged on pairs" in err


def test_pairs_are_prepared_and_reported(tmp_path: Path, capsys: Any) -> None:
    out, _ = answer(capsys, "prepare", "translate-demo", "--out", tmp_path / "pairs", "--json")
    found = json.loads(out)
    assert found["documents"] == 4000
    assert found["splits"]["test"]["also in train"] == 0
    assert (tmp_path / "pairs" / "source-tokenizer.json").is_file()
