"""POPE as a torchmetrics class; the protocol is in `metrics.functional.pope`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from lightning_neuralgate.metrics.base import TallyMetric
from lightning_neuralgate.metrics.functional.pope import POPE_COLUMNS, pope_figures, pope_tally
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant


class POPE(TallyMetric):
    """POPE's accuracy, precision, recall, F1 and yes ratio, with the refused and the unparsed share.

    As input to `forward` and `update`: `answers` and `labels`, one or N of each. As output of `forward` (this batch) and
    `compute` (all so far): a dict of scalars named like the fields of `metrics.functional.PopeScores`.

    Args:
        variant: keyword list that defines a refusal, see `metrics.functional.is_refusal`.
        kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: the variant is unknown.

    Example:
        >>> from lightning_neuralgate.metrics import POPE
        >>> metric = POPE()
        >>> metric.update(["Yes.", "I'm sorry, I can't tell."], ["yes", "yes"])
        >>> figures = metric.compute()
        >>> figures["accuracy"], figures["refused"], figures["refusal_aware_accuracy"]
        (tensor(1.), tensor(0.5000), tensor(0.5000))
    """

    def __init__(self, variant: RefusalVariant = "prefix", **kwargs: Any) -> None:
        super().__init__("pope", torch.zeros(1, POPE_COLUMNS, dtype=torch.long), pope_figures, variant, **kwargs)

    @override
    def update(
        self, answers: str | Sequence[str], labels: str | Sequence[str], refusals: Sequence[bool] | None = None
    ) -> None:
        """Add answers.

        Args:
            answers: one answer or N answers; N may be 0.
            labels: the correct answer to each question, yes or no.
            refusals: N verdicts from another judge; the keyword list decides when left out.

        Raises:
            DataFormatError: see `metrics.functional.pope`. The state does not change then.
        """
        self._add(pope_tally(answers, labels, self.variant if refusals is None else refusals))
