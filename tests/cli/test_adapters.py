"""Adapters from the command line: trained beside a run, asked, exported both ways; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradatim.cli.main import main

Run = Callable[..., tuple[int, Any, str]]
BASE = ["--global_batch", "4", "--context", "16", "--model.d_model", "16", "--model.n_layers", "1", "--model.n_heads",
        "2", "--model.d_ff", "64", "--model.positions", "learned", "--model.norm", "layer", "--model.activation",
        "gelu", "--model.bias", "true", "--data.train", "text.txt", "--data.tokenizer.kind", "char",
        "--optimizer.warmup", "0"]  # fmt: skip
LORA = ["--lora.rank", "2", "--lora.targets", "q,up", "--init_from", "base", "--data.tokenizer.path",
        "base/tokenizer.json"]  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code, the JSON answer, and what people are told."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the more i read the more i learn\n" * 20, encoding="utf-8")

    def call(*arguments: object) -> tuple[int, Any, str]:
        code = main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return call


def test_from_training_to_both_exports(run: Run) -> None:
    assert run("train", "gpt", "--run", "base", "--steps", "3", *BASE)[0] == 0
    code, trained, told = run("train", "gpt", "--run", "r", "--steps", "4", *BASE, *LORA)
    assert code == 0 and trained["step"] == 4 and trained["parameters"] == 2 * ((16 + 16) + (16 + 64))
    assert "starting from the weights of base" in told
    code, found, _ = run("complete", "r", "the more", "--max-new", "3")
    assert code == 0 and found["completions"]
    code, found, _ = run("export", "r", "adapter", "--format", "peft")
    assert code == 0 and found["parameters"] == trained["parameters"] + 2 * 32, "c_attn's B has rows of k and v, too"
    facts = json.loads(Path("adapter/adapter_config.json").read_text())
    assert facts["r"] == 2 and facts["base_model_name_or_path"] is None, "a run is no directory of the library"
    assert run("export", "r", "merged")[0] == 0 and Path("merged/model.safetensors").is_file()
    code, answer, _ = run("export", "base", "x", "--format", "peft")
    assert code == 2 and "no adapters" in answer["error"]["problems"][0]["what"]
    code, answer, _ = run(
        "train", "gpt", "--run", "r", "--resume", "--steps", "5", *BASE, *LORA[2:], "--lora.rank", "3"
    )
    assert code == 4 and "lora.rank" in answer["error"]["problems"][0]["where"]
    Path("base/checkpoints").rename("elsewhere")
    code, answer, _ = run("complete", "r", "the")
    assert code == 4, answer
