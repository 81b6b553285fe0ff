"""Timelines as text and as SVG: what is drawn is what was simulated or measured, and long ones stay small."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.schedules import (
    SCHEDULES,
    Action,
    Simulation,
    build_schedule,
    draw_svg,
    draw_text,
    durations,
    simulate,
    timeline_rows,
    timeline_svg,
    timeline_text,
)

SVG = "{http://www.w3.org/2000/svg}"
ANSI = re.compile(r"\x1b\[[\d;]*m")


def simulated(name: str, p: int, m: int, v: int = 1, **times: Any) -> Simulation:
    transfer = times.pop("transfer", 0)
    return simulate(build_schedule(name, p, m, v), durations(**times), transfer)


def measured(simulation: Simulation, seed: int = 0) -> list[Any]:
    """The same in seconds since some day, each action a little longer than said."""
    wobble = random.Random(seed)
    longer = simulate(simulation.schedule, lambda action: (1.0 + (action.kind != "F")) * wobble.uniform(0.9, 1.4) / 100)
    return [[(action, start + 1e5, end + 1e5) for action, start, end in row] for row in timeline_rows(longer)]


def rank_lines(text: str) -> list[str]:
    return [line.split(" ", 2)[2] for line in text.splitlines() if line.startswith("rank ")]


# --------------------------------------------------------------------------- text


def test_the_talk_s_pictures() -> None:
    assert draw_text(simulated("naive", 2, 2)).splitlines() == [
        "rank 0 F0 .........B0=== F1 .........B1=== ",
        "rank 1 ...F0 B0=== .........F1 B1=== ......",
        "time   0              5              10",
        "F forward, B backward, . idle",
    ]
    assert rank_lines(draw_text(simulated("1f1b", 2, 3))) == [
        "F0 F1 ......B0=== F2 B1=== ...B2=== ",
        "...F0 B0=== F1 B1=== F2 B2=== ......",
    ]
    assert rank_lines(draw_text(simulated("zero-bubble", 2, 2))) == ["F0 F1 ...I0 W0 I1 W1 ", "...F0 I0 F1 I1 W0 W1 "]
    assert rank_lines(draw_text(simulated("interleaved", 2, 2, 2)))[0].startswith("0F0 0F1 2F0 2F1 ")


def test_a_narrower_picture_drops_spaces_then_the_middle_then_numbers() -> None:
    simulation = simulated("1f1b", 2, 10)  # 33 units
    spaced, tight, cut, overview = (draw_text(simulation, width) for width in (107, 73, 60, 24))
    assert "F0 F1 ......B0=== F2 " in spaced
    assert rank_lines(tight)[0].startswith("F0F1....B0==F2B1==")
    first, second = rank_lines(cut)[0].split(" // ")
    assert first.startswith("F0F1....B0==F2") and second.endswith("F9B8==..B9==")
    assert "//" not in overview and "0" not in rank_lines(overview)[0]
    for text, width in [(spaced, 107), (tight, 73), (cut, 60), (overview, 24)]:
        assert max(len(line) for line in text.splitlines()[:3]) <= width


def test_an_overview_shows_letters_while_a_unit_has_a_column() -> None:
    text = draw_text(simulated("interleaved", 4, 8, 2), 70)
    assert rank_lines(text)[0] == "FFFFffffFFF...bbFbb.fbbfbbfBBfBBBB.BB.bb.bb.bb.bbBBBBBBBB"
    assert text.endswith("small letters: every other chunk")
    squeezed = draw_text(simulated("interleaved", 8, 64, 2), 70)
    assert "###" in squeezed and "# several in turns" in squeezed


def test_colours_say_the_same_as_letters() -> None:
    simulation = simulated("interleaved", 2, 4, 2)
    text = draw_text(simulation, None, colour=True)
    rows = text.splitlines()
    assert ANSI.sub("", rows[0]).startswith("rank 0  0  1  0  1 ")
    shades = re.findall(r"48;5;(\d+)", rows[0])
    assert len(set(shades)) == 4  # forward and backward, of two chunks
    assert "lighter: later chunks" in rows[-1]
    assert ANSI.sub("", draw_text(simulation, 12, colour=True)).count("rank") == 2


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_action_stands_where_it_starts(data: st.DataObject) -> None:
    """Of an uncut picture with spaces, the letters read back give the schedule; the columns give the times."""
    name = data.draw(st.sampled_from(list(SCHEDULES)))
    p = data.draw(st.integers(1, 4))
    v = data.draw(st.integers(1, 2)) if name == "interleaved" else 1
    m = p * data.draw(st.integers(1, 2)) if name == "interleaved" else data.draw(st.integers(1, 5))
    units = st.integers(1, 3) | st.sampled_from([Fraction(1, 2), Fraction(3, 2)])
    forward, backward = (data.draw(st.lists(units, min_size=p * v, max_size=p * v)) for _ in "fb")
    simulation = simulated(name, p, m, v, forward=forward, backward=backward, transfer=data.draw(st.integers(0, 2)))
    lines = rank_lines(draw_text(simulation, None))
    scales = set()
    for rank, line in enumerate(lines):
        found = [(match[0], match.start()) for match in re.finditer(r"\d*[FBIW]\d+", line)]
        assert [text if v > 1 else f"{rank}{text}" for text, _ in found] == simulation.schedule.text()[rank]
        for (_, column), (start, _) in zip(found, simulation.spans[rank]):
            scales |= {Fraction(column) / Fraction(start)} if start else set()
    assert len(scales) <= 1
    assert {len(line) for line in lines} == {
        simulation.makespan * next(iter(scales), len(lines[0]) / simulation.makespan)
    }


def test_measured_beside_simulated() -> None:
    simulation = simulated("1f1b", 2, 4, forward=0.01, backward=0.02)
    text = timeline_text({"simulated": timeline_rows(simulation), "measured": measured(simulation)}, 120)
    lines = text.splitlines()
    assert [lines[0], lines[3]] == ["simulated", "measured"]
    assert "F0" in lines[1] and "B3" in lines[1] and "F0" in lines[4] and "B3" in lines[4]
    assert len(lines[1]) < len(lines[4]) <= 120  # one scale: what took longer is longer
    assert re.findall(r"[FB]\d", lines[1]) == re.findall(r"[FB]\d", lines[4])


# --------------------------------------------------------------------------- SVG


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


def test_the_image_says_what_the_simulation_says() -> None:
    svg = draw_svg(simulated("1f1b", 4, 8))
    said = texts(svg)
    assert said[0] == "1F1B: 4 stages, 8 microbatches"
    assert "makespan 33, ideal 24, bubble overhead 0.375 (3/8) = (p-1)/m" in said
    assert "most microbatches in flight, by rank: 4 3 2 1" in said
    assert {"rank 0", "rank 3", "forward", "backward", "idle"} <= set(said)
    numbers = [text for group in parsed(svg).iter(f"{SVG}g") if group.get("font-size") == "11" for text in group]
    boxes = [number.text for number in numbers if number.get("y") == "48"]  # the first rank's
    assert boxes == [str(action.microbatch) for action in build_schedule("1f1b", 4, 8).ranks[0]]


def test_colours_of_kinds_and_shades_of_chunks() -> None:
    def fills(*arguments: Any) -> set[str | None]:
        return {path.get("fill") for path in parsed(draw_svg(simulated(*arguments))).iter(f"{SVG}path")}

    assert fills("1f1b", 2, 2) == {"#2f5fa3", "#2e7d42", "#808080"}
    assert fills("zero-bubble", 2, 2) == {"#2f5fa3", "#ba6016", "#764a9e", "#808080"}
    assert len(fills("interleaved", 2, 2, 3)) == 7


def test_formulas_are_claimed_only_where_they_hold() -> None:
    assert not any("p-1" in text for text in texts(draw_svg(simulated("zero-bubble", 4, 2))))  # m < p
    uneven = simulated("1f1b", 2, 4, forward=[1, 2])
    assert any(
        "; (p-1)/m = 0.25 (1/4) if all were equal and transfers free" in text for text in texts(draw_svg(uneven))
    )
    slow = simulated("gpipe", 2, 4, transfer=1)
    assert any("if all were equal and transfers free" in text for text in texts(draw_svg(slow)))


def test_for_readers_and_for_pages() -> None:
    svg = draw_svg(simulated("interleaved", 2, 4, 2))
    root = parsed(svg)
    assert (
        root.get("role") == "img"
        and root.get("aria-label") == "Interleaved 1F1B: 2 stages, 4 microbatches, 2 chunks per rank"
    )
    assert [root[0].tag, root[1].tag] == [f"{SVG}title", f"{SVG}desc"]
    assert "bubble overhead" in (root[1].text or "")
    for word in ("<style", "<script", " id=", "class="):  # several must be able to stand in one page
        assert word not in svg


def test_headings_and_captions_are_escaped() -> None:
    svg = timeline_svg({"<b>": [[(Action(0, "F", 0), 0, 1)]]}, 'a < "b" & c', ["<i>"], unit="µs")
    assert {"<b>", 'a < "b" & c', "<i>", "time, µs"} <= set(texts(svg))


@pytest.mark.parametrize("shape", [("1f1b", 8, 64), ("gpipe", 4, 100), ("interleaved", 32, 128, 4), ("naive", 64, 64)])
def test_long_schedules_make_small_pictures(shape: Any) -> None:
    svg = draw_svg(simulated(*shape))
    assert len(svg) < 60_000
    assert float(parsed(svg).get("viewBox", "").split()[2]) <= 1030
    text = draw_text(simulated(*shape), 120)
    assert len(text.splitlines()) < 30
    assert max(map(len, text.splitlines()[:-1])) <= 120


def test_many_ranks_are_shown_from_both_ends() -> None:
    text = draw_text(simulated("1f1b", 40, 40))
    assert [int(line.split()[1]) for line in text.splitlines() if line.startswith("rank")] == [
        *range(12),
        *range(28, 40),
    ]
    assert "⋮" in texts(draw_svg(simulated("1f1b", 40, 40)))


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(list(SCHEDULES)), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3),
    st.none() | st.integers(1, 200), st.booleans(),
)  # fmt: skip
def test_anything_can_be_drawn(
    name: str, p: int, rounds: int, forward: int, backward: int, width: int | None, colour: bool
) -> None:
    """Also where actions, or all of them, take no time."""
    simulation = simulated(name, p, p * rounds, forward=forward, backward=backward)
    assert draw_text(simulation, width, colour=colour)
    assert parsed(draw_svg(simulation)).tag == f"{SVG}svg"


def test_nothing_at_all() -> None:
    assert timeline_text({}).startswith("time")
    assert parsed(timeline_svg({"measured": [[], []]}, "nothing yet")).tag == f"{SVG}svg"


def test_neither_torch_nor_matplotlib() -> None:
    code = "import sys, gradatim.schedules as s; s.draw_svg(s.simulate(s.build_schedule('1f1b', 2, 2)));"
    code += "assert not {'torch', 'matplotlib', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
