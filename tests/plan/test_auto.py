"""``layout: auto``: what is chosen trains, is what a search finds, keeps what is stated, and fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradatim.config import load, load_config
from gradatim.config.derived import world_size
from gradatim.config.rules import problems as rule_problems
from gradatim.config.settings import RunConfig
from gradatim.errors import ConfigError
from gradatim.plan import auto, here
from gradatim.plan.architecture import architecture
from gradatim.plan.auto import choose_layout
from gradatim.plan.cluster import cluster_to_yaml, load_cluster
from gradatim.plan.layouts import NO_LIMITS
from gradatim.plan.memory import stage_memory
from gradatim.plan.search import search


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "processes", lambda: 2)
    monkeypatch.setattr(here, "memory", lambda: 16e9)
    monkeypatch.setattr(here, "has_gpus", lambda: False)


def config(recipe: str = "gpt", **overrides: str) -> tuple[RunConfig, frozenset[str]]:
    loaded = load(recipe, {"layout": "auto", **{name.replace("__", "."): text for name, text in overrides.items()}})
    assert not loaded.problems and loaded.auto is not None
    return loaded.config, loaded.auto


@pytest.mark.parametrize("recipe", ["gpt", "bert", "demo", "gpt2-124m"])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_what_is_chosen_trains(recipe: str, world: int) -> None:
    wanted, stated = config(recipe, cluster="eos-h100")
    choice = choose_layout(wanted, stated, world)
    assert world_size(choice.layout) == world
    assert rule_problems(replace(wanted, layout=choice.layout)) == []
    assert "eos-h100" in choice.why and f"of {world} process" in choice.why


def test_it_is_the_fastest_that_fits_in_our_own_trainer() -> None:
    wanted, stated = config("gpt2-124m", cluster="eos-h100")
    ours = replace(load_cluster("eos-h100"), stack=load_cluster("gradatim-h100").stack)
    model = architecture(wanted, wanted.data.tokenizer.vocab_size or 1)
    assert model is not None
    found = search(
        model, ours, 8, wanted.global_batch, top=1, stack=replace(NO_LIMITS, zero=(0, 1), splits=("uniform",))
    )
    assert choose_layout(wanted, stated, 8).layout == found.best[0].layout


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        ({"layout__tp": "2"}, {"tp": 2}),
        ({"layout__pp": "2", "layout__schedule": "gpipe"}, {"pp": 2, "schedule": "gpipe"}),
        ({"layout__chunks": "2", "layout__schedule": "interleaved"}, {"pp": 2, "chunks": 2}),
        ({"layout__zero": "1", "layout__microbatch": "4"}, {"zero": 1, "microbatch": 4}),
        ({"layout__timeout": "60", "layout__check": "true"}, {"timeout": 60.0, "check": True}),
    ],
)  # fmt: skip
def test_what_is_stated_stays(overrides: dict[str, str], fields: dict[str, object]) -> None:
    wanted, stated = config("gpt", **overrides, model__n_layers="4")
    layout = choose_layout(wanted, stated, 2).layout
    assert {name: getattr(layout, name) for name in fields} == fields


def test_memory_is_kept_to(tmp_path: Path) -> None:
    """With less of it another layout is chosen, which fits; with too little there is none."""
    wanted, stated = config("gpt2-124m", global_batch="64")
    model = architecture(wanted, 50257)
    assert model is not None
    machine = load_cluster("gradatim-h100")
    needed = []
    for memory in (80e9, 8e9):
        path = tmp_path / "cluster.yaml"
        path.write_text(cluster_to_yaml(replace(machine, device=replace(machine.device, memory=memory))))
        layout = choose_layout(replace(wanted, cluster=str(path)), stated, 4).layout
        needed.append(max(stage.total for stage in stage_memory(machine.stack, model, layout, 64)))
        assert needed[-1] <= memory
    assert needed[0] > 8e9
    path.write_text(cluster_to_yaml(replace(machine, device=replace(machine.device, memory=2.2e9))))
    with pytest.raises(ConfigError, match="nothing fits"):
        choose_layout(replace(wanted, cluster=str(path)), stated, 4)
    large, stated = config("llama3-8b", cluster="gradatim-h100")
    with pytest.raises(ConfigError, match="--nproc 2"):
        choose_layout(large, stated, 1)
    assert world_size(choose_layout(large, stated, 2).layout) == 2


def test_memory_is_our_own_trainers_at_the_precision_of_the_run(tmp_path: Path) -> None:
    """What it holds on a CPU: fp32, and scores where attention drops weights; also by a file that does not say so."""
    path = tmp_path / "here.yaml"
    machine = load_cluster("cpu")
    older = replace(machine, stack=replace(machine.stack, layers="megatron", fused_dropout=True))
    path.write_text(cluster_to_yaml(older))
    shape = {"context": "1024", "global_batch": "8", "layout__microbatch": "8", "model__n_layers": "2"}
    said = []
    for dropout in ("0", "0.1"):
        for cluster in ("cpu", str(path)):
            wanted, stated = config(**shape, model__dropout=dropout, cluster=cluster)
            said.append(float(choose_layout(wanted, stated, 1).why.split(" of ")[0].split()[-1]))
    assert said[0] == said[1] < 1.0 and said[2] == said[3] > 2 * said[0]
    whole = {"layout__microbatch": "8", "layout__recompute": "none", "layout__zero": "0", "cluster": "gradatim-h100"}
    low, high = (config("gpt2-124m", **whole, precision=precision) for precision in ("bf16", "fp32"))
    assert float(choose_layout(*low, 1).why.split(" of ")[0].split()[-1]) < float(
        choose_layout(*high, 1).why.split(" of ")[0].split()[-1]
    )


def test_what_a_cluster_file_leaves_out_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("device: {name: H200, peak: 989e12, memory: 141e9}\n")
    why = choose_layout(*config("gpt2-124m", global_batch="64", cluster=str(path)), 4).why
    assert "taken for a DGX A100's: device.matmul, device.units" in why and "device.memory" not in why


def test_uneven_stages_are_ours() -> None:
    wanted, stated = config(model__n_layers="3", model__n_heads="1", global_batch="7")
    layout = choose_layout(wanted, stated, 2).layout
    assert (layout.tp, layout.pp, layout.dp) == (1, 2, 1)


def test_how_many_processes_there_are() -> None:
    wanted, stated = config()
    assert world_size(choose_layout(wanted, stated).layout) == 2  # cores
    assert world_size(choose_layout(replace(wanted, cluster="cpu"), stated).layout) == 2  # the file's
    odd, stated = config(global_batch="7", model__n_heads="1", model__n_layers="1")
    assert world_size(choose_layout(odd, stated).layout) == 1  # nothing else is legal
    with pytest.raises(ConfigError, match="--nproc 1"):
        choose_layout(odd, stated, 2)
    with pytest.raises(ConfigError, match="not stated"):
        choose_layout(replace(wanted, cluster="eos-h100"), stated)
    whole, stated = config(layout__tp="1", layout__pp="1", layout__dp="4")
    assert world_size(choose_layout(whole, stated).layout) == 4


def test_models_of_one_process() -> None:
    wanted, stated = config("lstm")
    assert world_size(choose_layout(wanted, stated).layout) == 1
    with pytest.raises(ConfigError, match="recurrent"):
        choose_layout(wanted, stated, 2)


def test_gpus_that_nobody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto.here, "has_gpus", lambda: True)
    with pytest.raises(ConfigError, match="which cluster"):
        choose_layout(*config())


def test_the_word_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("layout: auto\nmodel: {kind: gpt}\n")
    assert load(recipe).auto == frozenset()
    assert load(recipe, {"layout.tp": "2", "layout.check": "true"}).auto == {"tp"}
    assert load(recipe, {"layout.tp": "3"}).problems  # heads
    assert load_config(recipe, any_layout=True).layout.tp == 1
    with pytest.raises(ConfigError, match="gradatim check"):
        load_config(recipe)
    recipe.write_text("layout: {tp: 2, timeout: 60}\n")
    loaded = load(recipe, {"layout": "auto"})
    assert loaded.auto == frozenset() and loaded.config.layout.timeout == 60 and loaded.config.layout.tp == 1
    assert any("layout.tp" in note for note in loaded.notes)
    (problem,) = load(recipe, {"layout": "atuo"}).problems
    assert "auto" in problem.allowed
    split, stated = config(layout__split="2,2")
    with pytest.raises(ConfigError, match="stage by stage"):
        choose_layout(split, stated, 2)
