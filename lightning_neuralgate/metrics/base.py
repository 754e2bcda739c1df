"""Base classes of the metrics: one rate over answers, or a dict of benchmark figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE
from typing_extensions import override

from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _keyword_judge, _rate_compute
from lightning_neuralgate.metrics.functional.tally import Figures, Tally


class PlottableMetric(Metric):
    """A metric that can plot its values."""

    is_differentiable: bool = False
    full_state_update: bool = False

    def _add_to_state(self, name: str, value: Tensor) -> None:
        # Not in place: a reset during validation leaves inference tensors, which cannot be written to afterwards.
        setattr(self, name, getattr(self, name) + value.to(self.device))

    @override
    def plot(self, val: Any | Sequence[Any] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot a single value or several.

        Args:
            val: result of `forward` or `compute`, or a list of such results; `compute` is called when left out.
            ax: matplotlib axis to draw on.

        Returns:
            Figure and axis.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)


class RateMetric(PlottableMetric):
    """A count divided by the number of answers, both summed over batches and processes.

    Args:
        count_name: name of the count's state. A `MetricCollection` merges metrics for good if their states are equal after
            the first batch, so metrics that may agree on a batch need different names.
        zero: initial count; sets its dtype.
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
        self._add_to_state(self._count_name, count)
        self._add_to_state("total", total)

    @override
    def compute(self) -> Tensor:
        """Return the rate over all answers so far, a scalar; NaN over zero answers."""
        return _rate_compute(getattr(self, self._count_name), self.total)


class BenchmarkMetric(PlottableMetric):
    """A benchmark's figures as a dict of scalars.

    Lightning resets only metrics that return a single scalar, so in `on_validation_epoch_end` of a LightningModule:

        self.log_dict(self.pope.compute())
        self.pope.reset()

    Args:
        variant: keyword list that defines a refusal, see `metrics.functional.is_refusal`.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better: bool | None = None
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    def __init__(self, variant: RefusalVariant = "prefix", **kwargs: Any) -> None:
        _keyword_judge(variant)
        super().__init__(**kwargs)
        self.variant: RefusalVariant = variant

    @override
    def extra_repr(self) -> str:
        return f"variant={self.variant!r}"


class TallyMetric(BenchmarkMetric):
    """A benchmark whose figures are functions of column sums over its items.

    Args:
        name: name of the sums' state; as for `RateMetric`, different for metrics that may agree on a batch.
        zeros: initial sums, shape (strata, columns).
        figures: function from the sums to the figures.
        variant: keyword list that defines a refusal.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    def __init__(
        self, name: str, zeros: Tensor, figures: Figures, variant: RefusalVariant = "prefix", **kwargs: Any
    ) -> None:
        super().__init__(variant, **kwargs)
        self._sums_name = f"{name}_{variant}"
        self._figures = figures
        self.add_state(self._sums_name, zeros, dist_reduce_fx="sum")

    def _add(self, tally: Tally) -> None:
        # cast before the move to the device, which may lack float64
        self._add_to_state(self._sums_name, torch.from_numpy(tally.sums()).to(getattr(self, self._sums_name).dtype))

    @override
    def compute(self) -> dict[str, Tensor]:
        """Return the figures so far, scalars by name; NaN where nothing was measured."""
        sums = getattr(self, self._sums_name).cpu().double().numpy()
        return {
            name: torch.tensor(float(value), device=self.device, dtype=torch.float32)
            for name, value in self._figures(sums).items()
        }
