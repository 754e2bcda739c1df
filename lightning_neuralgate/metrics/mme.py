"""MME as a torchmetrics class; the protocol is in `metrics.functional.mme`."""

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
    """MME's scores, with the refused and the unparsed share.

    As input to `update`: `answers`, `truths`, `images` and `subtasks`, one or N of each. As output of `compute`: a dict of
    scalars: `perception`, `cognition` and the other numbers of `metrics.functional.MmeScores`, and `<subtask>/score` and so
    on for the subtasks that have questions. The two questions about an image may come in different batches and processes;
    `compute` checks that each image has two. If a distributed sampler repeats items, do not add the repeated ones.

    Args:
        variant: keyword list that defines a refusal, see `metrics.functional.is_refusal`.
        rule: how periods are treated, see `metrics.functional.mme_verdict`.
        kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: the variant or the rule is unknown.

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
        # a MetricCollection may merge the states of metrics that use the same name
        self._state = f"mme_{variant}_{rule}"
        self.add_state(self._state, default=[], dist_reduce_fx="cat")
        self._image_names: dict[int, str] = {}

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
            answers: one answer or N answers; N may be 0.
            truths: the correct answer to each question, yes or no.
            images: the image of each question.
            subtasks: the subtask of each question.
            refusals: N verdicts from another judge; the keyword list decides when left out.

        Raises:
            DataFormatError: see `metrics.functional.mme`. The state does not change then.
        """
        questions = mme_questions(
            answers, truths, images, subtasks, self.variant if refusals is None else refusals, self.rule
        )
        rows = []
        for subtask, image, values in questions:
            name = f"{subtask}/{image}"
            key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "big")
            self._image_names[key] = name
            rows.append([key, SUBTASKS.index(subtask), *values])
        if rows:
            getattr(self, self._state).append(torch.tensor(rows, dtype=torch.long, device=self.device))

    @override
    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Call `update`. There is no batch value, because a batch may contain only one of an image's two questions."""
        self.update(*args, **kwargs)

    @override
    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the questions of all processes."""
        questions = getattr(self, self._state)
        if isinstance(questions, list) and not questions:
            # for an empty state torchmetrics would send a tensor of another shape and dtype
            questions.append(_no_questions(self.device))
        super().sync(*args, **kwargs)

    @override
    def reset(self) -> None:
        """Reset the metric."""
        super().reset()
        self._image_names = {}

    @override
    def compute(self) -> dict[str, Tensor]:
        """Return the figures so far, scalars by name.

        Raises:
            DataFormatError: an image does not have exactly two questions.
        """
        state = getattr(self, self._state)
        # a tensor after a sync, a list of tensors otherwise
        questions = (dim_zero_cat(state) if len(state) else _no_questions(self.device)).cpu().numpy()
        keys, image_indices, counts = np.unique(questions[:, 0], return_inverse=True, return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            if count != 2:
                name = self._image_names.get(key)
                image = "an image of another process" if name is None else f"image '{name}'"
                raise DataFormatError(f"{image} has {count} questions; expected 2")
        values = np.zeros((len(keys), questions.shape[1] - 2))
        np.add.at(values, image_indices, questions[:, 2:])
        strata = np.zeros(len(keys), dtype=np.intp)
        strata[image_indices] = questions[:, 1]
        figures = mme_figures(summed_by_stratum(image_rows(values), strata, len(SUBTASKS)))
        present = {SUBTASKS[stratum] for stratum in strata}
        return {
            name: torch.tensor(float(value), device=self.device, dtype=torch.float32)
            for name, value in figures.items()
            if "/" not in name or name.partition("/")[0] in present
        }

    @override
    def plot(
        self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: _AX_TYPE | None = None
    ) -> _PLOT_OUT_TYPE:
        """Plot the subtasks' scores, a single value or several; arguments as in `PlottableMetric.plot`."""
        values = self.compute() if val is None else val
        if isinstance(values, dict):
            return self._plot(_subtask_scores(values), ax)
        return self._plot([_subtask_scores(value) for value in values], ax)


def _subtask_scores(figures: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.partition("/")[0]: value for name, value in figures.items() if name.endswith("/score")}


def _no_questions(device: torch.device) -> Tensor:
    return torch.zeros(0, 6, dtype=torch.long, device=device)
