"""The base of all rates here: something counted in answers, over the number of answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_neuralgate.metrics.functional.refusal import _rate_compute
from lightning_neuralgate.metrics.plotted import PlottedMetric


class ShareOfAnswers(PlottedMetric):
    """A count over a number of answers, both summed over batches and processes.

    Args:
        count_name: name of the count's state. A MetricCollection lets metrics whose states look alike after the first
            batch share one state for good, so two metrics that may agree on a batch must not use the same name.
        zero: what the count starts from; its type is the count's.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    total: Tensor

    def __init__(self, count_name: str, zero: float = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._count_name = count_name
        self.add_state(count_name, torch.tensor(zero), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, count: Tensor, total: Tensor) -> None:
        # Not in place: a reset during validation leaves inference tensors, which may not be written to afterwards.
        setattr(self, self._count_name, getattr(self, self._count_name) + count.to(self.device))
        self.total = self.total + total.to(self.device)

    @override
    def compute(self) -> Tensor:
        """The share so far, a scalar; NaN over zero answers."""
        return _rate_compute(getattr(self, self._count_name), self.total)
