"""Metrics of a run, looked up by model, split and metric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lightning_neuralgate.demo.report.formatting import MODEL_NAMES, NOT_MEASURED, SPLIT_NAMES
from lightning_neuralgate.errors import DataFormatError

Place = tuple[str, str, str]  # model, split, metric

COUNT = "n"


class Metric(NamedTuple):
    """Heading of a metric; `better` states the direction of improvement, empty if there is none."""

    label: str
    better: str


METRICS = {
    "rta_sensitive": Metric("RtA on sensitive", "higher is better"),
    "answer_rate_benign": Metric("Answer rate on benign", "higher is better"),
    "eta": Metric("EtA", "higher is better"),
    "leak_rate": Metric("Leak rate", "lower is better"),
    "benign_accuracy": Metric("Benign accuracy", "higher is better"),
    "rta_sensitive_judge": Metric("RtA by second judge", "higher is better"),
    "judge_agreement": Metric("Judges agree", ""),
    COUNT: Metric("Queries", ""),
}
ALWAYS_SHOWN = ("rta_sensitive", "answer_rate_benign", "eta")


class Score(NamedTuple):
    """A value, its standard deviation over seeds and its 95 % interval over records; None where not measured.

    Example:
        >>> str(Score(0.931, 0.02)), str(Score(0.5, None)), str(Score(None, None))
        ('0.93 ± 0.02', '0.50', 'n/a')
    """

    value: float | None
    spread: float | None
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.value is None:
            return NOT_MEASURED
        return f"{self.value:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


class Scores:
    """The metrics in `results`, with models, splits and metrics in a fixed order.

    Args:
        results: results as described in `write_report`.

    Attributes:
        models: models with results.
        splits: splits with results.
        metrics: known metrics with results; EtA and its two parts are always included.
        seeds: seeds of the runs.
        has_intervals: whether there are 95 % intervals.

    Raises:
        DataFormatError: there is no model, a value is not a number, or an interval is not an ordered pair of numbers.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.models = [model for model in MODEL_NAMES if model in results]
        if not self.models:
            raise DataFormatError(f"results: no model to report on; expected one of {', '.join(MODEL_NAMES)}")
        self.seeds = list(results["seeds"] if "seeds" in results else [results["seed"]] if "seed" in results else [])
        self._values = _numbers({model: results[model] for model in self.models}, "results")
        # ignore the spread of a single run: it is 0 in its results, but unknown
        spread = results.get("spread") if len(self.seeds) > 1 else None
        self._spread = _numbers(self._known(spread), "results: spread")
        self._intervals = _intervals(self._known(results.get("intervals")), "results: intervals")
        self.has_intervals = bool(self._intervals)
        found = {split: None for _, split, _ in self._values}
        self.splits = [s for s in SPLIT_NAMES if s in found] + [s for s in found if s not in SPLIT_NAMES]
        measured = {metric for *_, metric in self._values}
        self.metrics = [name for name in METRICS if name in measured or name in ALWAYS_SHOWN]

    def get(self, model: str, split: str, metric: str) -> Score:
        """Return one score; its value is None if it was not measured."""
        place = (model, split, metric)
        return Score(self._values.get(place), self._spread.get(place), self._intervals.get(place))

    def _known(self, by_model: Mapping[str, Any] | None) -> dict[str, Any]:
        return {model: values for model, values in (by_model or {}).items() if model in self.models}


def _numbers(nested: Mapping[str, Any], place: str) -> dict[Place, float | None]:
    return {found: as_number(value, where) for found, value, where in _leaves(nested, place)}


def _intervals(nested: Mapping[str, Any], place: str) -> dict[Place, tuple[float, float]]:
    intervals = {}
    for found, value, where in _leaves(nested, place):
        if value is None:
            continue
        ends = [as_number(end, where) for end in value] if isinstance(value, (list, tuple)) else []
        if len(ends) != 2 or ends[0] is None or ends[1] is None or ends[0] > ends[1]:
            raise DataFormatError(f"{where}: expected [low, high], found {value!r:.80}")
        intervals[found] = (ends[0], ends[1])
    return intervals


def _leaves(nested: Mapping[str, Any], place: str) -> Iterator[tuple[Place, Any, str]]:
    """Yield (model, split, metric), value and location (for messages) of all known metrics."""
    for model, splits in nested.items():
        for split, metrics in _mapping(splits, f"{place}: {model}").items():
            for metric, value in _mapping(metrics, f"{place}: {model}: {split}").items():
                if metric in METRICS:
                    yield (model, split, metric), value, f"{place}: {model}: {split}: {metric}"


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataFormatError(f"{place}: expected a mapping, found {value!r:.80}")
    return value


def as_number(value: Any, place: str) -> float | None:
    """Return a value of the results as a number; None if it is None, NaN or infinite.

    Raises:
        DataFormatError: it is no number; names the place.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataFormatError(f"{place}: expected a number, NaN or None, found {value!r:.80}") from error
    return number if math.isfinite(number) else None
