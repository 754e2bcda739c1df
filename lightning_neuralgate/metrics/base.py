"""What the benchmark metrics have in common: sums over items that add up over batches and processes, and figures of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE
from typing_extensions import override

from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _judge, _rate_compute
from lightning_neuralgate.metrics.functional.tally import Figures, Tally


class PlottedMetric(Metric):
    """A metric that can draw its values."""

    is_differentiable: bool = False
    full_state_update: bool = False

    @override
    def plot(self, val: Any | Sequence[Any] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot one value or several.

        Args:
            val: what `forward` or `compute` returned, or a list of such values; computed now when left out.
            ax: the matplotlib axis to draw on.

        Returns:
            Figure and axis.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)


class BenchmarkMetric(PlottedMetric):
    """Figures of a benchmark as a dict of scalars.

    In a LightningModule's `on_validation_epoch_end`, because Lightning resets only metrics of one scalar by itself:

        self.log_dict(self.pope.compute())
        self.pope.reset()

    Args:
        variant: the keyword list that says what a refusal is, see `metrics.functional.is_refusal`.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better: bool | None = None
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    def __init__(self, variant: RefusalVariant = "prefix", **kwargs: Any) -> None:
        _judge(variant)
        super().__init__(**kwargs)
        self.variant: RefusalVariant = variant

    @override
    def extra_repr(self) -> str:
        return f"variant={self.variant!r}"


class SummedMetric(BenchmarkMetric):
    """A benchmark whose figures need no more than the items' sums.

    Args:
        name: of the sums' state. A MetricCollection lets metrics whose states look alike after the first batch share one
            state for good, so two metrics that may agree on a batch must not use the same name.
        zeros: what the sums start from, shape (strata, columns).
        figures: what the figures are, given the sums.
        variant: the keyword list that says what a refusal is.
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
        sums: Tensor = getattr(self, self._sums_name)
        # the type before the device, which may have no float64
        more = torch.from_numpy(tally.sums()).to(sums.dtype).to(sums.device)
        # Not in place: a reset during validation leaves inference tensors, which may not be written to afterwards.
        setattr(self, self._sums_name, sums + more)

    @override
    def compute(self) -> dict[str, Tensor]:
        """The figures so far, scalars by name; NaN where nothing was measured."""
        sums = getattr(self, self._sums_name).cpu().double().numpy()
        return {
            name: torch.tensor(float(value), device=self.device, dtype=torch.float32)
            for name, value in self._figures(sums).items()
        }


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
