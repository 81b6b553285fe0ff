"""Several batches and numbers of devices: each point is what a search finds, trainings follow the published law."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from gradatim.errors import ConfigError
from gradatim.plan.architecture import Architecture, load_model
from gradatim.plan.cluster import Cluster, load_cluster
from gradatim.plan.layouts import Fixed
from gradatim.plan.search import search
from gradatim.plan.sweep import (
    sweep,
    sweep_columns,
    sweep_document,
    sweep_html,
    sweep_remarks,
    sweep_rows,
    sweep_svg,
    training,
)

SMALL = "gpt:n_layers=12,d_model=2048,n_heads=16,vocab_size=51200,context=1024"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model() -> Architecture:
    return load_model(SMALL)[0]


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("selene-2022")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("critical", [None, 64.0, 512.0])
@pytest.mark.parametrize("batch", [8, 64, 512])
def test_training_follows_the_critical_batch(batch: int, critical: float | None) -> None:
    """S = S_min (1 + B_crit/B) and E = E_min (1 + B/B_crit), S_min = E_min/B_crit (McCandlish et al. 2018)."""
    tokens, context = 1e9, 1024
    made = training(2.0, 16, batch, context, tokens, critical)
    assert made.steps * batch * context == pytest.approx(made.tokens)
    assert made.seconds == pytest.approx(2.0 * made.steps)
    assert made.gpu_hours == pytest.approx(16 * made.seconds / 3600)
    if critical is None:
        assert made.tokens == tokens
    else:
        least = tokens / (critical * context)
        assert made.steps == pytest.approx(least * (1 + critical / batch))
        assert (made.tokens / tokens - 1) * (made.steps / least - 1) == pytest.approx(1)


def test_points_are_what_a_search_finds(model: Architecture, cluster: Cluster) -> None:
    swept = sweep(model, cluster, [4, 8], [16, 32], fixed=Fixed(pp=2))
    assert swept.by == "schedule"
    for gpus, batch in [(4, 16), (4, 32), (8, 16), (8, 32)]:
        here = [p for p in swept.points if (p.gpus, p.global_batch) == (gpus, batch)]
        fastest = min((p.candidate for p in here if p.candidate), key=lambda c: c.prediction.seconds)
        assert fastest == search(model, cluster, gpus, batch, fixed=Fixed(pp=2), top=1).best[0]
        assert all(p.candidate is None or p.candidate.layout.schedule == p.value for p in here)
    words = texts(sweep_svg(model, cluster, swept, name="small"))
    assert words[:2] == ["small", "pp 2"]
    assert any("interleaved" in word and "batch 16" in word for word in words)


def test_tensor_against_pipeline_names_both(model: Architecture, cluster: Cluster) -> None:
    swept = sweep(model, cluster, [8], [16], fixed=Fixed(dp=1, microbatch=1, schedule="1f1b"), by="tp")
    words = texts(sweep_svg(model, cluster, swept))
    assert {"4 · 2", "2 · 4", "1 · 8", "pipeline · tensor parallel size"} <= set(words)
    assert [p.value for p in swept.points] == [2, 4, 8]  # eight stages do not share twelve layers evenly


def test_batches_that_no_layout_divides_stay_with_their_reason(model: Architecture, cluster: Cluster) -> None:
    swept = sweep(model, cluster, [8], [7, 8], fixed=Fixed(tp=1, pp=1))
    first, second = swept.points
    assert first.candidate is None and first.reason == "no layout is legal"
    assert second.candidate is not None and not second.reason
    rows = sweep_rows(model, cluster, swept)
    assert rows[0] == [8, 7, "no layout is legal", None, None, None]
    assert rows[1][3] == second.candidate.prediction.seconds
    assert sweep_document(model, cluster, swept)[0] == {
        "gpus": 8,
        "global_batch": 7,
        "layout": None,
        "reason": "no layout is legal",
    }


def test_training_is_told_in_rows_pictures_and_sentences(model: Architecture, cluster: Cluster) -> None:
    swept = sweep(model, cluster, [4, 8], [16, 64], fixed=Fixed(pp=1), tokens=1e9, critical_batch=32)
    rows = sweep_rows(model, cluster, swept)
    assert all(len(row) == len(sweep_columns(swept)) == 10 for row in rows)
    documents = sweep_document(model, cluster, swept)
    for point, row, document in zip(swept.points, rows, documents):
        assert point.candidate and point.training
        step = point.candidate.prediction.seconds
        assert point.training == training(step, point.gpus, point.global_batch, 1024, 1e9, 32)
        assert row[-1] == document["training"]["gpu_hours"] == point.training.gpu_hours
    said = sweep_remarks(model, cluster, swept)
    assert any(line.startswith("soonest") for line in said)
    assert any("batch 64 it takes 3 times the tokens" in line for line in said)
    assert {"days to train", "thousand GPU hours", "batch 16", "devices"} <= set(
        texts(sweep_svg(model, cluster, swept))
    )
    page = sweep_html(model, cluster, swept, name="small")
    assert page.count("<svg") == 1 and "<script" not in page and "GPU hours" in page


@pytest.mark.parametrize(
    ("by", "fixed", "said"),
    [("width", Fixed(), "no such knob"), ("tp", Fixed(tp=2), "fixed")],
)
def test_what_cannot_be_compared(model: Architecture, cluster: Cluster, by: str, fixed: Fixed, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep(model, cluster, [8], [16], fixed=fixed, by=by)


def test_nothing_anywhere(model: Architecture, cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="no layout is legal"):
        sweep(model, cluster, [8], [3, 5], fixed=Fixed(tp=1, pp=1))
