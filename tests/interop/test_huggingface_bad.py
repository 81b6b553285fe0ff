"""What is wrong with a directory is said at once and by name; no library is needed, and no pickle is ever opened."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError, ConfigError, DataError
from gradatim.interop.huggingface.directory import open_directory
from gradatim.interop.huggingface.load import import_directory
from gradatim.interop.huggingface.write import export_directory
from gradatim.text.tokenizer import load_tokenizer
from gradatim.train.run_directory import Run
from gradatim.train.start import Start, open_weights

MakeRun = Callable[..., Run]


@pytest.fixture
def exported(make_run: MakeRun, tmp_path: Path) -> Callable[[str], Path]:
    def export(shape: str) -> Path:
        run = make_run(shape, f"run-{shape}")
        export_directory(run, run.checkpoint("last"), tmp_path / shape)
        return tmp_path / shape

    return export


def change(directory: Path, function: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    function(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def set_config(directory: Path, **fields: Any) -> None:
    facts = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(facts | fields))


def test_all_tensors_that_do_not_fit_are_named_at_once(exported: Callable[[str], Path]) -> None:
    directory = exported("llama-grouped")

    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(32, 32)
        tensors["model.layers.1.self_attn.q_norm.weight"] = torch.zeros(8)
        tensors["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)

    change(directory, spoil)
    with pytest.raises(DataError) as caught:
        open_directory(directory)
    told = {problem.what: (problem.got, problem.allowed) for problem in caught.value.problems}
    assert told == {
        "there is no tensor model.layers.0.mlp.up_proj.weight": ("", "[40, 32]"),
        "model.layers.1.self_attn.k_proj.weight has another shape": ("[32, 32]", "[16, 32]"),
        "model.norm.weight is of a type that no weight has": ("I8", "F64, F32, F16, BF16"),
        "the model has no place for model.layers.1.self_attn.q_norm.weight": ("[8]", ""),
    }


@pytest.mark.parametrize(
    ("shape", "fields", "words"),
    [
        ("gpt2", {"model_type": "mamba"}, ["this architecture are not read"]),
        ("gpt2", {"activation_function": "relu", "n_head": 5}, ["activation_function"]),
        ("gpt2", {"n_head": 5}, ["number of heads"]),
        ("llama-tied", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ["rope_parameters"]),
        ("llama-tied", {"rope_scaling": {"type": "linear"}, "hidden_act": "gelu"}, ["rope_scaling", "hidden_act"]),
        ("llama-tied", {"head_dim": 5, "num_key_value_heads": 3}, ["head_dim"]),
        (
            "bert",
            {"type_vocab_size": 3, "position_embedding_type": "relative_key"},
            ["type_vocab_size", "position_emb"],
        ),
        ("bert", {"hidden_size": "wide"}, ["hidden_size"]),
    ],
)
def test_settings_that_ours_have_not(
    shape: str, fields: dict[str, Any], words: list[str], exported: Callable[[str], Path]
) -> None:
    directory = exported(shape)
    set_config(directory, **fields)
    with pytest.raises(DataError) as caught:
        open_directory(directory)
    assert all(any(word in problem.what for problem in caught.value.problems) for word in words)


def test_both_spellings_of_rotary_settings_are_read(exported: Callable[[str], Path]) -> None:
    directory = exported("llama-grouped")
    assert open_directory(directory).config.rope_theta == 500.0  # type: ignore[union-attr]
    set_config(directory, rope_parameters=None, rope_theta=77.0)
    assert open_directory(directory).config.rope_theta == 77.0  # type: ignore[union-attr]
    set_config(directory, rope_parameters={"rope_theta": 88.0, "rope_type": "default"}, rope_theta=77.0)
    assert open_directory(directory).config.rope_theta == 88.0  # type: ignore[union-attr]
    set_config(
        directory, rope_parameters=None, rope_theta=None, rope_scaling={"rope_type": "default", "rope_theta": 99}
    )
    assert open_directory(directory).config.rope_theta == 99.0  # type: ignore[union-attr]


def test_a_pickle_is_refused_and_not_opened(exported: Callable[[str], Path], tmp_path: Path) -> None:
    directory = exported("gpt2")
    (directory / "model.safetensors").unlink()
    with pytest.raises(DataError, match="there are no weights"):
        open_directory(directory)
    trap = "cos\nsystem\n(S'touch " + str(tmp_path / "opened") + "'\ntR."
    (directory / "pytorch_model.bin").write_text(trap)
    with pytest.raises(DataError, match="pickled") as caught:
        open_directory(directory)
    assert caught.value.problems[0].got == "pytorch_model.bin"
    assert not (tmp_path / "opened").exists()


def test_damaged_files(exported: Callable[[str], Path], tmp_path: Path) -> None:
    directory = exported("gpt2")
    weights = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        open_directory(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(DataError, match="this is not JSON"):
        open_directory(directory)
    with pytest.raises(DataError, match="there is no such file"):
        open_directory(tmp_path / "nowhere")
    other = exported("bert")
    for listed in ({"a": "../../elsewhere.safetensors"}, {"a": 3}, None):
        (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
        with pytest.raises(DataError, match="does not name files beside it"):
            open_directory(other)
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(DataError, match="this file of weights is missing"):
        open_directory(other)


def test_a_tokenizer_of_another_model(exported: Callable[[str], Path], tmp_path: Path) -> None:
    directory = exported("gpt2")

    def fewer(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:100].clone()

    change(directory, fewer)
    set_config(directory, vocab_size=100)
    with pytest.raises(DataError, match="does not belong to these weights"):
        import_directory(directory, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # Nor does a run begin from them: the words that they lack would be vectors of zeros.
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    weights = open_weights(directory)
    config = RunConfig(model=weights.config, context=32)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="has another shape") as caught:
        Start(weights, config, tokenizer)
    assert {problem.got for problem in caught.value.problems} == {"[100, 24]"}


def test_what_may_be_absent_is_reported(exported: Callable[[str], Path], tmp_path: Path) -> None:
    directory = exported("bert")

    def bare(tensors: dict[str, Tensor]) -> None:  # as a body is saved alone, by an early version
        for name in list(tensors):
            tensor = tensors.pop(name)
            if not name.startswith(("cls.", "bert.pooler")):
                name = name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
                tensors[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
        tensors["embeddings.position_ids"] = torch.arange(32)

    change(directory, bare)
    (directory / "tokenizer.json").unlink()
    said: list[str] = []
    told = import_directory(directory, tmp_path / "run", said.append)
    assert "head.pooler.weight" in told.absent and "head.output.bias" in told.absent and len(told.absent) == 9
    assert len([line for line in said if "drawn anew" in line]) == 9
    assert told.tokenizer.startswith("none")
    run = Run.open(tmp_path / "run")
    assert run.tokenizer.encode("17 4 20") == [17, 4, 20]
    assert run.tokenizer.marks is not None
    model, before = run.network("last"), Run.open(tmp_path / "run-bert").network("last")
    ours, theirs = dict(model.named_parameters()), dict(before.named_parameters())
    assert torch.equal(ours["blocks.1.norm2.bias"], theirs["blocks.1.norm2.bias"])
    assert torch.equal(ours["embed.norm.weight"], theirs["embed.norm.weight"])
    numbered = exported("gpt2")
    (numbered / "tokenizer.json").unlink()
    import_directory(numbered, tmp_path / "numbered")
    run = Run.open(tmp_path / "numbered")
    assert run.tokenizer.decode(run.tokenizer.encode("17 4 200")) == "17 4 200"
    assert run.tokenizer.boundary == Run.open(tmp_path / "run-gpt2").tokenizer.boundary


def test_shards_are_read_and_written_one_at_a_time(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("llama-grouped")
    whole = export_directory(run, run.checkpoint("last"), tmp_path / "whole")
    parts = export_directory(run, run.checkpoint("last"), tmp_path / "parts", shard_bytes=20_000)
    files = [name for name in parts.files if name.endswith(".safetensors")]
    assert len(files) > 3 and parts.parameters == whole.parameters
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    tensors = {name: load_file(tmp_path / "parts" / file)[name] for name, file in index["weight_map"].items()}
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    import_directory(tmp_path / "parts", tmp_path / "back")
    ours, theirs = (dict(Run.open(tmp_path / name).network("last").named_parameters()) for name in ("back", "run"))
    words = run.tokenizer.vocab_size
    for name, parameter in theirs.items():
        rows = words if name in ("embed.tokens.weight", "head.output.weight") else None
        assert torch.equal(ours[name][:rows], parameter[:rows])


def test_what_cannot_be_exported(make_run: MakeRun, tmp_path: Path) -> None:
    from dataclasses import replace

    run = make_run("gpt2")
    export_directory(run, run.checkpoint("last"), tmp_path / "full")
    with pytest.raises(ConfigError, match="something in this directory already"):
        export_directory(run, run.checkpoint("last"), tmp_path / "full")
    run.config = replace(run.config, model=replace(run.config.model, norm="rms", bias=False))  # type: ignore[type-var]
    with pytest.raises(ConfigError) as caught:
        export_directory(run, run.checkpoint("last"), tmp_path / "other")
    assert [(p.where.rpartition(".")[2], p.got, p.allowed) for p in caught.value.problems] == [
        ("norm", "rms", "layer"),
        ("bias", "False", "True"),
    ]


def test_the_card_says_what_the_run_knows(exported: Callable[[str], Path]) -> None:
    text = (exported("bert") / "README.md").read_text()
    for line in (
        "pipeline_tag: fill-mask",
        "| updates | 7 of 64 sequences |",
        "AutoModelForPreTraining.from_pretrained",
    ):
        assert line in text


def test_the_library_is_not_needed() -> None:
    code = (
        "import sys, gradatim.interop.huggingface.load, gradatim.interop.huggingface.write; "
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
