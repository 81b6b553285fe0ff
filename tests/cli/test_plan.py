"""``gradatim plan``: the JSON that programs read, the page for people, and what is refused."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from gradatim.cli.main import main
from gradatim.plan.cluster import load_cluster

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


def test_json_has_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [SHAPE, "selene-2022", "--gpus", "16", "--global-batch", "64", "--top", "1"]
    found = answer(capsys, *asked)
    assert found["device"] == {"name": "A100-SXM4-80GB", "memory_gib": pytest.approx(85e9 / 2**30)}
    assert found["measured"] == {"runs": 6, "error": [0.02, 0.03], "devices": [8, 512], "memory_error": None}
    (best,) = found["layouts"]
    assert set(found["knobs"]) == {knob for knob in best if knob in found["knobs"]}
    for knob, costs in found["knobs"].items():
        assert costs[str(best[knob]).lower()] == best["seconds"] == min(s for s in costs.values() if s is not None)
    assert main(["plan", *asked]) == 0
    page = capsys.readouterr().out
    assert found["how_sure"][-1] in page
    assert f"full {100 * (found['knobs']['recompute']['full'] / best['seconds'] - 1):+.1f} %" in page


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
        ([SHAPE, "selene-2021", "--gpus=8", "--tp=2", "--pp=2", "--dp=3", "--global-batch=8"], "12 --global-batch 9"),
        (["lstm", "selene-2021", "--gpus", "8", "--global-batch", "8"], "gradatim plan gpt3-175b"),
        ([SHAPE, "selene-2021", "--gpus", "8", "--global-batch", "8", "--dp", "3"], "--dp 4"),
        ([SHAPE, "selene-2021", "--gpus", "8", "--global-batch", "8", "--tp", "2", "--dp", "8"], "--gpus 16"),
        ([SHAPE, "selene-2021", "--gpus", "8", "--global-batch", "8", "--pp", "1", "--chunks", "2"], "--chunks 1"),
        (
            [SHAPE, "selene-2021", "--gpus", "8", "--global-batch", "8", "--schedule", "gpipe", "--chunks", "4"],
            "--schedule interleaved",
        ),
        (
            [SHAPE, "selene-2022", "--gpus=8", "--global-batch=8", "--tp", "1", "--sequence-parallel", "true"],
            "--tp 2",
        ),
    ],
)  # fmt: skip
def test_refusals_say_what_would_do(capsys: pytest.CaptureFixture[str], arguments: list[str], attempt: str) -> None:
    (problem,) = answer(capsys, *arguments, code=2)["error"]["problems"]
    assert attempt in problem["try"]


SMALL = [SHAPE, "selene-2022", "--gpus", "16", "--global-batch", "64"]


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ("gradatim", "layout: {tp: "),
        ("megatron", "--tensor-model-parallel-size"),
        ("deepspeed", '"train_batch_size": 64'),
    ],
)  # fmt: skip
def test_a_layout_is_handed_over(capsys: pytest.CaptureFixture[str], trainer: str, said: str) -> None:
    arguments = [*SMALL, "--schedule", "1f1b", "--emit", trainer]
    assert main(["plan", *arguments]) == 0
    printed = capsys.readouterr()
    assert said in printed.out and "MFU" not in printed.out  # so that it can be piped
    assert "fastest: tp" in printed.err
    assert answer(capsys, *arguments)["emitted"].rstrip() == printed.out.rstrip()


def test_an_emitted_recipe_passes_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", *SMALL, "--emit", "gradatim"]) == 0
    recipe = tmp_path / "planned.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert main(["check", str(recipe), "--json"]) == 0


def test_our_own_memory_is_counted_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """A layout planned with Megatron's memory need not fit under our trainer, which keeps more."""
    asked = ["gpt3-175b", "--gpus", "1024", "--global-batch", "1536", "--top", "1", "--emit", "gradatim"]
    assert main(["plan", asked[0], "selene-2022", *asked[1:]]) == 0
    printed = capsys.readouterr()
    (warning,) = (line for line in printed.err.splitlines() if line.startswith("warning: "))
    needed, limit, planned = map(float, re.findall(r"\d+\.\d", warning)[:3])
    assert needed > limit > planned and "gradatim plan gpt3-175b gradatim-a100" in warning
    assert f"# Does not fit: {warning.removeprefix('warning: ').partition(' Try: ')[0]}" in printed.out
    assert answer(capsys, asked[0], "gradatim-a100", *asked[1:])["warnings"] == []
    megatron = answer(capsys, asked[0], "selene-2022", *asked[1:-1], "megatron")
    assert megatron["warnings"] == []


