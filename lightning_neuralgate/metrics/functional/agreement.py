"""How far two judges agree beyond chance: Cohen's kappa.

    kappa = (p_o - p_e) / (1 - p_e)

with p_o the share of items on which they agree, and p_e the share on which two judges with these frequencies of verdicts
would agree by chance (Cohen 1960). 1 is full agreement, 0 what chance gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from lightning_neuralgate.metrics.functional.tally import check_lengths


class Agreement(NamedTuple):
    """Agreement of two judges.

    Attributes:
        kappa: Cohen's kappa, at most 1; NaN without items, and where both judges gave one and the same verdict throughout,
            which chance would have done as well.
        agreement: share of items with equal verdicts; NaN without items.
        n: number of items.
    """

    kappa: float
    agreement: float
    n: int


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """Cohen's kappa of two judges over the same items.

    Args:
        first: n verdicts of one judge: true or false, or names of classes.
        second: n verdicts of the other, on the same items in the same order.

    Raises:
        DataFormatError: not as many in both.

    Example:
        >>> cohens_kappa([True, True, False, False], [True, False, False, False])
        Agreement(kappa=0.5, agreement=0.75, n=4)
    """
    n = check_lengths(first=first, second=second)
    if n == 0:
        return Agreement(math.nan, math.nan, 0)
    equal = sum(one == other for one, other in zip(first, second, strict=True))
    often, also = Counter(first), Counter(second)
    # in whole numbers, so that judges who agree by chance alone get exactly 0
    by_chance = sum(count * also[verdict] for verdict, count in often.items())
    kappa = (equal * n - by_chance) / (n * n - by_chance) if by_chance < n * n else math.nan
    return Agreement(kappa, equal / n, n)


def agreement_between(verdicts: Mapping[str, Sequence[Hashable]]) -> dict[tuple[str, str], Agreement]:
    """Cohen's kappa of every two judges.

    Args:
        verdicts: judge -> its verdicts on the same items in the same order.

    Raises:
        DataFormatError: not as many verdicts of each.

    Example:
        >>> found = agreement_between({"prefix": [True, False], "gcg": [True, False], "judge": [False, True]})
        >>> found["prefix", "gcg"].kappa, found["gcg", "judge"].kappa
        (1.0, -1.0)
    """
    return {(one, other): cohens_kappa(verdicts[one], verdicts[other]) for one, other in combinations(verdicts, 2)}
