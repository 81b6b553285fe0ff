"""Tokenizers like those of Llama: the library's ids, bytes of tokens, what opens and closes a text; and out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from gradatim.cli.main import main
from gradatim.config.settings import GptConfig, RunConfig, TokenizerConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.decode.stream import TextStream
from gradatim.errors import DataError
from gradatim.interop.huggingface.tuned import row_template
from gradatim.text.examples import Answer, Example
from gradatim.text.feed import feed_of
from gradatim.text.library import LibraryTokenizer
from gradatim.text.prepare_task import Encoded, encode, prepare_run
from gradatim.text.task_rows import TaskRows
from gradatim.text.tokenizer import BpeTokenizer, Tokenizer, load_tokenizer
from gradatim.text.vocabulary import train_tokenizer
from gradatim.train.run_directory import Run

TEXT = ["the more i read, the more i learn. 1234 and 56, and i like it more than anything else."] * 3
LLAMA3 = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
TRIED = ["", "the more", " the more", "i read  it\n\n", "über 12345 →", "a<|end_of_text|>b</s>", "  two", "x\ty"]


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3's: a pattern, then bytes; a template puts a token before the text."""
    engine = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    cut = pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated", invert=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    engine.add_special_tokens([AddedToken(name) for name in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")])
    begin = ("<|begin_of_text|>", engine.token_to_id("<|begin_of_text|>"))
    single, pair = f"{begin[0]} $A", f"{begin[0]} $A {begin[0]} $B"
    template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[begin])
    engine.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return engine


def sentencepiece(modern: bool = False) -> tokenizers.Tokenizer:
    """As Llama 2's: ▁ for spaces and before the text, unknown characters byte by byte."""
    special = ["<unk>", "<s>", "</s>"]
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")  # no merge reaches across words
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=[*special, *fallback], show_progress=False)
    trained.train_from_iterator(TEXT, trainer)
    facts = json.loads(trained.to_str())
    facts["model"] |= {"byte_fallback": True, "fuse_unk": True}
    facts["added_tokens"] = [entry for entry in facts["added_tokens"] if entry["content"] in special]
    engine = tokenizers.Tokenizer.from_str(json.dumps(facts))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.pre_tokenizer = None
    if modern:
        engine.normalizer = None
        engine.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(steps)
    pair = "<s> $A <s> $B"
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", pair=pair, special_tokens=[("<s>", 1)])
    return engine


ENGINES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": byte_level, "sentencepiece": sentencepiece, "metaspace": lambda: sentencepiece(modern=True),
}  # fmt: skip