@pytest.mark.parametrize(
    ("memory", "hint"),
    [("16e9", "a cluster file with this hardware and the stack of gradatim-h100"), ("4e9", "--gpus ")],
)
def test_what_to_try_where_our_own_memory_is_too_much(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, memory: str, hint: str
) -> None:
    mine = tmp_path / "mine.yaml"
    stack = "{weight_bytes: 1, gradient_bytes: 0, state_bytes: 0, overhead: 0}"
    mine.write_text(f"device: {{name: one, memory: {memory}}}\nstack: {stack}\n")
    found = answer(capsys, SHAPE, str(mine), "--gpus", "8", "--global-batch", "64", "--emit", "gradatim")
    assert hint in found["warnings"][-1]


def test_a_recipe_in_fp32_needs_more_than_was_planned_in_bf16(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "gpt3.yaml"
    packaged = files("gradatim.config.recipes").joinpath("gpt3-175b.yaml").read_text("utf-8")
    recipe.write_text(packaged.replace("precision: bf16", "precision: fp32"))
    asked = [str(recipe), "gradatim-a100", "--gpus", "1024", "--global-batch", "1536", "--emit", "gradatim"]
    (warning,) = answer(capsys, *asked)["warnings"]
    assert "under fp32" in warning and "a copy of gradatim-a100 with stack.element_bytes: 4" in warning


def test_what_a_cluster_file_leaves_out_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("device: {name: H200, peak: 989e12, memory: 141e9}\n")
    asked = [SHAPE, str(mine), "--gpus", "8", "--global-batch", "64", "--top", "1"]
    (note,) = answer(capsys, *asked)["notes"]
    assert "device.bandwidth 2.039e+12" in note and "node.card 2.5e+10" in note and "device.peak" not in note
    assert main(["plan", *asked]) == 0
    assert f"note: {note}\n" in capsys.readouterr().err
    assert answer(capsys, *SMALL)["notes"] == []
    mine.write_text("{}")
    answer(capsys, *asked, code=2)


def test_a_packaged_cluster_is_shown_to_start_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "--show-cluster", "eos-h100"]) == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(capsys.readouterr().out)
    assert load_cluster(mine) == load_cluster("eos-h100")
    assert main(["plan", "--show-cluster", "eos-h10"]) == 2
    assert "try: eos-h100" in capsys.readouterr().err


def test_what_a_trainer_cannot_do_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    (problem,) = answer(capsys, *SMALL, "--emit", "torchtitan", code=2)["error"]["problems"]
    assert problem["where"] == "--emit torchtitan" and "Llama" in problem["what"]


