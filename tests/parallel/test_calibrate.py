"""``gradatim calibrate``: what it measures is fitted, written and read back; tiny sizes, and no claim about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradatim.cli.main import main
from gradatim.parallel import calibrate
from gradatim.parallel.calibrate import MESSAGES
from gradatim.plan.cluster import load_cluster
from gradatim.plan.fit import Sizes

TINY = Sizes(
    products=((8, 8, 8), (16, 8, 8), (8, 16, 8), (8, 8, 16), (16, 16, 16)),
    blocks=((8, 32, 1, 1, 8), (16, 64, 2, 1, 8), (16, 16, 2, 2, 8)),
    split=((16, 64, 2, 1, 8), (16, 64, 2, 2, 8), (16, 64, 3, 2, 8)),
    cores=((1, 1, 8, 8), (2, 2, 8, 8), (1, 2, 16, 4)),
    heads=((8, 8, 64), (16, 8, 128), (8, 16, 128)),
    updates=(8, 16),
    messages=(64, 1 << 12),
    rounds=1,
)  # fmt: skip


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = calibrate.calibrate
    monkeypatch.setattr(calibrate, "calibrate", lambda processes: whole(processes, TINY))
    path = tmp_path / "here.yaml"
    assert main(["calibrate", "--nproc", "2", "--out", str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    cluster = load_cluster(path)
    assert cluster.devices == answer["devices"] == 2 and cluster.calibrated
    assert cluster.device.matmul == answer["device"]["matmul"] > 0
    for name in MESSAGES:
        curve = getattr(cluster.measured, name)
        assert [size for size, _ in curve] == [64.0, 4096.0]
        assert 0 < curve[0][1] <= curve[1][1]
    model = "gpt:n_layers=2,d_model=16,n_heads=2,vocab_size=64,context=8"
    assert main(["plan", model, str(path), "--global-batch", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layouts"][0]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--nproc", "0", "--out", "x.yaml"], "this is no number of processes"),
        (["--nproc", "two", "--out", "x.yaml"], "this is no number of processes"),
        (["--out", "nowhere/x.yaml"], "there is no such folder"),
        (["--out", "."], "this is a folder"),
    ],
)
def test_refused_before_anything_is_measured(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["problems"][0]["what"] == what