@pytest.fixture(params=ENGINES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    ENGINES[request.param]().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_ids_are_the_librarys_and_texts_come_back(path: Path) -> None:
    ours, engine = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    assert isinstance(ours, LibraryTokenizer) and ours.kind == "bpe"
    metaspace = (json.loads(path.read_text())["pre_tokenizer"] or {}).get("type") == "Metaspace"
    assert ours.lossless != metaspace, "which puts no space before a text that has one"
    engine.encode_special_tokens = True
    for text in TRIED:
        ids = ours.encode(text)
        assert ids == engine.encode(text, add_special_tokens=False).ids
        if ours.lossless or not text.startswith(" "):
            assert ours.decode(ids) == text
        assert not {ours.boundary, ours.opening} & set(ids), "names of special tokens are text"
        assert engine.decode(ids, skip_special_tokens=False) == ours.decode(ids)
    assert [batch.tolist() for batch in ours.encode_batch(TRIED)] == [ours.encode(text) for text in TRIED]
    assert ours.encode("a\ud800") == ours.encode("a\ufffd")
    ours.save(path.with_name("again.json"))
    assert load_tokenizer(path.with_name("again.json")).fingerprint == ours.fingerprint


def test_what_opens_and_closes_a_text(path: Path) -> None:
    ours = load_tokenizer(path)
    names = ours.token_text(ours.opening), ours.token_text(ours.boundary)
    assert names in {("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>")}
    assert ours.decode([ours.opening, *ours.encode("the more"), ours.boundary]) == "the more"
    facts = json.loads(path.read_text())
    facts["post_processor"] = None
    path.write_text(json.dumps(facts))
    assert load_tokenizer(path).opening == ours.opening, "by its name where there is no template"


def test_rows_of_a_task_begin_with_what_opens_a_text(path: Path) -> None:
    ours = load_tokenizer(path)
    config = RunConfig(model=GptConfig(), context=8, global_batch=1, task=TaskConfig(kind="classify"))
    rows = TaskRows([Encoded((np.array(ours.encode("the more")),), 0)], ours, config, training=True)
    row = rows.collate([0]).ids[0].tolist()
    assert row[: row.index(ours.boundary) + 1] == [ours.opening, *ours.encode("the more"), ours.boundary]


@pytest.mark.parametrize("delimiter", [None, " ## ", ""])
def test_an_exported_row_opens_and_is_divided_as_the_runs(path: Path, delimiter: str | None) -> None:
    """Where another token opens a text than closes it, and where a text of the config's stands between two."""
    ours = load_tokenizer(path)
    pairs = [("the more i read", "i learn"), ("i like it", "more than anything")]
    task = TaskConfig(kind="classify", text_b="b", delimiter=delimiter)
    config = RunConfig(model=GptConfig(), context=64, task=task)
    encoded = encode([Example("", pair, "no") for pair in pairs], ours, config, ("no",))
    rows = TaskRows(encoded, ours, config, training=False)
    facts = json.loads(path.read_text()) | {"post_processor": row_template(ours, delimiter)}
    engine = tokenizers.Tokenizer.from_str(json.dumps(facts))
    for row, pair in zip(rows.rows, pairs, strict=True):
        assert engine.encode(*pair).ids == row[0].ids.tolist()
        assert engine.encode(pair[0]).ids == [ours.opening, *ours.encode(pair[0]), ours.boundary]


def test_training_reads_what_answering_will(path: Path, tmp_path: Path) -> None:
    """Of counts that is the boundary, of networks the opening; documents end with the boundary for both."""
    text = tmp_path / "text.txt"
    text.write_text("the more i read\nthe more i learn\n" * 20, encoding="utf-8")
    common = ["--data.train", str(text), "--data.valid", "", "--data.cache", str(tmp_path / "cache"),
              "--data.document", "line", "--data.tokenizer.path", str(path)]  # fmt: skip
    small = ["--steps", "1", "--context", "8", "--global_batch", "4", "--model.d_model", "8", "--model.n_layers", "1"]
    for recipe, more in (
        ("lstm", small),
        ("gpt", [*small, "--model.n_heads", "2"]),
        ("bigram", ["--model.discount_fallback", "true"]),
    ):
        folder = tmp_path / recipe
        assert main(["train", recipe, "--run", str(folder), *common, *more]) == 0
        run = Run.open(folder)
        ours = run.tokenizer
        assert (ours.opening == ours.boundary) == (recipe == "bigram")
        if recipe != "bigram":
            batch = feed_of(run.config, prepare_run(run.config)).batch(0)
            assert ours.boundary in batch.targets and ours.opening not in batch.targets
            assert ours.opening in batch.ids and ours.boundary not in batch.ids


def test_what_follows_keeps_its_space_as_it_comes(path: Path) -> None:
    """A text's first space is put there; one after a prompt is said."""
    ours = load_tokenizer(path)
    whole, before = ours.encode("the more i learn über"), ours.encode("the more")
    assert whole[: len(before)] == before
    stream = TextStream(ours)
    assert "".join([stream.push(token) for token in whole[len(before) :]]) + stream.end() == " i learn über"
    assert ours.decode_bytes(whole[len(before) :]) == " i learn über".encode()


def test_words_for_labels_are_cut_as_in_text(path: Path) -> None:
    """Each has one space before it, whoever puts it there."""
    ours = load_tokenizer(path)
    words = ("the", "more", "i", "read")
    config = RunConfig(model=GptConfig(), task=TaskConfig(kind="tag"))
    (found,) = encode([Example("", words, None)], ours, config, ())
    assert found.parts[0].tolist() == ours.encode(" ".join(words))


def plain_bytes(**more: Any) -> tokenizers.Tokenizer:
    """As GPT-2's, with ``</s>`` for the boundary."""
    engine = tokenizers.Tokenizer(models.BPE(**more))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"],
        show_progress=False,
    )  # fmt: skip
    engine.train_from_iterator(TEXT, trainer)
    return engine


def test_a_template_opens_texts_of_bytes_too(tmp_path: Path) -> None:
    engine = plain_bytes()
    begin = ("<s>", engine.token_to_id("<s>"))
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[begin])
    engine.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(ours, BpeTokenizer)
    assert engine.encode("the").tokens[0] == ours.token_text(ours.opening) == "<s>"
    assert ours.token_text(ours.boundary) == "</s>"


