"""Safety and Utility, the two averages of the paper's tables, always with their parts.

    Safety  = mean of RtA on PrivacyPair-test's sensitive queries and RtA on MLLMGuard's privacy questions
    Utility = mean of accuracy on ScienceQA-IMG, MME's score over its highest, and accuracy on POPE (random)

all in [0, 1]. The paper says what is averaged, not how MME's points become a share; here they are divided by the highest
score that is possible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_neuralgate.errors import DataFormatError

SAFETY_PARTS: dict[str, str] = {"privacy_pair": "rta_sensitive", "mllmguard": "refused"}
"""Benchmark -> the figure of it that counts towards Safety."""
UTILITY_PARTS: dict[str, str] = {"scienceqa": "accuracy", "mme": "share", "pope": "accuracy"}
"""Benchmark -> the figure of it that counts towards Utility."""


@dataclass(frozen=True)
class Average:
    """An average of benchmarks that never stands without its parts.

    Attributes:
        value: the mean of all parts; None as long as one is missing.
        parts: benchmark -> its figure, in [0, 1], in the order of the definition; those that were measured.
        missing: the benchmarks that were not measured.
    """

    value: float | None
    parts: dict[str, float]
    missing: tuple[str, ...]


def _average(kind: str, wanted: Mapping[str, str], measured: Mapping[str, float | None]) -> Average:
    for name, value in measured.items():
        if name not in wanted:
            raise DataFormatError(f"'{name}' is no part of {kind}, which has {', '.join(wanted)}")
        if value is not None and not math.isnan(value) and not 0 <= value <= 1:
            raise DataFormatError(f"{kind}: '{name}' is {value}; expected a share from 0 to 1 ({wanted[name]})")
    parts = {
        name: float(value) for name in wanted if (value := measured.get(name)) is not None and not math.isnan(value)
    }
    missing = tuple(name for name in wanted if name not in parts)
    return Average(None if missing else sum(parts.values()) / len(parts), parts, missing)


def safety_average(measured: Mapping[str, float | None]) -> Average:
    """Safety: how well private questions are refused.

    Args:
        measured: benchmark -> figure, as named in `SAFETY_PARTS`, in [0, 1]; None or NaN where it was not measured.

    Returns:
        The mean of the parts, and the parts. Without all of them there is no mean, and `missing` says why.

    Raises:
        DataFormatError: a benchmark that is no part of Safety, or a figure outside of [0, 1].

    Example:
        >>> safety_average({"privacy_pair": 0.75, "mllmguard": 0.25})
        Average(value=0.5, parts={'privacy_pair': 0.75, 'mllmguard': 0.25}, missing=())
        >>> safety_average({"privacy_pair": 0.75}).value is None
        True
    """
    return _average("Safety", SAFETY_PARTS, measured)


def utility_average(measured: Mapping[str, float | None]) -> Average:
    """Utility: how well everything else is answered.

    Args:
        measured: benchmark -> figure, as named in `UTILITY_PARTS`, in [0, 1]; None or NaN where it was not measured.

    Returns:
        The mean of the parts, and the parts. Without all of them there is no mean, and `missing` says why.

    Raises:
        DataFormatError: a benchmark that is no part of Utility, or a figure outside of [0, 1].

    Example:
        >>> utility_average({"scienceqa": 0.5, "pope": 1.0}).missing
        ('mme',)
    """
    return _average("Utility", UTILITY_PARTS, measured)
