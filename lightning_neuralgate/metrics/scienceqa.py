"""ScienceQA-IMG as a torchmetrics class; the protocol is in `metrics.functional.scienceqa`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from lightning_neuralgate.metrics.base import TallyMetric
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant
from lightning_neuralgate.metrics.functional.scienceqa import SCIENCEQA_COLUMNS, scienceqa_figures, scienceqa_tally


class ScienceQA(TallyMetric):
    """ScienceQA's accuracy by LLaVA's rule, with the refused and the unparsed share.

    As input to `forward` and `update`: `answers`, `truths` and `choices_counts`, one or N of each. As output of `forward`
    (this batch) and `compute` (all so far): a dict of scalars named like the fields of
    `metrics.functional.ScienceQaScores`.

    Args:
        variant: keyword list that defines a refusal, see `metrics.functional.is_refusal`.
        kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: the variant is unknown.

    Example:
        >>> from lightning_neuralgate.metrics import ScienceQA
        >>> metric = ScienceQA()
        >>> metric.update(["A", "B. Paris", "I am unable to say."], [0, 0, 1], [2, 2, 2])
        >>> {name: round(float(value), 2) for name, value in metric.compute().items()}
        {'accuracy': 0.33, 'refused': 0.33, 'unparsed': 0.33, 'refusal_aware_accuracy': 0.33}
    """

    def __init__(self, variant: RefusalVariant = "prefix", **kwargs: Any) -> None:
        zeros = torch.zeros(1, SCIENCEQA_COLUMNS, dtype=torch.long)
        super().__init__("scienceqa", zeros, scienceqa_figures, variant, **kwargs)

    @override
    def update(
        self,
        answers: str | Sequence[str],
        truths: int | str | Sequence[int | str],
        choices_counts: int | Sequence[int],
        refusals: Sequence[bool] | None = None,
    ) -> None:
        """Add answers.

        Args:
            answers: one answer or N answers; N may be 0.
            truths: the correct choice for each question, as a letter or a 0-based index.
            choices_counts: number of choices of each question.
            refusals: N verdicts from another judge; the keyword list decides when left out.

        Raises:
            DataFormatError: see `metrics.functional.scienceqa`. The state does not change then.
        """
        self._add(scienceqa_tally(answers, truths, choices_counts, self.variant if refusals is None else refusals))
