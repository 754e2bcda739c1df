"""NPO and SimNPO: lower the probability of leaks, with a loss that is bounded below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.forward import IGNORED, row_nll
from lightning_neuralgate.methods.base import Tier
from lightning_neuralgate.methods.data import RETENTION, Kind, MethodData
from lightning_neuralgate.methods.training import ObjectiveModule, Predictions, TrainedMethod, mean_nll, rows_of


@dataclass(frozen=True)
class NPO(TrainedMethod):
    """Negative preference optimization of one projection: the answers that leak are the rejected ones.

        forget_weight * mean(-(2 / beta) log sigmoid(-beta log(p / p0)(leak))) + NLL(benign and ordinary answers)

    Owner: NPO (arXiv 2404.05868), as in open-unlearning: beta 0.1, lr 1e-5, 10 epochs, batches of 32, NLL of
    retained answers.

    Changed: one projection; the retained answers are those of benign twins and ordinary questions.

    Trap: it suppresses leaks and teaches no refusal, so EtA alone misjudges it; it needs p0, which costs a forward pass.

    Attributes:
        beta: inverse temperature.
        forget_weight: weight of the first term.
    """

    name: ClassVar[str] = "npo"
    tier: ClassVar[Tier] = 3
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"lr": lr} for lr in (1e-5, 1e-4, 1e-3, 6e-3))
    kinds: ClassVar[Sequence[Kind]] = ("leak", "answer")

    lr: float = 1e-5
    epochs: int = 10
    pairs_per_batch: int = 16
    retention_per_batch: int = 4
    beta: float = 0.1
    forget_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        return _NPOModule(self, model, [data.layer], lr=self.lr)

    def forget_loss(self, nll: Tensor, lengths: Tensor, reference: Callable[[], Tensor]) -> Tensor:
        """Return the loss of the leaks, a scalar.

        Args:
            nll: mean NLL per token of each leak, (n,).
            lengths: their numbers of tokens, (n,).
            reference: returns the same NLL in the unedited model.
        """
        return negative_preference((reference() - nll) * lengths, self.beta)


@dataclass(frozen=True)
class SimNPO(NPO):
    """NPO without a reference model, normalized by length: -(2 / beta) log sigmoid(-(beta / |y|) log p(y) - beta margin).

    Owner: SimNPO (arXiv 2410.07163), as in open-unlearning: beta 4.5, margin 0, forget weight 0.125; the rest as NPO.

    Changed and trap: as `NPO`, except for p0.

    Attributes:
        margin: delta.
    """

    name: ClassVar[str] = "simnpo"

    beta: float = 4.5
    forget_weight: float = 0.125
    margin: float = 0.0

    @override
    def forget_loss(self, nll: Tensor, lengths: Tensor, reference: Callable[[], Tensor]) -> Tensor:
        return negative_preference(self.margin - nll, self.beta)


class _NPOModule(ObjectiveModule):
    @override
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        leaks = rows_of(batch, "leak")
        predictions = predict()
        labels = predictions[1]
        lengths = (labels[leaks] != IGNORED).sum(1)
        forget = self.method.forget_loss(
            row_nll(*predictions)[leaks], lengths, lambda: row_nll(self.unedited_logits(predict), labels)[leaks]
        )
        return {
            "forget": self.method.forget_weight * forget,
            "retain": mean_nll(predictions, rows_of(batch, "answer", RETENTION)),
        }


def negative_preference(gain: Tensor, beta: float) -> Tensor:
    """Return the mean of -(2 / beta) log sigmoid(-beta gain), a scalar; gain is log p - log p0 of rejected answers, (n,)."""
    return (-2 / beta * F.logsigmoid(-beta * gain)).mean()
