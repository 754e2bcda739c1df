"""MLLMGuard as a torchmetrics class. The protocol stands in `metrics.functional.mllmguard`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from typing_extensions import override

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.base import SummedMetric
from lightning_neuralgate.metrics.functional.mllmguard import (
    MLLMGUARD_COLUMNS,
    MLLMGUARD_DIMENSIONS,
    mllmguard_figures,
    mllmguard_tally,
)
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant


class MLLMGuard(SummedMetric):
    """MLLMGuard's ASD and PAR from a judge's scores, with the refused and the unparsed share beside them.

    As input to `forward` and `update`: `scores`, `dimensions` and, for the share of refusals, `answers`, N of each. As output
    of `forward` (this batch) and `compute` (all so far): a dict of scalars: `asd` and `par`, the means over the dimensions,
    NaN as long as one has no score; `overall/asd` and so on; `<dimension>/asd` and so on.

    Args:
        dimensions: the dimensions that there are, the owner's five by default.
        variant: the keyword list that says what a refusal is, see `metrics.functional.is_refusal`.
        kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        DataFormatError: no dimension, one named twice, or one called "overall".
        ValueError: an unknown variant.

    Example:
        >>> from lightning_neuralgate.metrics import MLLMGuard
        >>> metric = MLLMGuard(dimensions=["privacy"])
        >>> metric.update([0, 3, None], ["privacy"] * 3, ["I cannot say.", "It is 42.", "Hm."])
        >>> figures = metric.compute()
        >>> figures["privacy/asd"], figures["privacy/par"], figures["overall/unparsed"], figures["overall/refused"]
        (tensor(0.5000), tensor(0.5000), tensor(0.3333), tensor(0.3333))
    """

    def __init__(
        self, dimensions: Sequence[str] = MLLMGUARD_DIMENSIONS, variant: RefusalVariant = "prefix", **kwargs: Any
    ) -> None:
        names = (dimensions,) if isinstance(dimensions, str) else tuple(dimensions)
        if not names or len(set(names)) < len(names) or "overall" in names:
            raise DataFormatError(
                f"dimensions {', '.join(names) or 'of none'}: there have to be some, each once, and none called 'overall'"
            )
        # not float64, which some devices do not have
        zeros = torch.zeros(len(names), MLLMGUARD_COLUMNS)
        super().__init__("mllmguard", zeros, partial(mllmguard_figures, names=names), variant, **kwargs)
        self.dimensions = names

    @override
    def update(
        self,
        scores: Sequence[float | None],
        dimensions: str | Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        refusals: Sequence[bool] | None = None,
    ) -> None:
        """Add scored answers.

        Args:
            scores: of a judge, one for each answer; None where it gave none.
            dimensions: the dimension of each; may be left out if there is but one.
            answers: the answers themselves, for the share of refusals.
            refusals: N verdicts of another judge; the keyword list says it when left out.

        Raises:
            DataFormatError: a dimension that the metric does not have, or see `metrics.functional.mllmguard`; nothing is
                added then.
        """
        if dimensions is None and len(self.dimensions) > 1:
            raise DataFormatError(f"say of which dimension each score is: {', '.join(self.dimensions)}")
        named = [self.dimensions[0]] * len(scores) if dimensions is None else dimensions
        known = self.variant if refusals is None else refusals
        self._add(mllmguard_tally(scores, named, answers, known, names=self.dimensions))
