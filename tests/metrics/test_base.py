"""Behaviour that all metrics have in common."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torchmetrics import Metric

from lightning_neuralgate.metrics import (
    AnswerRate,
    BenignAccuracy,
    ExpectToAnswer,
    LeakRate,
    PartialLeak,
    RefuseToAnswerRate,
)
from tests.metrics.all_metrics import METRICS, RATES, floats, same


@pytest.mark.parametrize("name", METRICS)
def test_classes_equal_functions_over_uneven_batches(name: str) -> None:
    create, columns, function = METRICS[name]
    metric: Metric = create()
    for start, end in ((0, 1), (1, 20), (20, 20), (20, 60)):
        batch = [column[start:end] for column in columns]
        value = metric(*batch)
        assert value is None if name == "MME" else start == end or name == "MLLMGuard" or same(value, function(*batch))
    figures = metric.compute()
    assert same(figures, function(*columns))
    for value in figures.values() if isinstance(figures, dict) else [figures]:
        assert (value.shape, value.dtype) == ((), torch.float32)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(metric)))
    assert same(copied.compute(), function(*columns))
    metric.reset()
    half = [[*column[:10], *column[30:40]] for column in columns]
    metric.update(*half)
    assert same(metric.compute(), function(*half))
    assert metric.state_dict() == {}


@pytest.mark.parametrize("name", METRICS)
def test_merge_state_adds_the_counts(name: str) -> None:
    create, columns, function = METRICS[name]
    first, second = create(), create()
    first.update(*(column[:25] for column in columns))
    second.update(*(column[25:] for column in columns))
    first.merge_state(second)
    assert same(first.compute(), function(*columns))


@pytest.mark.parametrize("name", METRICS)
def test_figures_over_zero_answers_are_nan(name: str) -> None:
    create, columns, _ = METRICS[name]
    metric = create()
    with pytest.warns(UserWarning, match="`compute`"):
        figures = floats(metric.compute())
    assert figures
    assert all(map(math.isnan, figures.values()))
    metric.update(*([] for _ in columns))
    assert all(map(math.isnan, floats(metric.compute()).values()))


@pytest.mark.parametrize("name", METRICS)
def test_update_works_after_a_reset_in_inference_mode(name: str) -> None:
    create, columns, function = METRICS[name]
    metric = create()
    with torch.inference_mode():
        metric.update(*columns)
        metric.compute()
        metric.reset()
    metric.update(*columns)
    assert same(metric.compute(), function(*columns))


@pytest.mark.parametrize(
    ("metric", "higher_is_better"),
    [
        (LeakRate, False),
        (PartialLeak, False),
        (BenignAccuracy, True),
        (RefuseToAnswerRate, None),
        (AnswerRate, None),
        (ExpectToAnswer, True),
    ],
)
def test_properties_of_rates(metric: Any, higher_is_better: bool | None) -> None:
    assert metric.higher_is_better is higher_is_better
    assert (metric.is_differentiable, metric.full_state_update) == (False, False)
    assert (metric.plot_lower_bound, metric.plot_upper_bound) == (0.0, 1.0)
    with pytest.raises(ValueError, match="unheard_of"):
        metric(unheard_of=True)


@pytest.mark.parametrize("name", RATES)
def test_plots_of_rates(name: str) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    create, columns, _ = RATES[name]
    metric = create()
    batches = [metric(*(column[start : start + 20] for column in columns)) for start in (0, 20, 40)]
    for figure, axis in (metric.plot(), metric.plot(batches)):
        assert figure is not None
        assert axis.get_ylim()[0] <= 0 < 1 <= axis.get_ylim()[1]
    pyplot.close("all")
