"""Cohen's kappa."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torchmetrics.functional.classification import multiclass_cohen_kappa

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.functional import agreement_between, cohens_kappa


def test_kappa_matches_hand_counts() -> None:
    # agreement on 7 of 10, by chance on 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    first = [True] * 5 + [False] * 5
    second = [True] * 4 + [False] + [True] * 2 + [False] * 3
    assert cohens_kappa(first, second) == pytest.approx((0.4, 0.7, 10))
    assert cohens_kappa(first, first).kappa == 1
    assert cohens_kappa([True, False], [False, True]).kappa == -1
    assert cohens_kappa([True, True, False, False], [True, False, True, False]).kappa == 0


def test_kappa_is_nan_if_chance_agreement_is_one() -> None:
    always = cohens_kappa([False] * 4, [False] * 4)
    assert math.isnan(always.kappa)
    assert always.agreement == 1
    assert cohens_kappa([False] * 4, [True, False, False, False]).kappa == 0
    empty = cohens_kappa([], [])
    assert math.isnan(empty.kappa)
    assert empty.n == 0
    with pytest.raises(DataFormatError, match="1 in `first`, 2 in `second`"):
        cohens_kappa([True], [True, False])


@pytest.mark.parametrize("seed", range(5))
def test_equals_torchmetrics_on_three_classes(seed: int) -> None:
    draw = random.Random(seed)
    first, second = draw.choices(range(3), weights=(5, 3, 1), k=200), draw.choices(range(3), k=200)
    second = [a if draw.random() < 0.4 else b for a, b in zip(first, second, strict=True)]
    expected = multiclass_cohen_kappa(torch.tensor(first), torch.tensor(second), num_classes=3)
    names = ["full_compliance", "partial_refusal", "full_refusal"]
    assert cohens_kappa(
        [names[verdict] for verdict in first], [names[verdict] for verdict in second]
    ).kappa == pytest.approx(float(expected), abs=1e-6)


def test_agreement_between_compares_every_pair() -> None:
    pairs = agreement_between({"a": [1, 0, 1, 0], "b": [1, 0, 0, 0], "c": [1, 0, 1, 0]})
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs["a", "c"].kappa == 1
    assert pairs["a", "b"] == pairs["b", "c"] == (0.5, 0.75, 4)
