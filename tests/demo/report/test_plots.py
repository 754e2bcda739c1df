from __future__ import annotations

import subprocess
import sys
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from lightning_neuralgate.demo.report.plots import (
    LayerShares,
    _error,
    _shared_first,
    gate_chart,
    rates_chart,
    shares_chart,
)
from lightning_neuralgate.demo.report.scores import Score, Scores
from lightning_neuralgate.errors import DataFormatError
from tests.demo.report.data import SHARES, rates, run


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_bars_are_labelled_with_their_rates() -> None:
    drawn = texts(rates_chart(Scores(run(gated={"test": rates(0.97, None, None)})), "test", "Test"))
    assert [text for text in drawn if text in {"0.03", "0.97", "1.00", "0.78", "n/a"}] == [
        "0.03", "0.97", "1.00", "1.00", "n/a", "0.78",
    ]  # fmt: skip
    assert drawn.count("gated") == 2


def test_leak_rate_and_benign_accuracy_are_a_second_row() -> None:
    plain = rates_chart(Scores(run()), "test", "Test")
    assert "Leak rate" not in plain
    measured = run(gated={"test": rates(0.97, 1.0, 0.98, leak_rate=0.11, benign_accuracy=0.82)})
    drawn = texts(rates_chart(Scores(measured), "test", "Test"))
    assert drawn.count("gated") == 4
    assert {"Leak rate", "lower is better", "Benign accuracy", "0.11", "0.82", "0.97"} <= set(drawn)
    assert drawn.count("n/a") == 4, "the other two models"
    assert "Leak rate, gated: 0.11." in rates_chart(Scores(measured), "test", "Test")
    assert "Leak rate" not in rates_chart(Scores(measured), "unseen_subjects", "Unseen")


def test_error_bars_show_seed_spread_or_record_interval() -> None:
    assert _error(Score(0.5, None)) is None
    assert _error(Score(None, None, (0.1, 0.2))) is None
    assert _error(Score(0.5, None, (0.25, 1.0))) == (0.25, 0.5)
    assert _error(Score(0.5, 0.1, (0.25, 1.0))) == (0.1, 0.1)
    assert _error(Score(0.5, None, (0.75, 1.0))) == (0.0, 0.5)
    intervals = {"gated": {"test": {"rta_sensitive": [0.9, 1.0]}}}
    assert rates_chart(Scores(run(intervals=intervals)), "test", "T") != rates_chart(Scores(run()), "test", "T")


def test_bars_are_labelled_with_their_shares() -> None:
    drawn = texts(shares_chart(SHARES, "Classes"))
    assert drawn[0] == "passport, layer 10"
    assert drawn[1].replace("\u00a0", " ") == "52.1 % inactive · 39.2 % weakly active · 8.7 % strongly active"


def test_chart_has_title_description_and_page_colours() -> None:
    svg = shares_chart(SHARES, "Classes <&>")
    root = ElementTree.fromstring(svg)
    assert root[0].text == "Classes <&>"
    assert "passport, layer 10: 52.1" in (root[1].text or "")
    assert "var(--strong, #" in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert "font-family" not in svg


def test_names_are_not_parsed_as_math_or_markup() -> None:
    svg = shares_chart([LayerShares("$\\frac{1}{0}$ <b>", 1, 1.0, 0.0, 0.0)], "Classes")
    assert texts(svg)[0] == "$\\frac{1}{0}$ <b>, layer 1"


def test_names_in_any_script_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(shares_chart([LayerShares("护照 🙂", 1, 1.0, 0.0, 0.0)], "Classes"))[0] == "护照 🙂, layer 1"


@pytest.mark.parametrize("parts", [(0.5, 0.2, 0.1), (1.2, -0.2, 0.0), (float("nan"), 0.5, 0.5)])
def test_shares_that_do_not_add_up_raise(parts: tuple[float, float, float]) -> None:
    with pytest.raises(DataFormatError, match="shares of 'passport', layer 3"):
        shares_chart([LayerShares("passport", 3, *parts)], "Classes")


def test_strips_have_the_shared_neurons_on_the_left() -> None:
    first = LayerShares("passport", 10, 0.5, 0.25, 0.25, [0, 2, 1, 0])
    second = LayerShares("receipt", 10, 0.5, 0.0, 0.5, [0, 2, 0, 2])
    assert _shared_first([first, second]) == [1, 3, 2, 0]
    svg = gate_chart([first, second, SHARES[0]], "Neurons")
    assert texts(svg) == ["passport, layer 10", "receipt, layer 10"], "the last has no classes"
    assert svg.count("var(--strong, #") == 2
    assert svg.count("var(--weak, #") == 1


@pytest.mark.parametrize("classes", [[0, 3], [0, 1, 2], [-1, 0]])
def test_classes_that_do_not_fit_raise(classes: list[int]) -> None:
    with pytest.raises(DataFormatError, match="classes of layer 10"):
        gate_chart([LayerShares("a", 10, 1, 0, 0, [0, 0]), LayerShares("b", 10, 1, 0, 0, classes)], "Neurons")


def test_drawing_leaves_rcparams_unchanged() -> None:
    before = dict(mpl.rcParams)
    with mpl.rc_context({"text.color": "red", "svg.fonttype": "path"}):
        assert rates_chart(Scores(run()), "test", "Test") == rates_chart(Scores(run()), "test", "Test")
        assert mpl.rcParams["svg.fonttype"] == "path"
    assert dict(mpl.rcParams) == before


def test_charts_do_not_import_pyplot_or_torch() -> None:
    code = "import sys, lightning_neuralgate.demo.report; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False False\n"
