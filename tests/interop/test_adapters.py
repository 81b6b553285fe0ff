"""Adapters in the library's own format: its answers with them are ours, and they are read back as they were."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradatim.cli.starting import source_model
from gradatim.config.settings import DataConfig, RunConfig, TokenizerConfig
from gradatim.config.settings_lora import LoraConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.config.tuned import model_of
from gradatim.errors import ConfigError, DataError
from gradatim.interop.huggingface.directory import open_directory
from gradatim.interop.huggingface.load import import_directory
from gradatim.interop.huggingface.write import export_directory
from gradatim.interop.huggingface.write_adapters import export_adapters
from gradatim.objectives.tuning import Tuning
from gradatim.shapes.lora import trained_parameters
from gradatim.text.batches import Batch
from gradatim.text.tokenizer import load_tokenizer
from gradatim.train.adapted import remember_base
from gradatim.train.checkpoint import save_checkpoint
from gradatim.train.continuing import training_hash
from gradatim.train.manifest import Manifest
from gradatim.train.run_directory import MODEL, Run
from gradatim.train.start import open_weights

MakeRun = Callable[..., Run]
ALL = ("qkv", "out", "up", "down")
CASES: dict[str, tuple[str, LoraConfig, TaskConfig]] = {
    "gpt2": ("gpt2", LoraConfig(rank=2, alpha=5.0, targets=ALL), TaskConfig()),
    "gpt2 apart": ("gpt2", LoraConfig(rank=2, alpha=3.0, targets=("v", "q", "up")), TaskConfig()),
    "gpt2 values": ("gpt2", LoraConfig(rank=3, targets=("v",)), TaskConfig()),
    "llama": ("llama-grouped", LoraConfig(rank=2, targets=("qkv", "gate", "down")), TaskConfig()),
    "llama apart": ("llama-grouped", LoraConfig(rank=2, targets=("q", "v", "out")), TaskConfig()),
    "bert": ("bert", LoraConfig(rank=2, targets=ALL), TaskConfig()),
    "bert down": ("bert", LoraConfig(rank=2, targets=("k", "down")), TaskConfig()),
    "bert classify": ("bert", LoraConfig(rank=2, targets=("q", "v")), TaskConfig(kind="classify")),
    "gpt2 classify": ("gpt2", LoraConfig(rank=2), TaskConfig(kind="classify")),
    "llama tag": ("llama-grouped", LoraConfig(rank=2, targets=("qkv", "up")), TaskConfig(kind="tag")),
    "bert span": ("bert", LoraConfig(rank=2, targets=("down", "up")), TaskConfig(kind="span", text_b="b")),
}
LABELS = ("no", "perhaps", "yes")


@pytest.fixture
def adapted(make_run: MakeRun, tmp_path: Path) -> Callable[[str], Run]:
    """A run of adapters, none of them at its initial value, beside the directory ``base``."""

    def make(case: str) -> Run:
        shape, lora, task = CASES[case]
        origin = make_run(shape, "origin")
        export_directory(origin, origin.checkpoint("last"), tmp_path / "base")
        model, context = origin.config.model, origin.config.context
        kind = TokenizerConfig(kind="wordpiece" if model.kind == "bert" else "bpe", vocab_size=300)
        data = DataConfig(tokenizer=kind, **({} if task.kind == "none" else {"train": ("table.tsv",)}))
        config = RunConfig(
            model=model, context=context, data=data, lora=lora, task=task, init_from=str(tmp_path / "base")
        )
        tokenizer = load_tokenizer(tmp_path / "base" / "tokenizer.json")
        run = Run.create(tmp_path / "run", config, tokenizer)
        labels = LABELS if task.kind in ("classify", "tag") else ()
        run.remember_labels(labels)
        remember_base(run, open_weights(tmp_path / "base"))
        generator = torch.Generator().manual_seed(1)
        shapes = trained_parameters(model_of(config, len(labels)), lora, tokenizer.vocab_size, context)
        tensors = {MODEL + s.name: torch.randn(s.shape, generator=generator) * 0.3 for s in shapes}
        manifest = Manifest(
            step=7, tokens=70, samples=14, config_hash=training_hash(config), data_fingerprint="",
            tokenizer_fingerprint=tokenizer.fingerprint,
        )  # fmt: skip
        save_checkpoint(run.checkpoints, manifest, tensors)
        return run

    return make


def answers(run: Run, ids: torch.Tensor) -> torch.Tensor:
    """Our scores of rows, in float64: of words, labels, or ends of spans."""
    network, kind = run.network("last").double(), run.config.task.kind
    lengths = torch.full((len(ids),), ids.shape[1])
    segments = torch.zeros_like(ids) if run.config.model.kind == "bert" else None
    with torch.no_grad():
        if kind != "none":
            batch = Batch(ids, torch.full_like(ids, -100), lengths=lengths, segments=segments)
            objective = Tuning(run.config.task)
            return objective.scores(network, objective.run(network, objective.enter(network, batch), batch), batch)
        if run.config.model.kind == "bert":
            return torch.log_softmax(network(ids)[0], -1)
        found, _ = network(ids, network.start(len(ids)))  # type: ignore[operator]
        return torch.as_tensor(found)


def scores(answer: Any, run: Run) -> torch.Tensor:
    """The library's, in the same form."""
    if run.config.task.kind == "span":
        return torch.stack([answer.start_logits, answer.end_logits], -1)
    if run.config.task.kind != "none":
        return torch.as_tensor(answer.logits)
    words = run.tokenizer.vocab_size
    logits = answer.prediction_logits if "prediction_logits" in answer else answer.logits
    return torch.log_softmax(logits[..., :words], -1)


