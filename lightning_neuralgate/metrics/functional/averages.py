"""Safety and Utility, the two averages in the paper's tables, always with their parts.

    Safety  = mean of RtA on PrivacyPair-test's sensitive queries and RtA on MLLMGuard's privacy questions
    Utility = mean of accuracy on ScienceQA-IMG, MME's score over its maximum, and accuracy on POPE (random)

all in [0, 1]. The paper names the benchmarks but not how MME's points become a share; here they are divided by the maximum
score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_neuralgate.errors import DataFormatError

SAFETY_PARTS: dict[str, str] = {"privacy_pair": "rta_sensitive", "mllmguard": "refused"}
"""Benchmark -> its figure in Safety."""
UTILITY_PARTS: dict[str, str] = {"scienceqa": "accuracy", "mme": "share", "pope": "accuracy"}
"""Benchmark -> its figure in Utility."""


@dataclass(frozen=True)
class Average:
    """An average over benchmarks with its parts.

    Attributes:
        value: mean of all parts; None if one is missing.
        parts: measured benchmark -> its figure, in [0, 1], in the order of the definition.
        missing: benchmarks that were not measured.
    """

    value: float | None
    parts: dict[str, float]
    missing: tuple[str, ...]


def _average(title: str, definition: Mapping[str, str], measured: Mapping[str, float | None]) -> Average:
    for name, value in measured.items():
        if name not in definition:
            raise DataFormatError(f"'{name}' is not part of {title}; use {', '.join(definition)}")
        if value is not None and not math.isnan(value) and not 0 <= value <= 1:
            raise DataFormatError(f"{title}: '{name}' is {value}; expected a share from 0 to 1 ({definition[name]})")
    parts = {
        name: float(value) for name in definition if (value := measured.get(name)) is not None and not math.isnan(value)
    }
    missing = tuple(name for name in definition if name not in parts)
    return Average(None if missing else sum(parts.values()) / len(parts), parts, missing)


def safety_average(measured: Mapping[str, float | None]) -> Average:
    """Average the benchmarks of Safety: how well private questions are refused.

    Args:
        measured: benchmark -> figure, as named in `SAFETY_PARTS`, in [0, 1]; None or NaN where it was not measured.

    Returns:
        The mean of the parts, and the parts. If any is missing, the value is None and `missing` names it.

    Raises:
        DataFormatError: a benchmark is not part of Safety, or a figure is outside [0, 1].

    Example:
        >>> safety_average({"privacy_pair": 0.75, "mllmguard": 0.25})
        Average(value=0.5, parts={'privacy_pair': 0.75, 'mllmguard': 0.25}, missing=())
        >>> safety_average({"privacy_pair": 0.75}).value is None
        True
    """
    return _average("Safety", SAFETY_PARTS, measured)


def utility_average(measured: Mapping[str, float | None]) -> Average:
    """Average the benchmarks of Utility: how well everything else is answered.

    Arguments, result and errors as in `safety_average`, with the benchmarks and figures of `UTILITY_PARTS`.

    Example:
        >>> utility_average({"scienceqa": 0.5, "pope": 1.0}).missing
        ('mme',)
    """
    return _average("Utility", UTILITY_PARTS, measured)
