"""What the benchmark metrics have in common: sums over items that add up over batches and processes, and figures of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_neuralgate.metrics.functional.refusal import RefusalVariant, _judge
from lightning_neuralgate.metrics.functional.tally import Figures, Tally
from lightning_neuralgate.metrics.plotted import PlottedMetric


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
