"""Truth rank as a torchmetrics class; `test_base.py` and `test_distributed.py` have what all metrics share."""

from __future__ import annotations

import pytest
import torch

from lightning_neuralgate import TruthRank
from lightning_neuralgate.errors import DataFormatError


def test_tensors_and_lists_of_different_length() -> None:
    rank = TruthRank()
    rank.update(torch.tensor([1.0, 5.0]), [torch.tensor([2.0, 3.0]), [5.0]])
    values = {name: float(value) for name, value in rank.compute().items()}
    assert values == pytest.approx({"auc": (1 + 0.5) / 2, "exposure": (1.584963 + 0.415037) / 2})
    assert rank.higher_is_better is False


def test_invalid_input_raises_and_leaves_the_counts() -> None:
    rank = TruthRank()
    with pytest.raises(DataFormatError, match="2 true values and 1 lists of decoys"):
        rank.update([1, 2], [[1]])
    with pytest.raises(DataFormatError, match="no decoys"):
        rank.update([1, 2], [[1], []])
    assert int(rank.secrets) == 0


def test_plots() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    rank = TruthRank()
    rank.update([1], [[2, 3]])
    figure, axis = rank.plot()
    assert figure is not None
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"auc", "exposure"}
    pyplot.close("all")
