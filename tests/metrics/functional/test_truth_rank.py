"""Rank, percentile and exposure of a true value, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import truth_rank

# (truth, decoys) -> rank, percentile
GOLDEN = {
    (0.5, (1, 2, 3)): (1, 1.0),
    (9, (1, 2, 3)): (4, 0.0),
    (2.5, (1, 2, 3)): (3, 1 / 3),
    (2, (1, 2, 3)): (2.5, 0.5),  # a tie counts as half
    (2, (2, 2, 2, 2)): (3, 0.5),  # a model without any preference
    (math.inf, (1, math.inf)): (2.5, 0.25),
    (1, (2,)): (1, 1.0),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case: tuple[float, tuple[float, ...]]) -> None:
    truth, decoys = case
    scores = truth_rank(truth, decoys)
    assert scores[:2] == pytest.approx(GOLDEN[case])
    assert scores.exposure == pytest.approx(math.log2((len(decoys) + 1) / scores.rank))
    assert truth_rank(truth, torch.tensor(decoys)) == scores


def test_exposure_goes_from_0_to_the_logarithm_of_the_number_of_values() -> None:
    assert truth_rank(-1, range(127)).exposure == 7
    assert truth_rank(200, range(127)).exposure == 0


def test_invalid_input_is_named() -> None:
    with pytest.raises(DataFormatError, match="no decoys"):
        truth_rank(1, [])
    for truth, decoys in ((math.nan, [1.0]), (1.0, [2.0, math.nan])):
        with pytest.raises(DataFormatError, match="not a number"):
            truth_rank(truth, decoys)
