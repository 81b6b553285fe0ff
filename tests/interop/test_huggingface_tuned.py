"""Fine-tuned models beside the library's own classes: scores of the same rows, and losses of training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradatim.config.settings import BertConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.config.tuned import TunedConfig, model_of
from gradatim.errors import ConfigError
from gradatim.interop.huggingface.write import export_directory
from gradatim.models import build_model
from gradatim.objectives.tuning import Tuning
from gradatim.text.batches import Batch
from gradatim.text.examples import Answer, Example
from gradatim.text.prepare_task import encode
from gradatim.text.task_rows import TaskRows
from gradatim.train.optimizer import build_optimizer
from gradatim.train.run_directory import Run

transformers = pytest.importorskip("transformers", reason="transformers is optional: pip install 'gradatim[hf]'")

TASKS = {
    "classify": TaskConfig(kind="classify"),
    "pairs": TaskConfig(kind="classify", text_b="b"),
    "lm": TaskConfig(kind="classify", lm_weight=0.5),
    "regress": TaskConfig(kind="regress"),
    "tag": TaskConfig(kind="tag"),
    "span": TaskConfig(kind="span", text_b="b"),
    "choice": TaskConfig(kind="choice"),
}
MakeRun = Callable[..., Run]
LABELS = ("no", "perhaps", "yes")
PAIRS = [("the more i read", "i learn"), ("i like it", "more than anything"), ("read it", "and learn the more")]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def some(task: TaskConfig) -> list[Example]:
    """Three rows, of different length where the library's loss allows it."""
    if task.kind == "tag":
        return [Example("", tuple(a.split()), tuple(LABELS[len(w) % 3] for w in a.split())) for a, _ in PAIRS]
    if task.kind == "span":
        return [Example("", pair, Answer((pair[1][:5],), 0, 5)) for pair in PAIRS[:1] * 3]
    if task.kind == "choice":
        return [Example("", (*pair, "anything else"), number % 2) for number, pair in enumerate(PAIRS)]
    if task.kind == "regress":
        return [Example("", pair[:1], number - 0.5) for number, pair in enumerate(PAIRS)]
    return [Example("", pair if task.text_b else pair[:1], LABELS[n]) for n, pair in enumerate(PAIRS)]


def tuned_run(make_run: MakeRun, shape: str, task: str) -> Run:
    own = TASKS[task]
    return make_run(shape, "run", own, LABELS if own.kind in ("classify", "tag") else ())


def theirs(directory: Path) -> Any:
    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    auto = "AutoModelFor" + name.partition("For")[2]
    model, told = getattr(transformers, auto).from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == name
    assert not any(told.values()), told
    return model.eval()


def asked(other: Any, batch: Batch, task: TaskConfig, labelled: bool = True) -> Any:
    """The library's answer to our batch; where its class speaks of single rows, choices are given as rows."""
    assert batch.lengths is not None and batch.labels is not None
    as_rows = task.kind == "choice" and "MultipleChoice" not in type(other).__name__
    ids, lengths = (batch.ids.flatten(0, 1), batch.lengths.flatten()) if as_rows else (batch.ids, batch.lengths)
    mask = torch.arange(ids.shape[-1]) < lengths[..., None]
    ids = ids.masked_fill(~mask, other.config.pad_token_id)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
    if batch.segments is not None:
        given["token_type_ids"] = batch.segments
    if labelled and not as_rows:
        labels = batch.labels.to(torch.float64) if task.kind == "regress" else batch.labels
        spans = {"start_positions": batch.labels[:, 0], "end_positions": batch.labels[:, 1]} if labels.dim() > 1 else {}
        given |= spans if task.kind == "span" else {"labels": labels}
    return other(**given)


def scores_of(answer: Any, task: TaskConfig, batch: Batch) -> Tensor:
    if task.kind == "span":
        return torch.stack([answer.start_logits, answer.end_logits], -1)
    found: Tensor = answer.logits
    return found.view(len(batch.ids), -1) if task.kind == "choice" else found


@pytest.mark.parametrize("shape", ["gpt2", "bert"])
def test_a_mean_is_refused(shape: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape, "run", TaskConfig(kind="classify", pooling="mean"), LABELS)
    with pytest.raises(ConfigError) as raised:
        export_directory(run, run.checkpoint("last"), tmp_path / "hf")
    assert "the mean of all" in str(raised.value) and not (tmp_path / "hf").exists()


