"""leak@k as a torchmetrics class; `metrics.functional.leak_at_k` has the formula and its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from lightning_neuralgate.metrics.base import RateMetric
from lightning_neuralgate.metrics.functional.leak_at_k import _leak_at_k_update


class LeakAtK(RateMetric):
    """leak@k: the expected largest score of k sampled answers to a sensitive query; with scores of 0 and 1, the probability
    that at least one of them leaks.

    As input to `forward` and `update`: `scores`, one list per query. As output of `forward` (this batch) and `compute` (all
    so far): a scalar in [0, 1], NaN over zero queries.

    Args:
        k: number of samples that an attacker draws.
        kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: `k` is below 1.

    Example:
        >>> from lightning_neuralgate.metrics import LeakAtK
        >>> leak = LeakAtK(k=2)
        >>> leak([[0, 0, 0, 1]])  # half of the pairs contain the leak
        tensor(0.5000)
        >>> leak.update([[0, 0, 0, 0]])
        >>> leak.compute()
        tensor(0.2500)
    """

    higher_is_better: bool = False

    def __init__(self, k: int, **kwargs: Any) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        # equal on queries that always or never leak, so each k has states of its own
        super().__init__(f"leak_at_{k}", zero=0.0, **kwargs)
        self.k = k

    @override
    def update(self, scores: Sequence[Sequence[float]]) -> None:
        """Add queries.

        Args:
            scores: for each query the scores of its samples, in [0, 1], such as 1 for a leak and 0 otherwise.

        Raises:
            DataFormatError: a query has fewer than `k` samples, or a score is not in [0, 1]. The state does not change then.
        """
        self._add(*_leak_at_k_update(scores, self.k))

    @override
    def extra_repr(self) -> str:
        return f"k={self.k}"