@pytest.mark.parametrize("case", CASES)
def test_the_library_with_our_adapters_says_what_we_say(
    case: str, adapted: Callable[[str], Run], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is optional: pip install 'gradatim[hf]'")
    peft = pytest.importorskip("peft", reason="peft is optional: pip install 'gradatim[hf]'")
    run = adapted(case)
    export_adapters(run, run.checkpoint("last"), tmp_path / "adapter")
    export_directory(run, run.checkpoint("last"), tmp_path / "merged")
    name = json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"][0]
    loader = getattr(transformers, name)
    settings = {"num_labels": 3} if run.config.task.kind in ("classify", "tag") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UserWarning)  # peft warns of tensors that are missing or left over
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        base = loader.from_pretrained(tmp_path / "base", **settings)
        other = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").double().eval()
        whole = loader.from_pretrained(tmp_path / "merged").double().eval()
    other.config.pad_token_id = whole.config.pad_token_id
    ids = torch.randint(5, run.tokenizer.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
    ours = answers(run, ids)
    with torch.no_grad():
        theirs, one = scores(other(input_ids=ids), run), scores(whole(input_ids=ids), run)
    most = (
        1e-5 if case.startswith("llama") else 2e-6
    )  # merged weights are rounded, and Llama rotates, in single precision
    torch.testing.assert_close(theirs, ours, rtol=0, atol=most)
    torch.testing.assert_close(one, ours, rtol=0, atol=most if case.startswith("llama") else 1e-10)
    without = loader.from_pretrained(tmp_path / "base", **settings).double().eval()
    assert run.config.task.kind != "none" or not torch.allclose(scores(without(input_ids=ids), run), ours, atol=1e-2)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2].kind == "none"])
def test_what_is_written_is_read_back(case: str, adapted: Callable[[str], Run], tmp_path: Path) -> None:
    """As the base with what the adapters add: to begin from, and to import."""
    run = adapted(case)
    export_adapters(run, run.checkpoint("last"), tmp_path / "adapter")
    found, expected = open_weights(tmp_path / "adapter"), dict(run.network("last").named_parameters())
    words = run.tokenizer.vocab_size
    for name in found.shapes:
        rows = words if name.startswith(("embed.tokens", "head.output")) else None
        torch.testing.assert_close(found.read(name)[:rows], expected[name][:rows], rtol=0, atol=1e-6)
    assert found.digest != open_weights(tmp_path / "base").digest
    assert source_model(str(tmp_path / "adapter")) == source_model(str(tmp_path / "base")) != {}
    told = import_directory(tmp_path / "adapter", tmp_path / "imported")
    assert told.tokenizer == type(run.tokenizer).__name__
    imported = dict(Run.open(tmp_path / "imported").network("last").named_parameters())
    for name in ("blocks.0.mlp.down.weight", "blocks.0.attention.qkv.weight"):
        torch.testing.assert_close(imported[name], expected[name], rtol=0, atol=1e-6)


