"""MME as a torchmetrics class. The protocol stands in `metrics.functional.mme`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE
from typing_extensions import override

from lightning_neuralgate.errors import DataFormatError
from lightning_neuralgate.metrics.base import BenchmarkMetric
from lightning_neuralgate.metrics.functional.mme import (
    SUBTASKS,
    MmeRule,
    image_rows,
    mme_figures,
    mme_questions,
    mme_verdict,
)
from lightning_neuralgate.metrics.functional.refusal import RefusalVariant
from lightning_neuralgate.metrics.functional.tally import summed_by_stratum


class MME(BenchmarkMetric):
    """MME's scores, with the refused and the unparsed share beside them.

    As input to `update`: `answers`, `truths`, `images` and `subtasks`, one or N of each. As output of `compute`: a dict of
    scalars: `perception`, `cognition` and the other numbers of `metrics.functional.MmeScores`, and `<subtask>/score` and so
    on for the subtasks that have questions. The two questions about an image may come in different batches and in different
    processes; that each image has two is checked by `compute`. Where a sampler repeats items to make the processes' shares
    equal, leave the repeated ones out.

    Args:
        variant: the keyword list that says what a refusal is, see `metrics.functional.is_refusal`.
        rule: what happens to periods, see `metrics.functional.mme_verdict`.
        kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: an unknown variant or rule.

    Example:
        >>> from lightning_neuralgate.metrics import MME
        >>> metric = MME()
        >>> metric.update(["Yes", "no"], ["Yes", "No"], ["a.png", "b.png"], ["color", "color"])
        >>> metric.update(["No.", "I'm sorry."], ["No", "Yes"], ["a.png", "b.png"], ["color", "color"])
        >>> figures = metric.compute()
        >>> figures["color/score"], figures["perception"], figures["unparsed"]  # 100 * 3/4 + 100 * 1/2
        (tensor(125.), tensor(125.), tensor(0.2500))
    """

    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 200.0

    def __init__(self, variant: RefusalVariant = "prefix", rule: MmeRule = "dotless", **kwargs: Any) -> None:
        mme_verdict("", rule)
        super().__init__(variant, **kwargs)
        self.rule: MmeRule = rule
        # metrics of one name may share a state in a MetricCollection
        self._state = f"mme_{variant}_{rule}"
        self.add_state(self._state, default=[], dist_reduce_fx="cat")
        self._names: dict[int, str] = {}

    @override
    def update(
        self,
        answers: str | Sequence[str],
        truths: str | Sequence[str],
        images: str | Sequence[str],
        subtasks: str | Sequence[str],
        refusals: Sequence[bool] | None = None,
    ) -> None:
        """Add answers.

        Args:
            answers: one answer or N of them, also none.
            truths: the true answer of each, yes or no.
            images: the image of each.
            subtasks: the subtask of each.
            refusals: N verdicts of another judge; the keyword list says it when left out.

        Raises:
            DataFormatError: see `metrics.functional.mme`; nothing is added then.
        """
        questions = mme_questions(
            answers, truths, images, subtasks, self.variant if refusals is None else refusals, self.rule
        )
        rows = []
        for subtask, image, values in questions:
            name = f"{subtask}/{image}"
            key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "big")
            self._names[key] = name
            rows.append([key, SUBTASKS.index(subtask), *values])
        if rows:
            getattr(self, self._state).append(torch.tensor(rows, dtype=torch.long, device=self.device))

    @override
    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Add answers as `update` does. It returns nothing, because a batch may hold one question of an image alone."""
        self.update(*args, **kwargs)

    @override
    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the questions of all processes."""
        questions = getattr(self, self._state)
        if isinstance(questions, list) and not questions:
            # torchmetrics sends a tensor of another shape and type for a process that has none
            questions.append(_no_questions(self.device))
        super().sync(*args, **kwargs)

    @override
    def reset(self) -> None:
        """Forget all answers."""
        super().reset()
        self._names = {}

    @override
    def compute(self) -> dict[str, Tensor]:
        """The figures so far, scalars by name.

        Raises:
            DataFormatError: an image does not have exactly two questions.
        """
        told = getattr(self, self._state)
        # one tensor after a sync, a list of them otherwise
        questions = (dim_zero_cat(told) if len(told) else _no_questions(self.device)).cpu().numpy()
        keys, place, counts = np.unique(questions[:, 0], return_inverse=True, return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            if count != 2:
                image = (
                    f"image '{self._names[key]}'" if key in self._names else "an image that another process has seen"
                )
                raise DataFormatError(f"{image} has {count} questions; MME asks two of each image")
        values = np.zeros((len(keys), questions.shape[1] - 2))
        np.add.at(values, place, questions[:, 2:])
        strata = np.zeros(len(keys), dtype=np.intp)
        strata[place] = questions[:, 1]
        figures = mme_figures(summed_by_stratum(image_rows(values), strata, len(SUBTASKS)))
        asked = {SUBTASKS[stratum] for stratum in strata}
        return {
            name: torch.tensor(float(value), device=self.device, dtype=torch.float32)
            for name, value in figures.items()
            if "/" not in name or name.partition("/")[0] in asked
        }

    @override
    def plot(
        self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: _AX_TYPE | None = None
    ) -> _PLOT_OUT_TYPE:
        """Plot the scores of the subtasks, once or over several steps; arguments as in the other metrics."""
        values = self.compute() if val is None else val
        if isinstance(values, dict):
            return self._plot(_scores(values), ax)
        return self._plot([_scores(value) for value in values], ax)


def _scores(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.partition("/")[0]: value for name, value in figures.items() if name.endswith("/score")}


def _no_questions(device: torch.device) -> Tensor:
    return torch.zeros(0, 6, dtype=torch.long, device=device)
