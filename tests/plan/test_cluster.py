"""Cluster files: the packaged ones, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradatim.errors import ConfigError
from gradatim.plan.architecture import load_model
from gradatim.plan.cluster import assumed, cluster_names, load_cluster, read_cluster

CONTRACT = {
    "selene-2021", "selene-2022", "vtrain-a100", "jean-zay-a100", "jean-zay-bf16", "eos-h100", "nanotron-h100",
    "mpt-a100-80gb", "mpt-h100-80gb", "b200-8",
}  # fmt: skip


def test_the_packaged_ones() -> None:
    assert set(cluster_names()) >= CONTRACT
    for name in cluster_names():
        cluster = load_cluster(name)
        assert cluster.description and cluster.device.matmul <= cluster.device.peak


def test_every_problem_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("device: {peak: 1e12, matmul: 2e12, units: 0}\nnode: {devcies: 8}\nstack: {attention: flsh}\n")
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    found = {(p.where.removeprefix(str(path)), p.what) for p in caught.value.problems}
    assert (":2", "there is no such field") in found
    assert (":1", "device.units is out of range") in found
    assert (":1", "no product is faster than the datasheet's rate") in found
    assert any(where == ":3" for where, _ in found)


def test_figures_and_names_that_there_are_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "devices: -3\n"
        "device: {name: mine}\n"
        "node: {latency: -1.0}\n"
        "stack: {schedules: [naive], recompute: [], zero: [7], splits: [odd], overlap_tensor: 1.5, chunks: 0,"
        " multiplier_one_node: 0}\n"
        "measured: {sum: [[64, -1.0]]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    found = {p.what.split(" ")[0]: (p.where.removeprefix(str(path)), p.got) for p in caught.value.problems}
    assert found == {
        "devices": (":1", "-3"), "node.latency": (":3", "-1"), "stack.schedules": (":4", "naive"),
        "stack.recompute": (":4", "nothing"), "stack.zero": (":4", "7"), "stack.splits": (":4", "odd"),
        "stack.overlap_tensor": (":4", "1.5"), "stack.chunks": (":4", "0"), "stack.multiplier_one_node": (":4", "0"),
        "measured.sum": (":5", "-1"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("bert:n_layers=2,d_model=64,n_heads=2,vocab_size=100,n_kv_heads=2", "no such field of a bert shape"),
        ("bert:n_layers=2,d_model=64,n_heads=2,vocab_size=100,tied=false", "no such field of a bert shape"),
        ("gpt:n_layers=2,n_layers=3,d_model=64,n_heads=2,vocab_size=100", "stated twice"),
        ("llama:n_layers=2,d_model=36,n_heads=4,vocab_size=100", "a head's width is even"),
        (f"gpt:n_layers={'9' * 5000},d_model=64,n_heads=2,vocab_size=100", "does not fit n_layers"),
    ],
)
def test_shapes_that_there_are_not(shape: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model(shape)
    (problem,) = caught.value.problems
    assert said in problem.what and len(problem.got) < 100


def test_unknown_clusters_name_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_cluster("selen-2022")
    assert caught.value.problems[0].attempt == "selene-2022"
    with pytest.raises(ConfigError) as caught:
        load_cluster("h200.yaml")
    attempt = caught.value.problems[0].attempt
    assert "gradatim plan --show-cluster eos-h100 > mine.yaml" in attempt and "gradatim calibrate" in attempt


@pytest.mark.parametrize("name", cluster_names())
def test_the_packaged_ones_state_all_their_hardware(name: str) -> None:
    assert read_cluster(name)[1] == []


def test_figures_that_a_file_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("device: {name: H200, peak: 989e12, memory: 141e9}\nnode: {card: 50e9}\n")
    cluster, unstated = read_cluster(path)
    assert {"device.matmul", "device.units", "node.link", "node.devices"} <= set(unstated)
    assert not {"device.name", "device.peak", "device.memory", "node.card"} & set(unstated)
    assert assumed(cluster, ["device.units", "node.link"]) == "device.units 108, node.link 3e+11"
    path.write_text("device: {name: small, peak: 100e12}\n")
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:1" and "not stated" in problem.got and problem.attempt == "state device.matmul"


@pytest.mark.parametrize("text", ["{}", "device: {}", "node: {devices: 8}\nstack: {attention: flash}"])
def test_a_file_without_devices_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    (problem,) = caught.value.problems
    assert "nothing of its devices" in problem.what and "--show-cluster" in problem.attempt


def test_hints_are_of_what_there_is_at_that_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("device: {name: mine, memry: 1}\nnode: {nics: 8, dropout: 1}\nlink: 3e11\nnod: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    hints = {problem.got: problem.attempt for problem in caught.value.problems}
    assert hints == {"device.memry": "device.memory", "node.nics": "", "node.dropout": "stack.dropout",
                     "link": "node.link", "nod": "node"}  # fmt: skip


def test_inline_shapes() -> None:
    model, config = load_model("llama:n_layers=32,d_model=4096,n_heads=32,n_kv_heads=8,d_ff=14336,vocab_size=128256")
    assert config is None and model.parameter_count == pytest.approx(8.03e9, rel=1e-3)
    assert not load_model("bert:n_layers=12,d_model=768,n_heads=12,vocab_size=30522")[0].causal
    with pytest.raises(ConfigError) as caught:
        load_model("gpt:n_layers=2,d_model=100,n_heads=7,vocab_size=x,depth=3")
    assert {p.got for p in caught.value.problems} == {"x", "depth"}
    with pytest.raises(ConfigError) as caught:
        load_model("gpt:n_layers=2,d_model=100,n_heads=7,vocab_size=10")
    assert caught.value.problems[0].attempt in {"n_heads=5", "n_heads=10"}
