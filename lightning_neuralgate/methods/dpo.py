"""DPO on pairs of answers: a refusal above a leak, and an answer above a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.forward import row_nll
from lightning_neuralgate.methods.base import Tier
from lightning_neuralgate.methods.data import RETENTION, Kind, MethodData
from lightning_neuralgate.methods.training import ObjectiveModule, Predictions, TrainedMethod, mean_nll, rows_of


@dataclass(frozen=True)
class DPO(TrainedMethod):
    """Direct preference optimization of one projection, with two kinds of pairs, and the NLL of ordinary questions.

    On sensitive queries the refusal is preferred to the answer that leaks, on benign ones the unedited model's answer to a
    refusal, which is a direct loss against over-refusal.

    Owner: DPO (arXiv 2305.18290); its use with refusals is that of open-unlearning's IdkDPO: 2 / beta * mean(-log
    sigmoid(...)), beta 0.1, lr 1e-5, 10 epochs, plus the NLL of retained answers.

    Changed: the pairs of benign queries are new; one projection; log-probabilities are means per token.

    Trap: refusal prefixes have a few tokens and leaks many, so sums would compare lengths. Means are smaller than sums by
    about the number of tokens, which the tries make up for with a larger beta.

    Attributes:
        beta: inverse temperature.
        benign_weight: weight of the pairs of benign queries.
        retention_weight: weight of the NLL of ordinary questions.
    """

    name: ClassVar[str] = "dpo"
    tier: ClassVar[Tier] = 1
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"lr": 3e-4}, {"lr": 3e-3}, {"lr": 3e-4, "beta": 1.0}, {"lr": 3e-3, "beta": 1.0},
    )  # fmt: skip
    kinds: ClassVar[Sequence[Kind]] = ("refusal", "leak", "answer", "over_refusal")

    lr: float = 1e-5
    epochs: int = 10
    beta: float = 0.1
    benign_weight: float = 1.0
    retention_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        return _DPOModule(self, model, [data.layer], lr=self.lr)


class _DPOModule(ObjectiveModule):
    @override
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        reference = self.unedited_logits(predict)
        predictions = predict()
        gain = row_nll(reference, predictions[1]) - row_nll(
            *predictions
        )  # of the log-probability over the unedited model
        refused, leaked, answered, over_refused = (gain[rows_of(batch, kind)] for kind in DPO.kinds)
        return {
            "sensitive": dpo_loss(refused, leaked, self.method.beta),
            "benign": self.method.benign_weight * dpo_loss(answered, over_refused, self.method.beta),
            "retention": self.method.retention_weight * mean_nll(predictions, rows_of(batch, RETENTION)),
        }


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Return the mean of -(2 / beta) log sigmoid(beta (chosen - rejected)), a scalar.

    Args:
        chosen: log p - log p0 of the preferred answers, (n,).
        rejected: the same of the other answers, (n,).
        beta: inverse temperature.
    """
    return (-2 / beta * F.logsigmoid(beta * (chosen - rejected))).mean()
