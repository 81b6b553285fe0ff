"""``init_from``: a run begins with the weights of another run or of a Hugging Face directory, or is told why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradatim.config.settings import RunConfig
from gradatim.errors import CheckpointError, Problem
from gradatim.interop.huggingface.write import export_directory
from gradatim.text.prepare import prepare
from gradatim.train import Run, train
from gradatim.train.engine import SerialEngine
from gradatim.train.metrics import read_metrics
from gradatim.train.start import Start, open_weights

MakeConfig = Callable[..., RunConfig]
LEARNED: dict[str, object] = {"model.positions": "learned"}
VOCABULARY = ("embed.tokens.weight", "head.output.weight", "head.output.bias")
HF: dict[str, object] = {**LEARNED, "data.tokenizer.kind": "bpe", "data.tokenizer.vocab_size": 300}


def started(config: RunConfig, source: Path) -> dict[str, torch.Tensor]:
    """The weights of an engine that starts from a source."""
    prepared = prepare(config.data)
    engine = SerialEngine(config, prepared)
    engine.start_from(Start(open_weights(source), config, prepared.tokenizer))
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


@pytest.mark.parametrize("kind", ["gpt", "bert", "lstm"])
def test_a_run_goes_on_from_the_weights_of_another(kind: str, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(kind, 4, model__dropout=0)
    train(config, tmp_path / "first")
    saved = Run.open(tmp_path / "first").checkpoint("best").tensors("model/")
    second = make_config(
        kind, 2, init_from=tmp_path / "first", seed=9, model__dropout=0, optimizer__lr=1e-9, optimizer__min_lr=0
    )
    found = started(second, tmp_path / "first")
    assert found.keys() == saved.keys()
    words = {name: Run.open(tmp_path / "first").tokenizer.vocab_size for name in VOCABULARY}  # the rest is padding
    assert all(torch.equal(found[name][: words.get(name)], saved[name][: words.get(name)]) for name in saved)
    said: list[str] = []
    train(second, tmp_path / "second", say=said.append)
    assert f"starting from the weights of {tmp_path / 'first'}" in said
    after = Run.open(tmp_path / "second").checkpoint("last").tensors("model/")
    for name in saved:
        torch.testing.assert_close(after[name][: words.get(name)], saved[name][: words.get(name)], rtol=0, atol=1e-6)
    steps = [row["step"] for row in read_metrics(tmp_path / "second" / "metrics.jsonl")]
    assert steps == [1, 2], "counters begin anew"
    said.clear()
    train(second, tmp_path / "second", resume=True, say=said.append)
    assert not any("starting from" in line for line in said), "a run that goes on has weights of its own"


def test_a_hugging_face_directory(make_config: MakeConfig, tmp_path: Path) -> None:
    """Another padding of the vocabulary and a shorter context take what they need."""
    train(make_config("gpt", 2, **HF), tmp_path / "first")
    run = Run.open(tmp_path / "first")
    export_directory(run, run.checkpoint("last"), tmp_path / "hf")
    config = make_config(
        "gpt", 2, context=6, init_from=tmp_path / "hf", model__vocab_multiple=7,
        **{**HF, "data.tokenizer.path": tmp_path / "hf" / "tokenizer.json"},
    )  # fmt: skip
    saved, found = run.checkpoint("last").tensors("model/"), started(config, tmp_path / "hf")
    words = run.tokenizer.vocab_size
    for name, tensor in saved.items():
        rows = words if name == "embed.tokens.weight" else 6 if name == "embed.positions.weight" else None
        assert torch.equal(found[name][:rows], tensor[:rows]), name
    assert not found["embed.tokens.weight"][words:].any()
    train(config, tmp_path / "second")


@pytest.mark.parametrize(("before", "after"), [("none", "next-sentence"), ("next-sentence", "none")])
def test_judging_pairs_may_begin_or_end_with_a_start(
    before: str, after: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    """What the source lacks for it is drawn, what it has for nothing is left."""
    train(make_config("bert", 2, model__pairs=before), tmp_path / "first")
    saved = Run.open(tmp_path / "first").checkpoint("best").tensors("model/")
    config = make_config("bert", 2, init_from=tmp_path / "first", model__pairs=after)
    found = started(config, tmp_path / "first")
    assert all(torch.equal(found[name], saved[name]) for name in found.keys() & saved.keys() - set(VOCABULARY))
    said: list[str] = []
    train(config, tmp_path / "second", say=said.append)
    drawn = {line.split(" has no ")[1].split(":")[0] for line in said if "it is drawn anew" in line}
    assert drawn == found.keys() - saved.keys()
    assert len(saved.keys() ^ found.keys()) == 4


def test_everything_that_differs_is_told_at_once(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config("gpt", 2, **LEARNED), tmp_path / "first")

    def told_of(config: RunConfig) -> tuple[Problem, ...]:
        with pytest.raises(CheckpointError) as caught:
            Start(open_weights(tmp_path / "first"), config, prepare(config.data).tokenizer)
        return caught.value.problems

    problems = told_of(make_config("gpt", 2, model__d_ff=48, context=20, **HF))
    told = [(problem.where, problem.what) for problem in problems]
    assert any(where == "data.tokenizer" for where, _ in told)
    shapes = {what.split()[0] for _, what in told if what.endswith("another shape")}
    assert {"embed.positions.weight", "blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"} <= shapes
    (longer,) = (problem for problem in problems if problem.what.startswith("embed.positions"))
    assert longer.attempt.startswith("--context ") and int(longer.attempt.split()[1]) < 20
    # Of a model with other settings nobody needs every shape besides.
    heads, words = told_of(make_config("gpt", 2, model__n_heads=4, model__d_ff=48, context=20, **HF))
    assert (heads.where, heads.attempt) == ("model.n_heads", "--model.n_heads 2") and words.where == "data.tokenizer"
    assert "model.kind" in {problem.where for problem in told_of(make_config("bert", 2))}
    with pytest.raises(CheckpointError, match="neither a run nor a Hugging Face directory"):
        open_weights(tmp_path)
