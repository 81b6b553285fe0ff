"""``gradatim calibrate``: what it measures is fitted, written and read back; tiny sizes, and no claim about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradatim.cli.main import main
from gradatim.parallel import calibrate
from gradatim.parallel.calibrate import MESSAGES, Sizes, besides, fit, nonnegative
from gradatim.plan.cluster import load_cluster

TINY = Sizes(
    products=((8, 8, 8), (16, 8, 8), (8, 16, 8), (8, 8, 16), (16, 16, 16)),
    blocks=((8, 32, 1, 1, 8), (16, 64, 2, 1, 8), (16, 16, 2, 2, 8)),
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


def test_fits_find_what_times_were_made_of() -> None:
    rows = [[1.0, 10.0, 3.0], [1.0, 20.0, 5.0], [1.0, 5.0, 9.0], [1.0, 40.0, 2.0]]
    seconds = [2.0 + 0.5 * b for _, b, _ in rows]
    assert nonnegative(rows, seconds) == pytest.approx([2.0, 0.5, 0.0], abs=1e-9)
    falling = nonnegative([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], [3.0, 2.0, 1.0])  # would ask for a negative slope
    assert min(falling) >= 0 and falling[1] == 0
    assert besides([(3.0, 1.0), (1.0, 3.0)]) == [2.0, 0.05]


def test_the_fit_of_a_whole_machine() -> None:
    """Times made from known numbers give these numbers back."""
    rate, start = 1e10, 2e-6
    product = lambda r, c, k: start + 2 * r * c * k / rate * (1 + 4 / k)  # noqa: E731 - a formula
    core = lambda b, h, t, k, f: f * (1e-5 + b * h * t * t * (1e-9 + 2e-10 * k))  # noqa: E731
    found: dict[object, float] = {}
    for shape in TINY.products:
        found["product", shape] = product(*shape) * calibrate.repetitions(*shape)
    for b, h, t, k in TINY.cores:
        found |= {("core", kind, (b, h, t, k)): core(b, h, t, k, f) for kind, f in (("F", 1), ("B", 3))}
    for block in TINY.blocks:
        d, f, h, b, t = block
        n = b * t
        products = [(n, 3 * d, d), (n, d, d), (n, f, d), (n, d, f)]
        turned = [each for r, c, k in products for each in ((r, k, c), (k, c, r))]
        for kind, parts, factor in (("F", products, 1), ("B", turned, 3)):
            own = 1e-4 + 1e-8 * n * d + 3e-8 * n * (4 * d + f)
            whole = own + core(b, h, t, d // h, factor) + sum(product(*each) for each in parts)
            found["block", kind, block] = calibrate.LAYERS * whole
    for head in TINY.heads:
        n, d, v = head
        found["head", head] = 1e-5 + 3e-9 * n * v + product(n, v, d) + product(n, d, v) + product(v, d, n)
        found |= {("embedding", "F", head): 1e-5, ("embedding", "B", head): 2e-9 * v * d}
    for width in TINY.updates:
        count = calibrate.LAYERS * (12 * width**2 + 13 * width)
        found |= {("update", width): 1e-4 + 5e-9 * count, ("accumulate", width): 1e-9 * count}
    fitted_rate, fitted = fit(found, TINY)
    assert fitted_rate == pytest.approx(rate, rel=1e-6)
    assert fitted["product"] == pytest.approx([start, 0.0, 0.0, 4.0], rel=1e-4, abs=1e-6)
    assert fitted["forward"] == pytest.approx([1e-4, 1e-8, 3e-8], rel=1e-4)
    assert fitted["backward"] == pytest.approx([1e-4, 1e-8, 3e-8], rel=1e-4)
    assert fitted["core_backward"] == pytest.approx([3e-5, 3e-9, 6e-10], rel=1e-4)
    assert fitted["head"] == pytest.approx([1e-5, 3e-9], rel=1e-4)
    assert fitted["embedding"] == pytest.approx([1e-5, 0.0, 2e-9], rel=1e-4, abs=1e-12)
    assert fitted["update"] == pytest.approx([1e-4, 5e-9], rel=1e-4)
    assert fitted["accumulate"] == pytest.approx(1e-9)