@pytest.mark.parametrize("shape", ["gpt2", "llama-grouped", "bert"])
@pytest.mark.parametrize("task", TASKS)
def test_scores_and_training_are_the_librarys(shape: str, task: str, make_run: MakeRun, tmp_path: Path) -> None:
    run, own = tuned_run(make_run, shape, task), TASKS[task]
    export_directory(run, run.checkpoint("last"), tmp_path / "hf")
    ours, other = run.network("last").double(), theirs(tmp_path / "hf").double()
    rows = TaskRows(encode(some(own), run.tokenizer, run.config, run.labels), run.tokenizer, run.config, training=False)
    batch, objective, model = rows.collate([0, 1, 2]), Tuning(own), model_of(run.config, 3)
    assert isinstance(model, TunedConfig)
    with torch.no_grad():
        hidden = objective.run(ours, objective.enter(ours, batch), batch)
        scores = objective.scores(ours, hidden, batch)
        wanted = scores_of(asked(other, batch, own, labelled=False), own, batch)
    if own.kind in ("tag", "span"):
        inside = torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]
        scores, wanted = scores[inside], wanted[inside]
    most = 1e-6 if shape.startswith("llama") else 1e-10  # the library rotates in single precision
    torch.testing.assert_close(scores, wanted, rtol=0, atol=most)
    if (own.kind == "choice" and shape != "bert") or task == "lm":  # whose losses the library's classes have not
        return
    for module in other.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if own.kind == "span":  # the library counts padding among the places
        assert batch.lengths is not None
        t = int(batch.lengths[0])
        batch = Batch(
            batch.ids[:, :t], batch.targets, lengths=batch.lengths, labels=batch.labels,
            segments=None if batch.segments is None else batch.segments[:, :t],
        )  # fmt: skip
    config = run.config.optimizer
    first = build_optimizer(ours.train(), config)
    second = torch.optim.AdamW(
        [{"params": [p for p in other.train().parameters() if (p.dim() >= 2) == many], "weight_decay": decay}
         for many, decay in ((True, config.weight_decay), (False, 0.0))],
        lr=1e-2, betas=config.betas, eps=config.eps,
    )  # fmt: skip
    for group in first.param_groups:
        group["lr"] = 1e-2
    losses = []
    for _ in range(5):
        terms, _ = objective(ours, batch)
        mine = terms["task"][0] / terms["task"][1]
        loss = asked(other, batch, own).loss
        for one, its in ((mine, first), (loss, second)):
            its.zero_grad()
            one.backward()
            its.step()
        losses.append((float(mine.detach()), float(loss.detach())))
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], rel=1e-6)
    assert losses[-1][0] < losses[0][0]


@pytest.mark.parametrize(("shape", "task"), [("bert", "pairs"), ("gpt2", "pairs"), ("llama-grouped", "classify")])
def test_the_librarys_tokenizer_lays_rows_out_alike(shape: str, task: str, make_run: MakeRun, tmp_path: Path) -> None:
    """With its own padding, so that a batch is what the pipelines of the library make of text."""
    run, own = tuned_run(make_run, shape, task), TASKS[task]
    export_directory(run, run.checkpoint("last"), tmp_path / "hf")
    tokenizer, other = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), theirs(tmp_path / "hf")
    examples = some(own)
    rows = TaskRows(encode(examples, run.tokenizer, run.config, run.labels), run.tokenizer, run.config, training=False)
    texts = [list(column) for column in zip(*(example.texts for example in examples))]
    given = tokenizer(*texts, padding=True, return_tensors="pt")
    for place, row in enumerate(rows.rows):
        length = int(given["attention_mask"][place].sum())
        assert given["input_ids"][place, :length].tolist() == row[0].ids.tolist()
    objective, model = Tuning(own), run.network("last")
    with torch.no_grad():
        batch = rows.collate([0, 1, 2])
        hidden = objective.run(model, objective.enter(model, batch), batch)
        torch.testing.assert_close(objective.scores(model, hidden, batch), other(**given).logits, rtol=0, atol=1e-5)
    assert other.config.id2label == dict(enumerate(LABELS))


def test_a_head_begins_alike_whatever_the_body() -> None:
    """Initial weights follow from seed and name: the body's are those of the model without a task."""
    body = BertConfig(d_model=16, n_layers=1, n_heads=2)
    bare, tuned = (build_model(c, 50, 8, 3) for c in (body, TunedConfig(body=body, task="classify", outputs=3)))
    mine = dict(tuned.named_parameters())
    assert set(mine) - set(dict(bare.named_parameters())) == {"head.classifier.weight", "head.classifier.bias"}
    for name, parameter in bare.named_parameters():
        if name in mine:
            assert torch.equal(parameter, mine[name]), name
