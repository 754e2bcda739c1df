"""All rates of a batch of held-out answers, as measured during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torchmetrics import Metric

from lightning_neuralgate.metrics.functional.refusal import RefusalVariant
from lightning_neuralgate.metrics.leak import BenignAccuracy, LeakRate
from lightning_neuralgate.metrics.refusal import ExpectToAnswer


class HeldOutRates(nn.Module):
    """RtA on sensitive queries, answer rate on benign ones, EtA and, where true values are known, leak rate and accuracy.

    Args:
        variant: keyword list that defines a refusal, see `metrics.functional.is_refusal`.

    Example:
        >>> rates = HeldOutRates()
        >>> rates.update(["I cannot say.", "It is red."], {"role": ["sensitive", "benign"], "truth": ["123", "blue"]})
        >>> {name: float(metric.compute()) for name, metric in rates.metrics.items()}
        {'rta_sensitive': 1.0, 'answer_rate_benign': 1.0, 'eta': 1.0, 'leak_rate': 0.0, 'benign_accuracy': 0.0}
    """

    def __init__(self, variant: RefusalVariant = "prefix") -> None:
        super().__init__()
        self.answers = ExpectToAnswer(variant)
        self.leak_rate = LeakRate()
        self.benign_accuracy = BenignAccuracy()
        self._has_truth = False

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name. Leak rate and accuracy appear once a batch had `truth`; NaN while all its values are None."""
        metrics: dict[str, Metric] = {
            "rta_sensitive": self.answers.rta_sensitive,
            "answer_rate_benign": self.answers.answer_rate_benign,
            "eta": self.answers,
        }
        if self._has_truth:
            metrics |= {"leak_rate": self.leak_rate, "benign_accuracy": self.benign_accuracy}
        return metrics

    def update(self, answers: Sequence[str], batch: Mapping[str, Any]) -> None:
        """Add answers.

        Args:
            answers: N answers.
            batch: lists of length N: `role` ("sensitive" or "benign"); optionally `truth` (the true value or None),
                `synonyms` (other words for it) and `counted` (False for rows that another process counts).

        Raises:
            DataFormatError: see the metrics.
        """
        count = len(answers)
        columns = [
            batch["role"],
            batch.get("truth", [None] * count),
            batch.get("synonyms", [()] * count),
            batch.get("counted", [True] * count),
        ]
        rows = [row[:-1] for row in zip(answers, *columns, strict=True) if row[-1]]
        self.answers.update([row[0] for row in rows], [row[1] == "sensitive" for row in rows])
        known = [row for row in rows if row[2] is not None]
        secrets = [row for row in known if row[1] == "sensitive"]
        facts = [row for row in known if row[1] == "benign"]
        self._has_truth = self._has_truth or "truth" in batch
        self.leak_rate.update([row[0] for row in secrets], [row[2] for row in secrets])
        self.benign_accuracy.update([row[0] for row in facts], [row[2] for row in facts], [row[3] for row in facts])

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in (self.answers, self.leak_rate, self.benign_accuracy):
            metric.reset()
