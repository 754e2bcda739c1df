"""Do two runs on the same items differ, or is it chance: McNemar's test, and the paired bootstrap.

Both runs answered the same questions, so it is the items on which they differ that count. For a share of items (accuracy,
refused) the exact McNemar test asks whether those that changed one way are as many as those that changed the other:

    p = min(1, 2 P(X <= min(b, c))),   X ~ Binomial(b + c, 1/2)

with b items that only the first run has, and c that only the second has. For what is no share of items (F1, MME's points,
ASD) items are drawn again, the same in both runs; p is twice the share of draws in which the difference is not on its side
of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.statistics import check_resamples, interval, resampled_sums
from lightning_neuralgate.metrics.functional.tally import Tally, check_lengths


class McNemar(NamedTuple):
    """How two runs differ on yes/no verdicts of the same items.

    Attributes:
        only_first: items that only the first run has.
        only_second: items that only the second run has.
        p_value: exact and two-sided; 1 where no item differs.
    """

    only_first: int
    only_second: int
    p_value: float


class PairedDifference(NamedTuple):
    """One figure of two runs on the same items.

    Attributes:
        first, second: the figure of each.
        difference: second - first.
        low, high: ends of the difference's 95 % bootstrap interval.
        p_value: that a difference as large comes about by chance; not corrected for the number of figures compared.
        test: where the p-value is from.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    test: Literal["mcnemar", "bootstrap"]


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """The exact McNemar test on two verdicts of each item, such as right or wrong.

    Args:
        first: n verdicts on the first run.
        second: n verdicts on the second run, of the same items in the same order.

    Raises:
        DataFormatError: not as many in both, or a verdict that is neither true nor false.

    Example:
        >>> mcnemar([True] * 6 + [False] * 4, [True] + [False] * 9)
        McNemar(only_first=5, only_second=0, p_value=0.0625)
    """
    check_lengths(first=first, second=second)
    for name, verdicts in (("first", first), ("second", second)):
        for place, verdict in enumerate(verdicts):
            if verdict not in (0, 1):
                raise DataFormatError(f"`{name}` verdict {place} is {verdict!r}; expected True or False")
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return _mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))


def _mcnemar(only_first: int, only_second: int) -> McNemar:
    changed = only_first + only_second
    # in whole numbers, because powers of one half underflow
    term = below = 1
    for place in range(min(only_first, only_second)):
        term = term * (changed - place) // (place + 1)
        below += term
    return McNemar(only_first, only_second, min(1.0, 2 * below / 2**changed))


def paired_differences(
    first: Tally, second: Tally, resamples: int = 10_000, seed: int = 0
) -> dict[str, PairedDifference]:
    """How two runs on the same items differ, figure by figure.

    Args:
        first: the tally of one run.
        second: the tally of the other, of the same items in the same order.
        resamples: how often the items are drawn again; no p-value of the bootstrap is below 2 / (resamples + 1).
        seed: of drawing.

    Returns:
        Figure -> difference, named as in `tally.compute()`; figures that are NaN in one of the runs are left out.

    Raises:
        DataFormatError: the runs are not of the same items, or of fewer than two.
        ValueError: fewer than one resample.

    Example:
        >>> from lightning_neuralgate.metrics.functional import pope_tally
        >>> labels = ["yes"] * 5 + ["no"] * 5
        >>> before, after = pope_tally(["No."] * 10, labels), pope_tally(["Yes."] * 5 + ["No."] * 5, labels)
        >>> found = paired_differences(before, after)["accuracy"]
        >>> found.first, found.second, found.p_value, found.test
        (0.5, 1.0, 0.0625, 'mcnemar')
    """
    check_resamples(resamples)
    _check_same_items(first, second)
    width = first.rows.shape[1]
    sums = resampled_sums(np.hstack([first.rows, second.rows]), first.strata, first.strata_count, resamples, seed)
    drawn = [tally.figures(part) for tally, part in ((first, sums[..., :width]), (second, sums[..., width:]))]
    whole = [tally.compute() for tally in (first, second)]
    found = {}
    for name in whole[0]:
        one, other = (float(figures[name]) for figures in whole)
        differences = drawn[1][name] - drawn[0][name]
        differences = differences[~np.isnan(differences)]
        ends = interval(differences)
        if np.isnan(one) or np.isnan(other) or ends is None:
            continue
        if name in first.flags and name in second.flags:
            had, has = (tally.rows[:, list(tally.flags[name])].sum(1) for tally in (first, second))
            test: Literal["mcnemar", "bootstrap"] = "mcnemar"
            p_value = _mcnemar(int((had > has).sum()), int((has > had).sum())).p_value
        else:
            # the run itself is one of the possible draws, so that p is never 0
            sides = (np.sum(differences <= 0) + 1, np.sum(differences >= 0) + 1)
            test, p_value = "bootstrap", min(1.0, 2 * float(min(sides)) / (len(differences) + 1))
        found[name] = PairedDifference(one, other, other - one, ends[0], ends[1], p_value, test)
    return found


def _check_same_items(first: Tally, second: Tally) -> None:
    same = first.names == second.names and first.rows.shape == second.rows.shape
    if not same or first.strata_count != second.strata_count or not np.array_equal(first.strata, second.strata):
        odd = next((f"'{a}' and '{b}'" for a, b in zip(first.names, second.names, strict=False) if a != b), None)
        raise DataFormatError(
            f"the runs are not of the same items in the same order: {len(first.names)} and {len(second.names)} of them"
            + (f", the first that differ are {odd}" if odd else "")
        )
    if len(first.names) < 2:
        raise DataFormatError(f"{len(first.names)} items say nothing about chance; compare runs of two or more")
