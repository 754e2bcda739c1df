"""Leak rate, partial leak and benign accuracy as torchmetrics classes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

import lightning_neuralgate
from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics import BenignAccuracy, LeakRate, PartialLeak
from lightning_neuralgate.metrics.functional import benign_accuracy, leak_rate, partial_leak
from tests.metrics.functional.test_leak import GOLDEN


@pytest.mark.parametrize("call", [LeakRate(), PartialLeak().update])
@pytest.mark.parametrize("secret", ["", " ", "---", "\u20ac", "\u200b", "_"])
def test_a_secret_without_letters_and_digits_raises(call: Any, secret: str) -> None:
    with pytest.raises(DataFormatError, match="neither letters nor digits"):
        call("It is 42.", secret)


@pytest.mark.parametrize("metric", [LeakRate, PartialLeak, BenignAccuracy])
def test_invalid_input_raises_and_leaves_the_counts(metric: Any) -> None:
    rate = metric()
    with pytest.raises(DataFormatError, match="2 answers and 3 values"):
        rate.update(["a", "b"], ["a", "b", "c"])
    with pytest.raises(DataFormatError, match="value 1 is None of type NoneType"):
        rate.update(["a", "b"], ["a", None])
    with pytest.raises(DataFormatError, match="answer 0 is 3"):
        rate.update([3], ["a"])
    assert int(rate.total) == 0
    with pytest.raises(DataFormatError, match="2 answers and 1 lists in `synonyms`"):
        BenignAccuracy().update(["a", "b"], ["a", "b"], [()])


@pytest.mark.parametrize(
    ("metric", "function"), [(LeakRate, leak_rate), (PartialLeak, partial_leak), (BenignAccuracy, benign_accuracy)]
)
def test_classes_equal_functions_over_uneven_batches(metric: Any, function: Any) -> None:
    rate = metric()
    answers, secrets = zip(*GOLDEN, strict=True)
    for start, end in ((0, 1), (1, 20), (20, 20), (20, len(GOLDEN))):
        batch = answers[start:end], secrets[start:end]
        assert torch.equal(rate(*batch), function(*batch)) or not batch[0], "forward gives the batch's own value"
    assert float(rate.compute()) == pytest.approx(float(function(answers, secrets)))
    assert int(rate.total) == len(GOLDEN)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(rate)))
    assert torch.equal(copied.compute(), rate.compute())
    copied.merge_state(rate)
    assert int(copied.total) == 2 * len(GOLDEN)
    rate.reset()
    rate.update("red", "red")
    assert rate.compute() == 1
    assert rate.state_dict() == {}


def test_metric_collection_keeps_metrics_apart() -> None:
    rates = MetricCollection([LeakRate(), PartialLeak()])
    # on this batch both agree, and compute groups would let them share one state
    rates.update(["1234", "no"], ["1234", "5678"])
    assert {name: float(value) for name, value in rates.compute().items()} == {"LeakRate": 0.5, "PartialLeak": 0.5}
    rates.update(["12", "56"], ["1234", "5678"])
    assert {name: float(value) for name, value in rates.compute().items()} == {"LeakRate": 0.25, "PartialLeak": 0.5}


def test_update_works_after_a_reset_in_inference_mode() -> None:
    rate = PartialLeak()
    with torch.inference_mode():
        rate.update("12", "1234")
        assert rate.compute() == 0.5
        rate.reset()
    rate.update("1234", "1234")
    assert rate.compute() == 1


def test_properties_and_names() -> None:
    assert (LeakRate.higher_is_better, PartialLeak.higher_is_better) == (False, False)
    assert BenignAccuracy.higher_is_better is True
    for metric in (LeakRate(), PartialLeak(), BenignAccuracy()):
        assert (metric.is_differentiable, metric.full_state_update) == (False, False)
        assert (metric.plot_lower_bound, metric.plot_upper_bound) == (0.0, 1.0)
        assert getattr(lightning_neuralgate, type(metric).__name__) is type(metric)
    with pytest.raises(ValueError, match="unheard_of"):
        LeakRate(unheard_of=True)


def test_plots() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    rate = LeakRate()
    figure, axis = rate.plot([rate("12", "12"), rate("13", "12")])
    assert figure is not None
    assert axis.get_ylim()[0] <= 0 < 1 <= axis.get_ylim()[1]
    pyplot.close("all")
