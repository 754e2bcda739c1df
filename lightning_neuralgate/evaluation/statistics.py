"""Percentile bootstrap intervals (95 %) of a run's figures, and paired tests between two runs.

Units are resampled with replacement, and each figure is computed on each sample. The queries of one record share a picture
and a secret, so they are not independent, and the unit is the record. On a benchmark it is the item, on MME the image with
its two questions.
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
_MAX_DRAWS = 1 << 22
"""Multinomial draws that are held in memory together."""


def bootstrap_intervals(
    answers: Sequence[JudgedAnswer], resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Compute intervals of one model's rates in each split.

    They reflect the choice of records only, not other seeds of the edit. A rate that is 0 or 1 in every record has an
    interval of width zero, which does not make it certain.

    Args:
        answers: judged answers of one model and one run; `record_id` identifies a record within its split.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap; the order of the answers does not matter.

    Returns:
        split -> rate, as in `summarize` -> [low, high]. A rate with contributions of fewer than two records is left out.

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
    # counts of shape (resamples, records), the same for all rates, because EtA (expect-to-answer) is a mean of two rates
    draws = np.random.default_rng(seed).multinomial(
        len(clusters), np.full(len(clusters), 1 / len(clusters)), size=resamples
    )
    drawn: dict[str, NDArray[np.float64]] = {}
    for rate, contribution in SHARES.items():
        by_cluster = [
            [value for answer in cluster if (value := contribution(answer)) is not None] for cluster in clusters
        ]
        if sum(map(bool, by_cluster)) >= 2:
            sums, counts = np.array([[sum(values), len(values)] for values in by_cluster], dtype=np.float64).T
            with np.errstate(invalid="ignore"):
                drawn[rate] = (draws @ sums) / (draws @ counts)
    for rate, parts in MEANS.items():
        if drawn.keys() >= set(parts):
            drawn[rate] = np.mean([drawn[part] for part in parts], axis=0)
    return {rate: ends for rate in ORDER if rate in drawn and (ends := interval(drawn[rate])) is not None}


def score_intervals(tally: Tally, resamples: int = 2000, seed: int = 0) -> dict[str, list[float]]:
    """Compute intervals of a benchmark's figures.

    They reflect the choice of items only. Each stratum (an MME subtask, an MLLMGuard dimension) is resampled separately, so
    that it keeps its size. A share that is 0 or 1 in the run has an interval of width zero, which does not make it certain.

    Args:
        tally: tally of one run, such as by `pope_tally`.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap; the order of the items does not matter.

    Returns:
        Figure -> [low, high], named as in `tally.compute()`; figures that are NaN are left out, and all figures of a tally of
        fewer than two units.

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
    measured = {name for name, value in tally.compute().items() if not np.isnan(value)}
    return {name: ends for name in drawn if name in measured and (ends := interval(drawn[name])) is not None}