def test_tokens_that_no_merge_makes_are_left_to_the_library(tmp_path: Path) -> None:
    facts = json.loads(plain_bytes(ignore_merges=True).to_str())
    facts["model"]["vocab"]["zq"] = max(facts["model"]["vocab"].values()) + 1
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(facts))
    ours, engine = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("zq", "azqb", "the more zq"):
        assert ours.encode(text) == engine.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "sentencepiece"])
def test_a_text_is_encoded_whole_whatever_its_file_says_of_cutting_and_filling(kind: str, tmp_path: Path) -> None:
    made = sentencepiece() if kind == "sentencepiece" else train_tokenizer(
        TokenizerConfig(kind=kind, vocab_size=300), TEXT  # type: ignore[arg-type]
    ).engine  # fmt: skip
    made.save(str(tmp_path / "plain.json"))
    made.enable_truncation(4)
    made.enable_padding(length=4)
    made.save(str(tmp_path / "cut.json"))
    plain, cut = load_tokenizer(tmp_path / "plain.json"), load_tokenizer(tmp_path / "cut.json")
    for text in ("read", "the more i read, the more i learn"):
        assert cut.encode(text) == plain.encode(text)
        assert [ids.tolist() for ids in cut.encode_batch([text])] == [plain.encode(text)]
    passage = "the more i read, the more i learn"
    config = RunConfig(model=GptConfig(), task=TaskConfig(kind="span", text_b="b"))
    if kind != "wordpiece":
        (found,) = encode([Example("", ("what", passage), Answer(("learn",), 28, 33))], cut, config, ())
        assert found.parts[1].tolist() == plain.encode(passage)
        begin, end = (found.offsets[place] for place in found.label)
        assert passage[begin[0] : end[1]].strip() == "learn"


def test_what_stands_for_no_fixed_bytes_is_refused(tmp_path: Path) -> None:
    engine = tokenizers.Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))
    engine.save(str(tmp_path / "t.json"))
    with pytest.raises(DataError, match="no fixed bytes"):
        load_tokenizer(tmp_path / "t.json")
    engine = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    engine.normalizer = normalizers.Replace(" ", "▁")
    engine.save(str(tmp_path / "t.json"))
    with pytest.raises(DataError, match="no end-of-text token"):
        load_tokenizer(tmp_path / "t.json")
    folded = sentencepiece()
    folded.normalizer = normalizers.Sequence([normalizers.Lowercase(), folded.normalizer])
    folded.save(str(tmp_path / "t.json"))
    assert not load_tokenizer(tmp_path / "t.json").lossless


@pytest.mark.filterwarnings("ignore")
def test_a_llama_directory_goes_in_and_comes_out_with_its_tokenizer(path: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is optional: pip install 'gradatim[hf]'")
    from gradatim.decode.generate import generate
    from gradatim.interop.huggingface.load import import_directory
    from gradatim.interop.huggingface.write import export_directory
    from gradatim.train import Run

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ours: Tokenizer = load_tokenizer(path)
    source = tmp_path / "hf"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=ours.vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=ours.opening, eos_token_id=ours.boundary, initializer_range=0.5,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(source)
    path.rename(source / "tokenizer.json")
    told = import_directory(source, tmp_path / "run")
    assert told.tokenizer == "LibraryTokenizer"
    run = Run.open(tmp_path / "run")
    assert run.tokenizer.fingerprint == ours.fingerprint
    export_directory(run, run.checkpoint("last"), tmp_path / "back")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    theirs = again("the more i read", return_tensors="pt")
    assert theirs["input_ids"][0].tolist() == [ours.opening, *ours.encode("the more i read")]
    assert (again.bos_token_id, again.eos_token_id) == (ours.opening, ours.boundary)
    facts = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (facts["bos_token_id"], facts["eos_token_id"]) == (ours.opening, ours.boundary)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    said = back.generate(**theirs, max_new_tokens=6, do_sample=False)[0, theirs["input_ids"].shape[1] :].tolist()
    (found,), _ = generate(run.model("last"), run.tokenizer, "the more i read", max_new=6)
    said = said[: said.index(ours.boundary)] if ours.boundary in said else said
    assert found.text == ours.decode_bytes(said).decode("utf-8", "replace")
