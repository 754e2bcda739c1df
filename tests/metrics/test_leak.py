"""Leak rate, partial leak and benign accuracy as torchmetrics classes."""

from __future__ import annotations

from typing import Any

import pytest
from torchmetrics import MetricCollection

from lightning_neuralgate import BenignAccuracy, LeakRate, PartialLeak
from lightning_neuralgate.errors import DataFormatError


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


def test_metric_collection_keeps_metrics_apart() -> None:
    rates = MetricCollection([LeakRate(), PartialLeak()])
    # on this batch both agree, and compute groups would let them share one state
    rates.update(["1234", "no"], ["1234", "5678"])
    assert {name: float(value) for name, value in rates.compute().items()} == {"LeakRate": 0.5, "PartialLeak": 0.5}
    rates.update(["12", "56"], ["1234", "5678"])
    assert {name: float(value) for name, value in rates.compute().items()} == {"LeakRate": 0.25, "PartialLeak": 0.5}