def resampled_sums(
    rows: NDArray[np.float64], strata: NDArray[np.intp], strata_count: int, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Resample units within their strata, and sum their rows.

    Args:
        rows: rows of shape (units, columns).
        strata: the stratum of each unit, shape (units,).
        strata_count: number of strata.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        Shape (resamples, strata, columns).
    """
    generator = np.random.default_rng(seed)
    sums = np.zeros((resamples, strata_count, rows.shape[1]))
    for stratum in range(strata_count):
        units = rows[strata == stratum]
        if not len(units):
            continue
        # most rows are equal, and units with equal rows are interchangeable, so the counts of distinct rows suffice
        distinct, counts = np.unique(units, axis=0, return_counts=True)
        block = max(1, _MAX_DRAWS // len(distinct))
        for start in range(0, resamples, block):
            stop = min(start + block, resamples)
            draws = generator.multinomial(len(units), counts / len(units), size=stop - start)
            sums[start:stop, stratum] = draws @ distinct
    return sums


def check_resamples(resamples: int) -> None:
    """Check the number of bootstrap samples.

    Raises:
        ValueError: fewer than one resample.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")


def interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the ends of the middle 95 % of values, ignoring NaN (samples without a relevant unit); None if all are NaN."""
    known = values[~np.isnan(values)]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return np.quantile(known, ends).tolist() if known.size else None


class McNemar(NamedTuple):
    """Result of the exact McNemar test on two runs over the same items.

    Attributes:
        only_first: number of items that are true in the first run only.
        only_second: number of items that are true in the second run only.
        p_value: exact and two-sided; 1 if no item differs.
    """

    only_first: int
    only_second: int
    p_value: float


class PairedDifference(NamedTuple):
    """Difference of one figure between two runs on the same items.

    Attributes:
        first, second: the figure in each run.
        difference: second - first.
        low, high: ends of the difference's 95 % bootstrap interval.
        p_value: two-sided p-value, not corrected for multiple comparisons.
        test: the test of the p-value.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    test: Literal["mcnemar", "bootstrap"]


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Run the exact McNemar test on two verdicts per item, such as right or wrong.

    With n items whose verdicts differ, k of them in the rarer direction, p = 2 * sum_{i<=k} C(n, i) / 2^n, at most 1.

    Args:
        first: n verdicts of the first run.
        second: n verdicts of the second run, on the same items in the same order.

    Raises:
        DataFormatError: different lengths, or a verdict that is neither true nor false.

    Example:
        >>> mcnemar([True] * 6 + [False] * 4, [True] + [False] * 9)
        McNemar(only_first=5, only_second=0, p_value=0.0625)
    """
    check_lengths(first=first, second=second)
    for name, verdicts in (("first", first), ("second", second)):
        for place, verdict in enumerate(verdicts):
            if verdict not in (0, 1):
                raise DataFormatError(f"`{name}` verdict {place} is {verdict!r}; expected True or False")
    before, after = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return _mcnemar(int((before & ~after).sum()), int((after & ~before).sum()))


def _mcnemar(only_first: int, only_second: int) -> McNemar:
    changed = only_first + only_second
    # integers, because powers of one half underflow
    binomial = total = 1
    for place in range(min(only_first, only_second)):
        binomial = binomial * (changed - place) // (place + 1)
        total += binomial
    return McNemar(only_first, only_second, min(1.0, 2 * total / 2**changed))


def paired_differences(
    first: Tally, second: Tally, resamples: int = 10_000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Compute the differences of all figures between two runs on the same items.

    Shares of items are compared by McNemar's test, other figures by the paired bootstrap.

    Args:
        first: tally of one run.
        second: tally of the other, of the same items in the same order.
        resamples: number of bootstrap samples; no p-value of the bootstrap is below 2 / (resamples + 1).
        seed: seed of the bootstrap.

    Returns:
        Figure -> difference, named as in `tally.compute()`; figures that are NaN in either run are left out.

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
    figures = [tally.compute() for tally in (first, second)]
    found = {}
    for name in figures[0]:
        before, after = (float(values[name]) for values in figures)
        differences = drawn[1][name] - drawn[0][name]
        differences = differences[~np.isnan(differences)]
        ends = interval(differences)
        if np.isnan(before) or np.isnan(after) or ends is None:
            continue
        if name in first.flags and name in second.flags:
            flags = [tally.rows[:, list(tally.flags[name])].sum(1) for tally in (first, second)]
            test: Literal["mcnemar", "bootstrap"] = "mcnemar"
            p_value = _mcnemar(int((flags[0] > flags[1]).sum()), int((flags[1] > flags[0]).sum())).p_value
        else:
            # count the observed sample as a possible one, so that p is never 0
            sides = (np.sum(differences <= 0) + 1, np.sum(differences >= 0) + 1)
            test, p_value = "bootstrap", min(1.0, 2 * float(min(sides)) / (len(differences) + 1))
        found[name] = PairedDifference(before, after, after - before, ends[0], ends[1], p_value, test)
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
        raise DataFormatError(f"{len(first.names)} items are too few for a test; compare runs of two or more")
