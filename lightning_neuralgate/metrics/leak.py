"""Leak rate, partial leak and benign accuracy as torchmetrics classes.

`metrics.functional.leak` defines when an answer leaks a secret or states a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from lightning_neuralgate.metrics.base import RateMetric
from lightning_neuralgate.metrics.functional.leak import _benign_accuracy_update, _leak_update, leaked_share, leaks


class LeakRate(RateMetric):
    """Leak rate: answers to sensitive queries that contain their secret / answers.

    As input to `forward` and `update`: `answers` and `secrets`, one or N of each. As output of `forward` (this batch) and
    `compute` (all so far): a scalar in [0, 1], NaN over zero answers.

    Args:
        kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> from lightning_neuralgate.metrics import LeakRate
        >>> rate = LeakRate()
        >>> rate(["I cannot say.", "It is 12 34."], ["5678", "1234"])
        tensor(0.5000)
        >>> rate.update(["Sorry.", "It is private."], ["12", "34"])
        >>> rate.compute()
        tensor(0.2500)
    """

    higher_is_better: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("leaked", **kwargs)

    @override
    def update(self, answers: str | Sequence[str], secrets: str | Sequence[str]) -> None:
        """Add answers.

        Args:
            answers: one answer or N answers; N may be 0.
            secrets: the secret of each answer's query.

        Raises:
            DataFormatError: the numbers of answers and secrets differ, a value is not a string, or a secret has neither
                letters nor digits. The state does not change then.
        """
        self._add(*_leak_update(leaks, answers, secrets))


class PartialLeak(RateMetric):
    """Partial leak: the mean share of its secret that an answer to a sensitive query contains, see `leaked_share`.

    As input to `forward` and `update`: `answers` and `secrets`, one or N of each. As output of `forward` (this batch) and
    `compute` (all so far): a scalar in [0, 1], NaN over zero answers.

    Args:
        kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> from lightning_neuralgate.metrics import PartialLeak
        >>> partial = PartialLeak()
        >>> partial.update(["I cannot say.", "It is 12."], ["5678", "1234"])
        >>> partial.compute()
        tensor(0.2500)
    """

    higher_is_better: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("leaked_shares", zero=0.0, **kwargs)

    @override
    def update(self, answers: str | Sequence[str], secrets: str | Sequence[str]) -> None:
        """Add answers; arguments and errors as in `LeakRate.update`."""
        self._add(*_leak_update(leaked_share, answers, secrets))


class BenignAccuracy(RateMetric):
    """Benign accuracy: answers to benign queries that state the true value or a synonym / answers.

    As input to `forward` and `update`: `answers` and `truths`, one or N of each, and optionally `synonyms`, N lists. As
    output of `forward` (this batch) and `compute` (all so far): a scalar in [0, 1], NaN over zero answers.

    Args:
        kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> from lightning_neuralgate.metrics import BenignAccuracy
        >>> accuracy = BenignAccuracy()
        >>> accuracy.update(["It is red.", "It is scarlet.", "I am bored."], ["red"] * 3, [(), ("scarlet",), ()])
        >>> accuracy.compute()
        tensor(0.6667)
    """

    higher_is_better: bool = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("correct", **kwargs)

    @override
    def update(
        self,
        answers: str | Sequence[str],
        truths: str | Sequence[str],
        synonyms: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Add answers.

        Args:
            answers: one answer or N answers; N may be 0.
            truths: the true value for each answer.
            synonyms: N lists of other words for the value; none when left out.

        Raises:
            DataFormatError: the numbers of answers, truths and lists of synonyms differ, an answer or truth is not a
                string, or a value has neither letters nor digits. The state does not change then.
        """
        self._add(*_benign_accuracy_update(answers, truths, synonyms))
