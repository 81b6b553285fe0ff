"""``gradatim plan``: the JSON that programs read, the page for people, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradatim.cli.main import main

SHAPE = "gpt:n_layers=24,d_model=2048,n_heads=16,vocab_size=51200"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, SHAPE, "selene-2022", "--gpus", "16", "--global-batch", "64", "--top", "3")
    assert len(found["layouts"]) == 3 and found["considered"] > 100 and found["search_seconds"] > 0
    seconds = [layout["seconds"] for layout in found["layouts"]]
    assert seconds == sorted(seconds)
    first = found["layouts"][0]
    assert first["tp"] * first["pp"] * first["dp"] == 16
    assert len(first["memory_gib"]) == first["pp"] and first["fits"] is True
    assert set(first["breakdown"]) >= {"compute", "tensor", "pipeline", "bubble", "data", "optimizer"}
    assert sum(first["breakdown"].values()) == pytest.approx(first["seconds"])
    # 72Bslh²(1 + s/6h + V/12lh)
    flops = 72 * 64 * 2048 * 24 * 2048**2 * (1 + 2048 / (6 * 2048) + 51200 / (12 * 24 * 2048))
    assert first["tflops_per_gpu"] == pytest.approx(flops / first["seconds"] / 16 / 1e12)
    assert first["mfu"] == pytest.approx(first["tflops_per_gpu"] / 312)


def test_a_fixed_layout_is_predicted_even_if_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--tp", "1", "--pp", "1", "--dp", "8", "--microbatch", "8", "--recompute", "none", "--global-batch", "64"]
    (layout,) = answer(capsys, "gpt3-175b", "selene-2021", *fixed)["layouts"]
    assert layout["fits"] is False and layout["seconds"] > 0 and layout["recompute"] == "none"


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", SHAPE, "selene-2022", "--gpus", "16", "--global-batch", "64", "--top", "2"]) == 0
    page = capsys.readouterr().out
    for word in ("rank", "MFU %", "bubble %", "fastest: tp", "memory by stage", "how sure", "considered"):
        assert word in page


def test_limits_of_the_stack(capsys: pytest.CaptureFixture[str]) -> None:
    common = [SHAPE, "vtrain-a100", "--gpus", "16", "--global-batch", "64", "--pp", "4", "--top", "40"]
    held = answer(capsys, *common)
    assert {layout["schedule"] for layout in held["layouts"]} == {"1f1b"}
    free = answer(capsys, *common, "--stack", "any")
    assert free["considered"] > held["considered"]
    assert {layout["schedule"] for layout in free["layouts"]} - {"1f1b"}


def test_every_problem_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "gpt:n_layers=2", "selen", "--global-batch", "x", "--tp", "0", "--schedule", "2f2b", code=2)[
        "error"
    ]["problems"]
    where = [problem["where"] for problem in found]
    assert {"--global-batch", "--tp", "--schedule", "selen", "gpt:n_layers=2"} <= set(where)


@pytest.mark.parametrize(
    ("arguments", "attempt"),
    [
        (["gpt3-175b", "selene-2021", "--gpus", "8", "--global-batch", "8"], "--gpus 64"),
        ([SHAPE, "selene-2021", "--gpus", "8", "--global-batch", "7", "--dp", "4"], "--global-batch 8"),
        ([SHAPE, "selene-2021", "--global-batch", "8"], "--gpus 64"),
        ([SHAPE, "selene-2021", "--gpus=8", "--tp=2", "--pp=2", "--dp=3", "--global-batch=8"], "--gpus 12"),
        (["lstm", "selene-2021", "--gpus", "8", "--global-batch", "8"], "gradatim plan gpt3-175b"),
    ],
)  # fmt: skip
def test_refusals_say_what_would_do(capsys: pytest.CaptureFixture[str], arguments: list[str], attempt: str) -> None:
    (problem,) = answer(capsys, *arguments, code=2)["error"]["problems"]
    assert attempt in problem["try"]
