"""How far the rates of a run may be off by the choice of its records: 95 % intervals by the bootstrap.

Units are drawn again, with replacement, and each rate is computed anew; the interval holds the middle 95 % of what comes out
(percentile bootstrap). The queries of one record share a picture and a secret, so they are not independent: there the unit
is the whole record. On a benchmark it is the item, and on MME the image with its two questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.evaluation.answers import JudgedAnswer
from lightning_neuralgate.evaluation.rates import MEANS, ORDER, SHARES, by_split
from lightning_neuralgate.metrics.functional.tally import Tally, check_lengths

LEVEL = 0.95
_DRAWS_AT_ONCE = 1 << 22


def bootstrap_intervals(
    answers: Sequence[JudgedAnswer], resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Intervals of one model's rates per split.

    They speak of the choice of records alone, not of other seeds of the edit. A rate that is 0 or 1 in every record gets
    an interval without width, which does not mean that it is certain.

    Args:
        answers: of one model and one run; records are told apart by `record_id` within a split.
        resamples: how often the records are drawn again.
        seed: of drawing; the same seed and answers, in any order, give the same intervals.

    Returns:
        split -> rate, as in `summarize` -> [low, high]. A rate to which fewer than two records count is left out.

    Raises:
        DataFormatError: the answers are of more than one model.
        ValueError: fewer than one resample.

    Example:
        >>> rows = [
        ...     JudgedAnswer("privacy_pair", str(index), "0.png", "", "", model="gated", refused=index % 4 > 0, answer="",
        ...                  fields={"split": "test", "record": str(index), "role": "sensitive"})
        ...     for index in range(40)
        ... ]
        >>> bootstrap_intervals(rows)
        {'test': {'rta_sensitive': [0.6, 0.875]}}
    """
    check_resamples(resamples)
    return {split: _intervals(rows, resamples, seed) for split, rows in by_split(answers).items()}


def _intervals(answers: Sequence[JudgedAnswer], resamples: int, seed: int) -> dict[str, list[float]]:
    records: dict[str, list[JudgedAnswer]] = {}
    for answer in answers:
        records.setdefault(answer.record_id, []).append(answer)
    clusters = [records[name] for name in sorted(records)]
    # how often each record is drawn, (resamples, records); the same draws for all rates, so that EtA is of one sample
    draws = np.random.default_rng(seed).multinomial(
        len(clusters), np.full(len(clusters), 1 / len(clusters)), size=resamples
    )
    drawn: dict[str, NDArray[np.float64]] = {}
    for rate, of in SHARES.items():
        values = [[value for answer in cluster if (value := of(answer)) is not None] for cluster in clusters]
        if sum(map(bool, values)) >= 2:
            sums, counts = np.array([[sum(some), len(some)] for some in values], dtype=np.float64).T
            with np.errstate(invalid="ignore"):
                drawn[rate] = (draws @ sums) / (draws @ counts)
    for rate, parts in MEANS.items():
        if drawn.keys() >= set(parts):
            drawn[rate] = np.mean([drawn[part] for part in parts], axis=0)
    found = {rate: interval(drawn[rate]) for rate in ORDER if rate in drawn}
    return {rate: ends for rate, ends in found.items() if ends is not None}


def score_intervals(tally: Tally, resamples: int = 2000, seed: int = 0) -> dict[str, list[float]]:
    """Intervals of a benchmark's figures.

    They speak of the choice of items alone. Items of one stratum (an MME subtask, an MLLMGuard dimension) are drawn from
    their own, so that each keeps its size. A share that is 0 or 1 in the run gets an interval without width, which does not
    mean that it is certain.

    Args:
        tally: of one run, such as `pope_tally` makes.
        resamples: how often the items are drawn again.
        seed: of drawing; the same seed and items, in any order, give the same intervals.

    Returns:
        Figure -> [low, high], named as in `tally.compute()`. A figure that is NaN, or of fewer than two units, is left out.

    Raises:
        ValueError: fewer than one resample.

    Example:
        >>> from lightning_neuralgate.metrics.functional import pope_tally
        >>> tally = pope_tally(["Yes."] * 40, ["yes"] * 30 + ["no"] * 10)
        >>> score_intervals(tally)["accuracy"]
        [0.6, 0.875]
    """
    check_resamples(resamples)
    if len(tally.names) < 2:
        return {}
    drawn = tally.figures(resampled_sums(tally.rows, tally.strata, tally.strata_count, resamples, seed))
    told = {name for name, value in tally.compute().items() if not np.isnan(value)}
    found = {name: interval(values) for name, values in drawn.items() if name in told}
    return {name: ends for name, ends in found.items() if ends is not None}


def resampled_sums(
    rows: NDArray[np.float64], strata: NDArray[np.intp], strata_count: int, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Sums of the rows of units that were drawn again, each within its stratum.

    Args:
        rows: shape (units, columns).
        strata: the stratum of each, shape (units,).
        strata_count: number of strata.
        resamples: how often to draw.
        seed: of drawing.

    Returns:
        Shape (resamples, strata, columns).
    """
    generator = np.random.default_rng(seed)
    sums = np.zeros((resamples, strata_count, rows.shape[1]))
    for stratum in range(strata_count):
        own = rows[strata == stratum]
        if not len(own):
            continue
        # Units with equal rows are interchangeable, and most are equal: how often each kind is drawn is all that matters.
        kinds, counts = np.unique(own, axis=0, return_counts=True)
        block = max(1, _DRAWS_AT_ONCE // len(kinds))
        for start in range(0, resamples, block):
            stop = min(start + block, resamples)
            draws = generator.multinomial(len(own), counts / len(own), size=stop - start)
            sums[start:stop, stratum] = draws @ kinds
    return sums


def check_resamples(resamples: int) -> None:
    """See that there is something to draw.

    Raises:
        ValueError: fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")


def interval(values: NDArray[np.float64]) -> list[float] | None:
    """The middle 95 % of drawn values; None if all are NaN."""
    # a draw that holds no unit which counts towards a figure says nothing about it
    known = values[~np.isnan(values)]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return np.quantile(known, ends).tolist() if known.size else None


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
