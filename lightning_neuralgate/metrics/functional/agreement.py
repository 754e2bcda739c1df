"""Cohen's kappa: agreement of two judges beyond chance.

    kappa = (p_o - p_e) / (1 - p_e)

with p_o the share of items on which they agree, and p_e the share on which independent judges with the same frequencies of
verdicts would agree (Cohen 1960). 1 is full agreement, 0 is agreement by chance.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from lightning_neuralgate.metrics.functional.tally import check_lengths


class Agreement(NamedTuple):
    """Agreement of two judges.

    Attributes:
        kappa: Cohen's kappa, at most 1; NaN over zero items, and if both judges gave the same single verdict throughout,
            where p_e is 1.
        agreement: share of items with equal verdicts; NaN over zero items.
        n: number of items.
    """

    kappa: float
    agreement: float
    n: int


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """Compute Cohen's kappa of two judges over the same items.

    Args:
        first: n verdicts of one judge, booleans or class names.
        second: n verdicts of the other judge, on the same items in the same order.

    Raises:
        DataFormatError: the numbers of verdicts differ.

    Example:
        >>> cohens_kappa([True, True, False, False], [True, False, False, False])
        Agreement(kappa=0.5, agreement=0.75, n=4)
    """
    n = check_lengths(first=first, second=second)
    if n == 0:
        return Agreement(math.nan, math.nan, 0)
    equal = sum(map(operator.eq, first, second))
    first_counts, second_counts = Counter(first), Counter(second)
    # integers, so that agreement by chance gives exactly 0
    by_chance = sum(count * second_counts[verdict] for verdict, count in first_counts.items())
    kappa = (equal * n - by_chance) / (n * n - by_chance) if by_chance < n * n else math.nan
    return Agreement(kappa, equal / n, n)


def agreement_between(verdicts: Mapping[str, Sequence[Hashable]]) -> dict[tuple[str, str], Agreement]:
    """Compute Cohen's kappa of every pair of judges.

    Args:
        verdicts: judge -> its verdicts, on the same items in the same order.

    Raises:
        DataFormatError: the numbers of verdicts differ.

    Example:
        >>> pairs = agreement_between({"prefix": [True, False], "gcg": [True, False], "judge": [False, True]})
        >>> pairs["prefix", "gcg"].kappa, pairs["gcg", "judge"].kappa
        (1.0, -1.0)
    """
    return {(a, b): cohens_kappa(verdicts[a], verdicts[b]) for a, b in combinations(verdicts, 2)}
