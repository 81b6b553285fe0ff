"""Hugging Face directories both ways, beside the library itself: logits, losses of training, generation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradatim.decode.generate import generate
from gradatim.interop.huggingface.load import import_directory
from gradatim.interop.huggingface.write import export_directory
from gradatim.models.bert import BERT
from gradatim.models.gpt import GPT
from gradatim.train.optimizer import build_optimizer
from gradatim.train.run_directory import Run

transformers = pytest.importorskip("transformers", reason="transformers is optional: pip install 'gradatim[hf]'")

SHAPES = ["gpt2", "gpt2-untied", "llama-grouped", "llama-tied", "llama-biased", "bert", "bert-tanh"]
MakeRun = Callable[..., Run]
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "bert": "BertForPreTraining"}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The library warns of its own past; progress bars are no test's business."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def theirs(directory: Path) -> Any:
    kind = json.loads((directory / "config.json").read_text())["model_type"]
    name = "AutoModelForPreTraining" if kind == "bert" else "AutoModelForCausalLM"
    model, told = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == CLASSES[kind]
    assert not any(told.values()), told
    return model.eval()


def some_ids(words: int, t: int = 20) -> Tensor:
    return torch.randint(0, words, (3, t), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: Tensor) -> list[Tensor]:
    """Ours and theirs alike: logits of words and, of a BERT, of pairs, with segments and padding."""
    segments = (torch.arange(ids.shape[1]) > 8).long().expand_as(ids)
    lengths = torch.tensor([ids.shape[1], 15, 9])
    with torch.no_grad():
        if isinstance(model, BERT):
            words, pairs = model(ids, segments, lengths)
            return [words[0], words[1, :15], words[2, :9], pairs]
        if isinstance(model, GPT):
            return [model.head.output.logits(model.head(model.hidden(ids)[0]))]
        if model.config.model_type == "bert":
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            out = model(input_ids=ids, token_type_ids=segments, attention_mask=mask)
            words = out.prediction_logits
            return [words[0], words[1, :15], words[2, :9], out.seq_relationship_logits]
        return [model(input_ids=ids).logits]


def assert_near(ours: list[Tensor], others: list[Tensor], most: float = 1e-5) -> None:
    for a, b in zip(ours, others, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= most


@pytest.mark.parametrize("shape", SHAPES)
def test_the_library_loads_ours_and_we_load_theirs(shape: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape)
    model, ids = run.network("last"), some_ids(run.tokenizer.vocab_size)
    exported = export_directory(run, run.checkpoint("last"), tmp_path / "ours")
    assert exported.parameters == sum(p.numel() for p in theirs(tmp_path / "ours").parameters())
    other = theirs(tmp_path / "ours")
    assert_near(logits(model, ids), logits(other, ids))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = "the more i learn, the more i like it"
    own = run.tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == own
    assert tokenizer.vocab_size == run.tokenizer.vocab_size
    if run.tokenizer.marks:
        marks = run.tokenizer.marks
        assert tokenizer(text)["input_ids"] == [marks.begin, *own, marks.end]
        assert tokenizer.mask_token_id == marks.blank and tokenizer.pad_token_id == marks.pad
    # Back by their own hand, with other weights, which are ours then.
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.05)
    other.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    told = import_directory(tmp_path / "theirs", tmp_path / "imported")
    assert told.absent == ()
    back = Run.open(tmp_path / "imported")
    assert back.tokenizer.encode(text) == own
    assert_near(logits(back.network("last"), ids), logits(other, ids))
    assert not torch.equal(logits(other, ids)[0], logits(model, ids)[0])


def test_a_model_for_blanks_alone_is_the_librarys_of_that_kind(make_run: MakeRun, tmp_path: Path) -> None:
    """No pooler and no pair head are written; read back as a whole BERT, they are drawn and named."""
    run = make_run("bert-blanks")
    model, ids = run.network("last"), some_ids(run.tokenizer.vocab_size)
    exported = export_directory(run, run.checkpoint("last"), tmp_path / "ours")
    other, told = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(other).__name__ == json.loads((tmp_path / "ours/config.json").read_text())["architectures"][0]
    assert not any(told.values()), told
    assert exported.parameters == sum(p.numel() for p in other.parameters())
    assert isinstance(model, BERT)
    with torch.no_grad():
        words, pairs = model(ids)
        assert pairs is None
        assert_near([words], [other.eval()(input_ids=ids).logits])
    assert "AutoModelForMaskedLM" in (tmp_path / "ours" / "README.md").read_text()
    absent = import_directory(tmp_path / "ours", tmp_path / "imported").absent
    assert {name.rpartition(".")[0] for name in absent} == {"head.pooler", "head.pair"}
    assert_near([Run.open(tmp_path / "imported").network("last")(ids)[0]], [words])


@pytest.mark.parametrize("shape", ["gpt2", "llama-grouped", "bert"])
def test_ten_steps_of_training_have_equal_losses(shape: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape)
    export_directory(run, run.checkpoint("last"), tmp_path / "ours")
    model, other = run.network("last").double().train(), theirs(tmp_path / "ours").double().train()
    for module in other.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    words = run.tokenizer.vocab_size
    ids = some_ids(words)
    labels = some_ids(words).flip(0)
    blanks = torch.tensor([[2, 5, 11]]).expand(3, -1)
    verdicts = torch.tensor([0, 1, 1])
    config = run.config.optimizer
    optimizer = build_optimizer(model, config)
    second = torch.optim.AdamW(
        [{"params": [p for p in other.parameters() if p.dim() >= 2], "weight_decay": config.weight_decay},
         {"params": [p for p in other.parameters() if p.dim() < 2], "weight_decay": 0.0}],
        lr=1e-2, betas=config.betas, eps=config.eps,
    )  # fmt: skip
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    pairs = []
    for _ in range(10):
        if isinstance(model, BERT):
            hidden = model.hidden(ids)
            ours = model.masked_nll(hidden, blanks, labels.gather(1, blanks)) / 9 + model.pair_nll(hidden, verdicts) / 3
            at = torch.full_like(labels, -100).scatter(1, blanks, labels.gather(1, blanks))
            loss = other(input_ids=ids, labels=at, next_sentence_label=verdicts).loss
        else:
            assert isinstance(model, GPT)
            ours = model.nll(model.hidden(ids)[0][:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
            loss = other(input_ids=ids, labels=ids).loss
        for one, its in ((ours, optimizer), (loss, second)):
            its.zero_grad()
            one.backward()
            its.step()
        pairs.append((float(ours.detach()), float(loss.detach())))
    assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-6)
    assert pairs[-1][0] < pairs[0][0]


@pytest.mark.parametrize("shape", ["gpt2", "llama-grouped"])
def test_greedy_generation_is_equal_token_for_token(shape: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(shape)
    export_directory(run, run.checkpoint("last"), tmp_path / "ours")
    prompt = "the more"
    ids = torch.tensor([[run.tokenizer.boundary, *run.tokenizer.encode(prompt)]])
    expected = theirs(tmp_path / "ours").generate(ids, do_sample=False, max_new_tokens=12, use_cache=True)
    wanted = expected[0, ids.shape[1] :].tolist()
    model = run.model("last")
    (found,), _ = generate(model, run.tokenizer, prompt, max_new=12)
    assert (found.text, found.tokens) == (run.tokenizer.decode(wanted), len(wanted))
    state, read, ours = model.start(1), ids, []
    for _ in wanted:  # by hand, for different tokens may read alike
        log_probs, state = model(read, state)
        read = log_probs[:, -1:].argmax(-1)
        ours.append(int(read))
    assert ours == wanted
