"""Fine-tuning as a run: exact resume, weights to begin with, what is frozen, labels that a run keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradatim.config import load_config
from gradatim.config.settings import BertConfig, RunConfig, TokenizerConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.errors import CheckpointError, ConfigError, DataError
from gradatim.evaluate.answers import Tuned
from gradatim.objectives.tuning import Tuning
from gradatim.text.examples import Example
from gradatim.text.prepare_task import encode
from gradatim.text.task_rows import TaskRows
from gradatim.text.vocabulary import train_tokenizer
from gradatim.train import Run, train
from gradatim.train.metrics import read_metrics

MakeConfig = Callable[..., RunConfig]
SMALL = {
    "steps": "6", "global_batch": "4", "context": "24", "model.d_model": "16", "model.n_layers": "2",
    "model.n_heads": "2", "model.d_ff": "32", "optimizer.lr": "0.01", "optimizer.warmup": "1", "evaluation.every": "3",
    "checkpoint.every": "3", "evaluation.tokens": "200", "layout.microbatch": "2",
}  # fmt: skip
TOKENIZERS = {"bert": {"data.tokenizer.vocab_size": "150"}, "gpt": {"data.tokenizer.vocab_size": "300"}}


def config(kind: str, **overrides: object) -> RunConfig:
    named = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return load_config(f"{kind}-classify", {**SMALL, **TOKENIZERS[kind], **named})


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return Run.open(directory).checkpoint("last").tensors("model/")


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(kind: str, tmp_path: Path) -> None:
    """With dropout, layer-wise rates and a frozen layer."""
    gently = {"task__layer_decay": 0.8, "task__frozen_layers": 1, "task__frozen_embeddings": "true"}
    whole = config(kind, optimizer__schedule="constant", **gently)
    train(whole, tmp_path / "whole")
    train(dataclasses.replace(whole, steps=3), tmp_path / "parts")
    train(whole, tmp_path / "parts", resume=True)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert ("loss_lm" in rows[0]) == (kind == "gpt")
    moments = Run.open(tmp_path / "whole").checkpoint("last").tensors("optimizer/")
    assert moments and not any(name.startswith(("embed.", "blocks.0.")) for name in moments)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_the_body_is_taken_and_the_head_is_drawn(kind: str, make_config: MakeConfig, tmp_path: Path) -> None:
    tokenizer = {"data.tokenizer.kind": "wordpiece" if kind == "bert" else "bpe", **TOKENIZERS[kind]}
    shape = {key: value for key, value in SMALL.items() if key.startswith("model.")}
    train(make_config(kind, 2, **{**tokenizer, **shape, "context": "24"}), tmp_path / "first")
    model = {"model__positions": "rotary"} if kind == "gpt" else {}
    said: list[str] = []
    own = config(kind, init_from=tmp_path / "first", steps=1, optimizer__lr=1e-12, optimizer__warmup=0, **model)
    train(own, tmp_path / "second", say=said.append)
    assert f"taking the vocabulary of {tmp_path / 'first' / 'tokenizer.json'}" in said
    assert f"{tmp_path / 'first'} has no head.classifier.weight: it is drawn anew" in said
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    words = Run.open(tmp_path / "first").tokenizer.vocab_size
    for name, tensor in after.items():
        if not name.startswith("head.classifier."):
            rows = words if name == "embed.tokens.weight" else None  # the rest is padding
            torch.testing.assert_close(tensor[:rows], before[name][:rows], rtol=0, atol=1e-9)
    assert not any(name.startswith(("head.pair.", "head.transform.")) for name in after)
    said.clear()
    train(dataclasses.replace(own, init_from=str(tmp_path / "second")), tmp_path / "third", say=said.append)
    assert not any("drawn anew" in line for line in said), "a head for the same labels is taken"
    torch.testing.assert_close(
        weights(tmp_path / "third")["head.classifier.weight"], after["head.classifier.weight"], rtol=0, atol=1e-9
    )


def test_another_tokenizer_and_a_missing_one_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    shape = {key: value for key, value in SMALL.items() if key.startswith("model.")}
    first = make_config("bert", 2, **{**shape, "context": "24"})
    train(first, tmp_path / "first")
    train(config("bert", data__tokenizer__vocab_size=90), tmp_path / "other")
    foreign = tmp_path / "other" / "tokenizer.json"
    with pytest.raises(CheckpointError, match="trained with another tokenizer") as raised:
        train(config("bert", init_from=tmp_path / "first", data__tokenizer__path=foreign), tmp_path / "second")
    attempts = [problem.attempt for problem in raised.value.problems]
    assert f"--data.tokenizer.path {tmp_path / 'first' / 'tokenizer.json'}" in attempts
    (tmp_path / "first" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        train(config("bert", init_from=tmp_path / "first"), tmp_path / "second")
    assert not Run(tmp_path / "second").exists, "nothing stands in the way of the mended command"


def test_a_tuned_run_answers_by_its_labels_and_continues_no_text(tmp_path: Path) -> None:
    train(config("gpt"), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.labels == ("bad", "good")
    tuned = Tuned(run.network("last"), run.config, run.tokenizer, run.labels)
    found = [Example("", ("the soup was good.",), None), Example("", ("the soup " * 40,), None)]
    answered, loss, rows = tuned.answer(found)
    assert loss is None and rows.cut == 1
    assert answered[0].probabilities.sum() == pytest.approx(1)
    alone, *_ = tuned.answer(found[:1])
    assert alone[0].probabilities == pytest.approx(answered[0].probabilities), "padding changes nothing"
    with pytest.raises(ConfigError, match="gradatim predict"):
        run.model("last")
    (tmp_path / "run" / "labels.json").write_text("{}")
    with pytest.raises(CheckpointError, match="labels of this run"):
        Run.open(tmp_path / "run").network("last")


def test_a_word_without_tokens_moves_no_other_words_label() -> None:
    """Nor do those behind the context's end; the model is taken to say O of both."""
    words, tags = ("Ann", "\u200b", "said", "", "Bob", "too"), ("B", "O", "O", "O", "B", "O")
    tokenizer = train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=80), ["ann said bob too"] * 3)
    whole = RunConfig(model=BertConfig(), context=32, task=TaskConfig(kind="tag"))

    def judged(config: RunConfig) -> tuple[list[str | None], dict[str, Any]]:
        class Perfect(Tuned):
            def _scores(self, rows: TaskRows, objective: Tuning) -> Any:
                batch = rows.collate([0])
                assert batch.labels is not None
                yield [0], torch.nn.functional.one_hot(batch.labels.clamp(min=0), 2).double() * 50, 0.0, 1

        tuned = Perfect(None, config, tokenizer, ("B", "O"))  # type: ignore[arg-type]
        example = Example("", words, tags)
        (answer,), *_ = tuned.answer([example])
        return tuned.document(example, answer)["labels"], tuned.judge([example])

    said, figures = judged(whole)
    assert said == ["B", None, "O", None, "B", "O"]
    assert figures["accuracy"] == 1.0 and figures["words_cut"] == 2
    (ids,) = (part for part in encode([Example("", words[:5], None)], tokenizer, whole, ())[0].parts)
    said, figures = judged(dataclasses.replace(whole, context=len(ids) + 1))
    assert said[:4] == ["B", None, "O", None] and said[5] is None and figures["words_cut"] >= 3


def test_macro_f1_is_of_labels_that_occur() -> None:
    tuned = Tuned(None, RunConfig(), None, ("a", "b", "c"))  # type: ignore[arg-type]
    assert tuned._judge_classes([0, 1, 0], [0, 1, 0])["f1"] == 1.0
    assert tuned._judge_classes([0, 1, 0], [0, 1, 2])["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_the_validation_loss_is_the_tasks_alone(tmp_path: Path) -> None:
    """Not the next tokens', by which no run is to be chosen; and it is what evaluation finds on the same rows."""
    result = train(config("gpt", evaluation__tokens="null"), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    tuned = Tuned(run.network("last"), run.config, run.tokenizer, run.labels)
    from gradatim.text.opinions import corpus

    rows = [Example("", (row["text"],), row["label"]) for row in corpus()["valid"]]
    assert tuned.judge(rows)["loss"] == pytest.approx(result.valid_loss, rel=1e-5)
