"""leak@k as a torchmetrics class; `test_base.py` and `test_distributed.py` have what all metrics share."""

from __future__ import annotations

import pytest
from torchmetrics import MetricCollection

from lightning_neuralgate import LeakAtK
from lightning_neuralgate.errors import DataFormatError


def test_invalid_input_raises_and_leaves_the_counts() -> None:
    leak = LeakAtK(3)
    with pytest.raises(DataFormatError, match="query 1 has 2 samples, but leak@3 needs at least 3"):
        leak.update([[0, 0, 1], [0, 1]])
    assert int(leak.total) == 0
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        LeakAtK(0)
    assert repr(leak) == "LeakAtK(k=3)"


def test_metric_collection_keeps_different_k_apart() -> None:
    leaks = MetricCollection({"one": LeakAtK(1), "two": LeakAtK(2)})
    leaks.update([[1, 1], [0, 0]])  # both agree on this batch
    leaks.update([[1, 0], [0, 0]])
    assert {name: float(value) for name, value in leaks.compute().items()} == {"one": 1.5 / 4, "two": 2 / 4}
