"""A torchmetrics class with the documented `plot` that torchmetrics leaves to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE
from typing_extensions import override


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
