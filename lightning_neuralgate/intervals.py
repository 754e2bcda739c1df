"""How far the rates of a run may be off by the choice of its records: 95 % intervals by the cluster bootstrap.

The queries of one record share a picture and a secret, so they are not independent. Whole records are drawn again, with
replacement, and each rate is computed anew; the interval holds the middle 95 % of what comes out (percentile bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_neuralgate.answers import Answer
from lightning_neuralgate.rates import MEANS, ORDER, SHARES, by_split

LEVEL = 0.95


def bootstrap_intervals(
    answers: Sequence[Answer], resamples: int = 2000, seed: int = 0
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
        >>> common = {"model": "gated", "split": "test", "subject": "passport", "image": "0.png", "attribute": "",
        ...           "query": "", "answer": "", "truth": None, "sensitive": True}
        >>> rows = [Answer(**common, record_id=str(index), refused=index % 4 > 0) for index in range(40)]
        >>> bootstrap_intervals(rows)
        {'test': {'rta_sensitive': [0.6, 0.875]}}
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    return {split: _intervals(rows, resamples, seed) for split, rows in by_split(answers).items()}


def _intervals(answers: Sequence[Answer], resamples: int, seed: int) -> dict[str, list[float]]:
    records: dict[str, list[Answer]] = {}
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
    # a draw that holds no record which counts towards a rate says nothing about it
    known = {rate: drawn[rate][~np.isnan(drawn[rate])] for rate in ORDER if rate in drawn}
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {rate: np.quantile(values, ends).tolist() for rate, values in known.items() if values.size}
