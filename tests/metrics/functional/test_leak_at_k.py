"""leak@k against counts by hand and against all subsets."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean

import pytest

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import graded_leak_at_k, leak_at_k

# (counts, n, k) -> leak@k
GOLDEN = {
    ((0,), 16, 16): 0.0,
    ((16,), 16, 1): 1.0,
    ((1,), 16, 1): 1 / 16,
    ((1,), 16, 4): 4 / 16,
    ((1,), 16, 16): 1.0,
    ((2,), 5, 3): 1 - 1 / 10,
    ((3,), 5, 3): 1.0,  # any 3 of 5 contain one of 3
    ((0, 2, 4), 4, 2): (0 + (1 - 1 / 6) + 1) / 3,
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case: tuple[tuple[int, ...], int, int]) -> None:
    counts, samples, k = case
    assert float(leak_at_k(counts, samples, k)) == pytest.approx(GOLDEN[case])
    flags = [[1.0] * count + [0.0] * (samples - count) for count in counts]
    assert float(graded_leak_at_k(flags, k)) == pytest.approx(GOLDEN[case])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_graded_leak_is_the_mean_of_the_largest_score_over_all_subsets(k: int) -> None:
    scores = [[0.25, 1.0, 0.25, 0.0, 0.75], [0.5, 0.5, 0.5, 0.5, 0.5, 0.1]]
    expected = fmean(fmean(map(max, combinations(values, k))) for values in scores)
    assert float(graded_leak_at_k(scores, k)) == pytest.approx(expected)


def test_nothing_measured_is_nan() -> None:
    assert math.isnan(leak_at_k([], 4, 2))
    assert math.isnan(graded_leak_at_k([], 2))


def test_invalid_input_is_named() -> None:
    with pytest.raises(DataFormatError, match="query 0 has 4 samples, but leak@5 needs at least 5"):
        leak_at_k([1], 4, 5)
    with pytest.raises(DataFormatError, match="query 1 has 1 samples, but leak@2"):
        graded_leak_at_k([[0, 1], [1]], 2)
    with pytest.raises(DataFormatError, match="query 1 has 5 leaking samples; expected 0 to 4"):
        leak_at_k([0, 5], 4, 2)
    with pytest.raises(DataFormatError, match="query 0 has the scores"):
        graded_leak_at_k([[0.0, math.nan]], 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        leak_at_k([0], 4, 0)