def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    svg, html = tmp_path / "deep" / "plan.svg", tmp_path / "plan.html"
    assert main(["plan", *SMALL, "--svg", str(svg), "--html", str(html), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layouts"]
    assert svg.read_text().startswith("<svg") and "GiB by stage" in svg.read_text()
    assert "<svg" in html.read_text() and SHAPE in html.read_text()
    curve = tmp_path / "curve.svg"
    assert main(["plan", *SMALL, "--by", "tp", "--svg", str(curve), "--hardware-flops"]) == 0
    assert "recomputation counted" in curve.read_text()


def test_curves(capsys: pytest.CaptureFixture[str]) -> None:
    several = [*SMALL[:2], "--gpus", "8,16", "--global-batch", "32, 64,64", "--tokens", "3e9", "--critical-batch", "64"]
    found = answer(capsys, *several)
    assert (found["gpus"], found["global_batch"], found["by"]) == ([8, 16], [32, 64], None)
    assert [(p["gpus"], p["global_batch"]) for p in found["points"]] == [(8, 32), (8, 64), (16, 32), (16, 64)]
    for point in found["points"]:
        one = answer(capsys, *SMALL[:2], "--gpus", f"{point['gpus']}", "--global-batch", f"{point['global_batch']}",
                     "--tokens", "3e9", "--critical-batch", "64", "--top", "1")  # fmt: skip
        assert one["layouts"][0] == point["layout"] | {"training": point["training"]}
        needed = 3e9 * (1 + point["global_batch"] / 64)
        assert point["training"]["tokens"] == pytest.approx(needed)
        hours = needed / (point["global_batch"] * 2048) * point["layout"]["seconds"] / 3600 * point["gpus"]
        assert point["training"]["gpu_hours"] == pytest.approx(hours)
    assert main(["plan", *several]) == 0
    page = capsys.readouterr().out
    for word in ("GPU hours", "soonest", "cheapest", "critical batch 64", "how sure"):
        assert word in page


def test_a_knob_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *SMALL, "--by", "sequence-parallel")
    assert {point["sequence_parallel"] for point in found["points"]} == {False, True}
    best = answer(capsys, *SMALL, "--top", "1")["layouts"][0]
    assert min(point["layout"]["seconds"] for point in found["points"]) == best["seconds"]


def test_a_fixed_layout_that_does_not_fit_stays_in_a_curve(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--tp", "1", "--pp", "1", "--dp", "8", "--microbatch", "8", "--recompute", "none"]
    found = answer(capsys, "gpt3-175b", "selene-2021", *fixed, "--global-batch", "64,128")
    assert [point["layout"]["fits"] for point in found["points"]] == [False, False]


def test_what_does_not_fit_is_told_in_a_curve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also where a knob is compared that has one value left, and in the picture."""
    fixed = ["--gpus", "16", "--tp", "8", "--pp", "2", "--dp", "1", "--microbatch", "1", "--global-batch", "8,16"]
    for knob in ("chunks", "zero"):
        drawn = str(tmp_path / f"{knob}.svg")
        assert main(["plan", "gpt3-175b", "selene-2022", *fixed, "--by", knob, "--svg", drawn]) == 0
        said = capsys.readouterr().out
        assert said.count("does not fit") == 2 and "nothing fits" in said and "highest throughput" not in said
        assert "nothing fits" in Path(drawn).read_text()


@pytest.mark.parametrize(("option", "value"), [("--gpus", "9" * 5000), ("--tp", "0" * 5000), ("--tokens", "1e308")])
def test_numbers_beyond_all_measure(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    asked = {"--gpus": "8", "--global-batch": "8", option: value}
    (problem,) = answer(capsys, SHAPE, "selene-2022", *(x for pair in asked.items() for x in pair), code=2)["error"][
        "problems"
    ]
    assert problem["where"] == option and len(problem["got"]) < 100


def test_a_batch_that_would_do_is_not_looked_for_where_none_would(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradatim.cli import plan_hints

    tried = []
    legal = plan_hints.legal_layouts
    monkeypatch.setattr(plan_hints, "legal_layouts", lambda *given: tried.append(given) or legal(*given))
    fixed = ["--tp", "2", "--context", "1023", "--sequence-parallel", "true"]
    (problem,) = answer(capsys, SHAPE, "selene-2022", "--gpus", "8", "--global-batch", "8", *fixed, code=2)["error"][
        "problems"
    ]
    assert len(tried) < 4 and "a context that tp divides" in problem["got"] and problem["try"] == "--context 1024"


@pytest.mark.parametrize(
    "wrong",
    [
        "--gpus 1024 --tp 3",
        "--gpus 1024 --pp 7",
        "--gpus 1024 --tp 2 --pp 3",
        "--gpus 8 --tp 2 --pp 2 --dp 5",
        "--gpus 1024 --tp 8 --sequence-parallel true --context 2047",
        "--gpus 1024 --dp 1024 --microbatch 3",
        "--gpus 1024 --pp 128",
        "--gpus 1000 --tp 5",
    ],
)
def test_each_hint_leads_to_a_layout(capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    """What is said to be worth trying has layouts, whether they fit or not."""
    asked = dict(zip(("--global-batch", *wrong.split()[::2]), ("1536", *wrong.split()[1::2])))
    given = [word for pair in asked.items() for word in pair]
    (problem,) = answer(capsys, "gpt3-175b", "selene-2022", *given, code=2)["error"]["problems"]
    for hint in problem["try"].split(" or "):
        changed, words = dict(asked), hint.replace("fix less, and ", "").split()
        if hint.startswith("leave"):
            changed.pop(words[1])
        else:
            changed |= dict(zip(words[::2], words[1::2]))
        if hint.startswith("fix less"):
            changed = {option: changed[option] for option in ("--gpus", "--global-batch")}
        given = [word for pair in changed.items() for word in pair]
        main(["plan", "gpt3-175b", "selene-2022", *given, "--top", "1", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert "layouts" in found or found["error"]["problems"][0]["what"] == "nothing fits", hint


def test_every_problem_of_the_curves_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = ["--gpus", "8,x", "--global-batch", "8,16", "--by", "tp", "--tp", "2", "--emit", "megatrom",
             "--critical-batch", "-1", "--svg", str(tmp_path)]  # fmt: skip
    problems = answer(capsys, SHAPE, "selene-2022", *wrong, code=2)["error"]["problems"]
    assert {"--gpus", "--by", "--emit", "--critical-batch", "--svg"} == {problem["where"] for problem in problems}
    (problem,) = answer(capsys, *SMALL, "--by", "tp", "--emit", "megatron", code=2)["error"]["problems"]
    assert "one layout" in problem["what"]
    (problem,) = answer(capsys, *SMALL, "--by", "microbatches", code=2)["error"]["problems"]
    assert problem["try"] == "microbatch"


def test_the_pictures_of_the_docs_are_what_their_commands_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parents[2] / "docs"
    commands = re.findall(r"^gradatim (plan .* --svg (images/\S+))", (docs / "plan.md").read_text("utf-8"), re.M)
    monkeypatch.chdir(tmp_path)
    for command, file in commands:
        assert main(command.split()) == 0
        assert Path(file).read_text("utf-8") == (docs / file).read_text("utf-8")
    assert {Path(file).name for _, file in commands} == {path.name for path in (docs / "images").glob("plan-*.svg")}


def test_translators_are_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["transformer-tiny", "gradatim-a100", "--gpus", "4", "--global-batch", "64"]
    found = answer(capsys, *common, "--top", "50")
    assert found["context"] == 128 and found["rejected"]["an encoder-decoder is one stage"] > 0
    assert {layout["pp"] for layout in found["layouts"]} == {1}
    assert {layout["tp"] for layout in found["layouts"]} == {1, 2, 4}
    assert not any(layout["sequence_parallel"] for layout in found["layouts"])
    assert main(["plan", *common]) == 0
    assert "64 pairs of 128 source and 128 target tokens" in capsys.readouterr().out
    (problem,) = answer(capsys, *common, "--pp", "2", code=2)["error"]["problems"]
    assert "one stage" in problem["got"]
    (problem,) = answer(capsys, *common, "--emit", "megatron", code=2)["error"]["problems"]
    assert "decoders alone" in problem["what"]
    assert "recompute: none" in answer(capsys, *common, "--recompute", "none", "--emit", "gradatim")["emitted"]