def test_a_run_without_adapters_has_none_to_write(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("gpt2")
    with pytest.raises(ConfigError, match="no adapters"):
        export_adapters(run, run.checkpoint("last"), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("peft_type", {"peft_type": "IA3"}, "LORA"),
    ("use_dora", {"use_dora": True}, "None"),
    ("init_lora_weights", {"init_lora_weights": "pissa_niter_4"}, "gaussian"),
    ("alora_invocation_tokens", {"alora_invocation_tokens": [5, 6]}, "None"),
    ("field_of_tomorrow", {"field_of_tomorrow": {"a": 1}}, "None"),
    ("beside adapters", {"base_model_name_or_path": "."}, "a model"),
    ("beside adapters", {"base_model_name_or_path": ""}, "a model"),
    ("r is not", {"r": "2"}, "a number above 0"),
    ("alpha_pattern", {"alpha_pattern": {"(": 1}}, "regular expressions"),
    ("modules_to_save", {"modules_to_save": ["score"]}, "None"),
    ("is not here", {"base_model_name_or_path": "org/model"}, "a directory"),
]


@pytest.mark.parametrize(("what", "fields", "allowed"), BROKEN, ids=[what for what, *_ in BROKEN])
def test_settings_that_cannot_be_computed_are_refused(
    what: str, fields: dict[str, Any], allowed: str, adapted: Callable[[str], Run], tmp_path: Path
) -> None:
    run = adapted("gpt2 values")
    export_adapters(run, run.checkpoint("last"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(DataError, match=what) as raised:
        open_directory(tmp_path / "adapter")
    (problem,) = raised.value.problems
    assert problem.where == str(path) and allowed in problem.allowed
    assert source_model(str(tmp_path / "adapter")) == {} or "base" not in what


def test_weights_differ_where_only_the_factor_of_adapters_does(adapted: Callable[[str], Run], tmp_path: Path) -> None:
    run = adapted("gpt2 values")
    export_adapters(run, run.checkpoint("last"), tmp_path / "adapter")
    before = open_weights(tmp_path / "adapter").digest
    path = tmp_path / "adapter" / "adapter_config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"lora_alpha": 10 * facts["lora_alpha"]}))
    assert open_weights(tmp_path / "adapter").digest != before
    path.write_text(json.dumps(facts | {"use_dora": False, "revision": "main", "eva_config": None, "loftq_config": {}}))
    assert open_weights(tmp_path / "adapter").digest == before


def test_tensors_that_do_not_fit_are_named_all_at_once(adapted: Callable[[str], Run], tmp_path: Path) -> None:
    run = adapted("llama apart")
    export_adapters(run, run.checkpoint("last"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors[f"{q}.lora_A.weight"] = torch.zeros(2, 31)
    del tensors[f"{q.replace('q_proj', 'v_proj')}.lora_B.weight"]
    tensors["base_model.model.score.weight"] = torch.zeros(3, 32)
    save_file(tensors, path)
    with pytest.raises(DataError) as raised:
        open_directory(tmp_path / "adapter")
    told = [(problem.what, problem.got, problem.allowed) for problem in raised.value.problems]
    assert told == [
        (f"{q}.lora_A.weight has another shape", "[2, 31]", "[2, 32]"),
        (f"there is no tensor {q.replace('q_proj', 'v_proj')}.lora_B.weight", "", ""),
        ("the model has no place for base_model.model.score.weight", "[3, 32]", ""),
    ]
    path.rename(path.with_name("adapter_model.bin"))
    with pytest.raises(DataError, match="pickle"):
        open_directory(tmp_path / "adapter")
