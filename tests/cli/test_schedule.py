"""``gradatim schedule``: its JSON, the papers' formulas to the last digit, pictures, and mistakes told all at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gradatim.cli.main import main

FIELDS = ["ranks", "makespan", "ideal", "bubble_overhead", "bubble_formula", "peak_in_flight"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


def answer(capsys: pytest.CaptureFixture[str], name: str, p: int, m: int, *options: str) -> dict[str, Any]:
    arguments = ["schedule", name, "--stages", str(p), "--microbatches", str(m), *options, "--json"]
    assert main(arguments) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def problems(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, str]]:
    assert main(["schedule", *arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["exit_code"] == 2
    return {problem["where"]: problem for problem in document["error"]["problems"]}


def test_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "1f1b", 2, 3)
    assert list(found) == FIELDS
    assert found == {
        "ranks": [["0F0", "0F1", "0B0", "0F2", "0B1", "0B2"], ["1F0", "1B0", "1F1", "1B1", "1F2", "1B2"]],
        "makespan": 12,
        "ideal": 9,
        "bubble_overhead": 1 / 3,
        "bubble_formula": 1 / 3,
        "peak_in_flight": [2, 1],
    }
    assert isinstance(found["makespan"], int)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), [(2, 4), (3, 7), (4, 8), (5, 3), (8, 1)])  # fewer microbatches than stages too
@pytest.mark.parametrize("times", [("1", "2"), ("0.1", "0.2"), ("1/3", "0.7"), ("2.5e-3", "7")])
def test_the_bubble_is_p_minus_1_over_m(
    name: str, p: int, m: int, times: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys, name, p, m, "--forward", times[0], "--backward", times[1])
    assert found["bubble_overhead"] == found["bubble_formula"] == (p - 1) / m
    assert found["peak_in_flight"] == [m if name == "gpipe" else min(m, p - rank) for rank in range(p)]


@pytest.mark.parametrize(("p", "m", "v"), [(2, 2, 2), (4, 8, 2), (3, 9, 4), (5, 5, 3)])
def test_interleaving_divides_it_by_the_chunks(p: int, m: int, v: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "interleaved", p, m, "--chunks", str(v), "--forward", "0.7", "--backward", "1.1")
    assert found["bubble_overhead"] == found["bubble_formula"] == (p - 1) / (v * m)


def test_without_a_pipeline_and_with_zero_bubble(capsys: pytest.CaptureFixture[str]) -> None:
    naive = answer(capsys, "naive", 4, 1)
    assert (naive["makespan"], naive["bubble_overhead"], naive["peak_in_flight"]) == (12, 3, [1] * 4)
    zero = answer(capsys, "zero-bubble", 4, 8)
    assert zero["ranks"][3][:5] == ["3F0", "3I0", "3F1", "3I1", "3F2"]
    assert (zero["makespan"], zero["bubble_overhead"], zero["peak_in_flight"]) == (27, 1 / 8, [4] * 4)
    halves = answer(capsys, "zero-bubble", 2, 2, "--backward", "1")  # I and W take half each
    assert (halves["makespan"], halves["bubble_formula"]) == (5, 1 / 4)


def test_uneven_stages(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "1f1b", 3, 8, "--forward", "1,2,1", "--backward", "2,4,2")
    assert found["ideal"] == 8 * 6  # the busiest rank's
    assert found["makespan"] == 8 * 6 + 1 + 1 + 2  # which waits for a forward before it and, once, for the rank behind
    assert found["bubble_overhead"] == 4 / 48 != found["bubble_formula"]
    chunks = answer(capsys, "interleaved", 2, 2, "--chunks", "2", "--forward", "1,1,1,1.5")
    assert chunks["ideal"] == 2 * (1 + 1.5 + 4)


def test_transfers_take_time_and_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "naive", 2, 1, "--transfer", "0.5", "--communication")
    assert found["makespan"] == 7
    assert found["ranks"] == [["0F0", "0SEND_F0", "0RECV_B0", "0B0"], ["1RECV_F0", "1F0", "1B0", "1SEND_B0"]]
    silent = answer(capsys, "naive", 2, 1, "--transfer", "0.5")
    assert silent["ranks"] == [["0F0", "0B0"], ["1F0", "1B0"]]


def test_people_see_the_timeline_and_the_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "1f1b", "--stages", "4", "--microbatches", "8", "--communication"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rank 0 F0 F1 F2 F3 ......")
    assert "rank 3: 3RECV_F0 3RECV_F1 3F0 " in "\n".join(lines)
    assert [" ".join(line.split()) for line in lines[-4:]] == [
        "makespan 33",
        "ideal 24 the busiest rank's own work",
        "bubble overhead 0.375 (3/8) (p-1)/m = 0.375 (3/8)",
        "peak in flight 4 3 2 1 microbatches, by rank",
    ]
    assert main(["schedule", "1f1b", "--stages", "2", "--microbatches", "2", "--transfer", "1"]) == 0
    assert "(p-1)/m = 0.5 (1/2) if all were equal and transfers free" in capsys.readouterr().out
    assert main(["schedule", "zero-bubble", "--stages", "4", "--microbatches", "2"]) == 0
    assert "none known" in capsys.readouterr().out
    short = ["--microbatches", "8", "--forward", "1", "--backward", "4"]
    assert main(["schedule", "zero-bubble", "--stages", "4", *short]) == 0
    assert "(p-1)/m * (B/2)/(F+B) = 0.15 (3/20)" in capsys.readouterr().out


def test_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "gpipe", 4, 8, "--svg", "pictures/gpipe.svg")
    text = Path("pictures/gpipe.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "bubble overhead 0.375 (3/8) = (p-1)/m" in text
    assert len(text) < 8000
    assert main(["schedule", "gpipe", "--stages", "2", "--microbatches", "2", "--svg", "."]) == 5


def test_mistakes_come_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--stages", "x", "--microbatches", "0", "--forward", "1,2", "--backward", "-1,nan,2", "--transfer", "1,2"]
    found = problems(capsys, "1f2b", *wrong)
    assert set(found) == {"schedule", "stages", "microbatches", "backward", "transfer"}
    assert found["schedule"]["try"] == "1f1b"
    assert found["schedule"]["allowed"] == "naive, gpipe, 1f1b, interleaved, zero-bubble"
    assert found["backward"]["got"] in ("-1", "nan")


@pytest.mark.parametrize(
    ("arguments", "where", "said"),
    [
        (["interleaved", "--stages", "4", "--microbatches", "6"], "microbatches", "not divisible by 4"),
        (["1f1b", "--stages", "4", "--microbatches", "8", "--chunks", "2"], "chunks", "one chunk per rank"),
        (["1f1b", "--stages", "3", "--microbatches", "8", "--forward", "1,2"], "forward", "one for each chunk"),
        (["1f1b", "--stages", "3", "--microbatches", "8", "--backward", "1e999999999"], "backward", "must be a number"),
        (["1f1b", "--stages", "3", "--microbatches", "8", "--transfer", "1/0"], "transfer", "must be a number"),
        (["1f1b", "--stages", "3", "--microbatches", "8", "--forward", ""], "forward", "must be a number"),
        (["1f1b", "--stages", "2.5", "--microbatches", "8"], "stages", "whole number"),
        (["1f1b", "--stages", "99999", "--microbatches", "99999"], "stages microbatches chunks", "actions"),
        (["1f1b", "--stages", "4"], "gradatim schedule", "--microbatches"),
        (["1f1b", "--stages", "4", "--microbatches", "8", "--chunk", "2"], "gradatim schedule", "no such option"),
    ],
)
def test_mistakes(arguments: list[str], where: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (problem,) = problems(capsys, *arguments).values()
    assert problem["where"] == where
    assert said in problem["what"]
    assert problem["try"]


def test_torch_stays_out_and_it_is_quick() -> None:
    code = "import sys; from gradatim.cli.main import main; "
    code += "arguments = 'schedule interleaved --stages 8 --microbatches 32 --chunks 2 --svg x.svg'; "
    code += "main(arguments.split()); "
    code += "assert not {'torch', 'numpy', 'matplotlib'} & sys.modules.keys()"
    began = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    ended = os.times()
    assert ended.children_user + ended.children_system - began.children_user - began.children_system < 1


@pytest.mark.slow
def test_a_large_one_takes_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    found = answer(capsys, "interleaved", 64, 512, "--chunks", "4")
    assert time.process_time() - began < 15  # 2 s on an idle machine
    assert found["bubble_overhead"] == 63 / (4 * 512)
    assert found["peak_in_flight"][0] == 2 * 63 + 3 * 64 + 1


def test_the_documentation_s_pictures_are_what_its_commands_draw() -> None:
    docs = Path(__file__).parents[2] / "docs"
    commands = re.findall(
        r"^gradatim (schedule .* --svg (images/\S+))", (docs / "schedules.md").read_text("utf-8"), re.M
    )
    assert {Path(file).name for _, file in commands} == {path.name for path in (docs / "images").glob("schedule-*.svg")}
    for command, file in commands:
        assert main(command.split()) == 0
        assert Path(file).read_text("utf-8") == (docs / file).read_text("utf-8"), f"in docs/: gradatim {command}"
