"""Pictures of a plan: well-formed, self-contained, and drawn from the numbers that the table shows."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.charts import Mark, Scale, columns, document, lines, shares
from gradatim.plan.cluster import Cluster, load_cluster
from gradatim.plan.layouts import Fixed
from gradatim.plan.picture import plan_html, plan_svg, timeline
from gradatim.plan.predict import predict
from gradatim.plan.search import Found, search

SMALL = "gpt:n_layers=12,d_model=2048,n_heads=16,vocab_size=51200,context=1024"
SVG = "{http://www.w3.org/2000/svg}"
FIXED = Fixed(pp=4, recompute="full")


@pytest.fixture(scope="module")
def model() -> Architecture:
    return load_model(SMALL)[0]


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("selene-2022")


@pytest.fixture(scope="module")
def found(model: Architecture, cluster: Cluster) -> Found:
    return search(model, cluster, 8, 16, fixed=FIXED, top=3)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_plan_svg_shows_layout_memory_and_knobs(model: Architecture, cluster: Cluster, found: Found) -> None:
    svg = plan_svg(model, cluster, found, 16, fixed=FIXED, name="small")
    words = texts(svg)
    assert words[0] == "small: batch 16, 8 devices"
    fullest = max(found.best[0].memory) / 2**30
    assert f"{fullest:#.3g}" in words and "GiB by stage" in words
    assert {"tp", "dp", "microbatch", "global batch"} <= set(words)
    assert "pp" not in words and "recompute" not in words  # fixed, so nothing stands against them
    assert f"{cluster.device.memory / 2**30:.1f} GiB: {cluster.device.name}" in words
    assert svg == plan_svg(model, cluster, found, 16, fixed=FIXED, name="small")


def test_plan_html_is_one_file(model: Architecture, cluster: Cluster, found: Found) -> None:
    text = plan_html(model, cluster, found, 16, fixed=FIXED, name="<small>")
    assert "<script" not in text and "&lt;small&gt;" in text
    assert not re.search(r'(src|href)="', text)
    assert text.count("<svg") == 4
    assert f"{found.considered:,} layouts considered" in text


def test_timeline_lasts_as_long_as_predicted(model: Architecture, cluster: Cluster, found: Found) -> None:
    layout = found.best[0].layout
    words = " ".join(texts(document(timeline(model, cluster, layout, 16), "", "")))
    said = re.search(r"makespan ([\d.]+) ms", words)
    assert said
    parts = predict(cluster, model, layout, 16).breakdown
    passes = sum(parts[cause] for cause in ("compute", "tensor", "pipeline", "bubble"))
    assert float(said.group(1)) == pytest.approx(1000 * passes, rel=1e-4)


def test_long_timeline_says_what_it_leaves_out(model: Architecture, cluster: Cluster) -> None:
    """And tells the whole step's bubble, not that of the few microbatches drawn."""
    layout = search(model, cluster, 4, 16384, fixed=Fixed(pp=4, microbatch=1, tp=1), top=1).best[0].layout
    words = " ".join(texts(document(timeline(model, cluster, layout, 16384), "", "")))
    assert "of 16,384 microbatches" in words
    said = re.search(r"makespan ([\d.e+]+) ms, ideal ([\d.e+]+) ms, bubble overhead ([\d.e-]+)", words)
    assert said
    parts = predict(cluster, model, layout, 16384).breakdown
    passes = sum(parts[cause] for cause in ("compute", "tensor", "pipeline", "bubble"))
    assert float(said[1]) == pytest.approx(1000 * passes, rel=1e-3)
    assert float(said[3]) == pytest.approx(parts["bubble"] / (passes - parts["bubble"]), rel=1e-2)


def test_one_stage_has_no_timeline(model: Architecture, cluster: Cluster) -> None:
    alone = search(model, cluster, 2, 8, fixed=Fixed(pp=1), top=1)
    assert plan_html(model, cluster, alone, 8).count("<svg") == 3


def test_chart_places_points_on_its_scale() -> None:
    drawn = lines(
        {"": [Mark(0, 1.0), Mark(1, 2.0, chosen=True), Mark(2, None)]}, ["a", "b", "c"], title="t", x_label="x"
    )
    root = ElementTree.fromstring(document(drawn, "h", "w"))
    circles = list(root.iter(f"{SVG}circle"))
    scale = Scale(2.0, 250 - 30 - 44)
    heights = [float(circle.attrib["cy"]) for circle in circles]
    assert heights[0] - heights[1] == pytest.approx(scale.at(1.0), abs=0.11)
    assert len(circles) == 2  # the third has none, but a cross


@pytest.mark.parametrize("most", [1e-4, 0.9, 1.0, 2.4, 7, 80, 186, 12345])
def test_scale_has_few_round_rules(most: float) -> None:
    scale = Scale(most, 200)
    assert 2 <= most / scale.every <= 7
    assert scale.at(most) <= 200


def test_shares_fill_the_bar() -> None:
    drawn = shares({"a": 3.0, "b": 1.0, "c": 0.0}, title="t", unit="s", width=410)
    widths = [float(part) for part in re.findall(r"24h([\d.]+)v26", drawn.body)]
    assert widths == [300, 100]
    assert "75 %" in drawn.body and "25 %" in drawn.body


def test_columns_stand_below_their_limit() -> None:
    drawn = columns({"a": [1.0, 2.0], "b": [1.0, 0.0]}, title="t", x_label="stage", limit=4, limit_name="all")
    assert "all" in texts(document(drawn, "h", "w"))
    assert len(re.findall(r"M[\d.]+ [\d.]+h[\d.]+V", drawn.body)) == 3  # what is nothing is not drawn


@pytest.mark.parametrize(("count", "upright", "shown"), [(8, 0, 8), (32, 32, 32), (128, 0, 0)])
def test_totals_fit_their_columns(count: int, upright: int, shown: int) -> None:
    totals = [70.1 + stage / 100 for stage in range(count)]
    body = columns({"a": totals}, title="GiB", x_label="stage", limit=79, limit_name="all").body
    assert body.count("rotate(-90") == upright
    words = texts(document(columns({"a": totals}, title="GiB", x_label="stage", limit=79, limit_name="all"), "h", "w"))
    assert sum(word.startswith(("70.", "71.")) for word in words) == shown
    assert ("GiB: 70.1 to 71.4" in words) is (not shown)
