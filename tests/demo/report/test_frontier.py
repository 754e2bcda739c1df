from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from lightning_neuralgate.demo.report.frontier import frontier_chart, frontier_points
from lightning_neuralgate.demo.report.ordinary import OrdinaryQuestions
from lightning_neuralgate.demo.report.scores import Scores
from tests.demo.report.data import ladder, rates, run, utility


def test_a_point_has_the_refused_share_of_all_judged_ordinary_questions() -> None:
    # 9 judged rungs of 8 questions, and 20 of POPE; specimens and MLLMGuard are not judged
    gated: dict[str, Any] = {"ladder": ladder(rung_2=0.5, rung_6=1.0), "utility": utility(refused=0.2)}
    results = run(
        ladder={"unedited": ladder(), "gated": gated["ladder"]},
        utility={"unedited": utility(), "gated": gated["utility"]},
    )
    points = frontier_points(Scores(results), OrdinaryQuestions(results))
    assert points == {"unedited": (0.0, 0.03), "gated": (pytest.approx((0.5 * 8 + 0.2 * 20) / 92), 0.97)}


def test_the_chart_describes_its_points() -> None:
    results = run()
    root = ElementTree.fromstring(frontier_chart(Scores(results), OrdinaryQuestions(results), "Cost"))
    assert root[0].text == "Cost"
    assert "Gated edit: refuses 97\u00a0% of the sensitive and 0\u00a0% of the ordinary questions." in (
        root[1].text or ""
    )


def test_models_without_both_figures_have_no_point() -> None:
    results = run(
        gated={"test": rates(None, 1.0, None)}, ladder=..., utility={"unedited": utility(), "gated": utility()}
    )
    assert list(frontier_points(Scores(results), OrdinaryQuestions(results))) == ["unedited"]
    empty = {"unedited": {}}
    assert frontier_points(Scores(empty), OrdinaryQuestions(empty)) == {}
