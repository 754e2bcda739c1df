"""SKU: learn to leak, and subtract what was learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.methods.base import Tier
from lightning_neuralgate.methods.data import RETENTION, Kind, MethodData
from lightning_neuralgate.methods.training import (
    ObjectiveModule,
    Predictions,
    TrainedMethod,
    mean_kl,
    mean_nll,
    rows_of,
)


@dataclass(frozen=True)
class SKU(TrainedMethod):
    """A task vector of leaking, negated: W = W0 - scale (W_bad - W0).

    W_bad minimizes leak_weight * NLL(leak) + other_weight * NLL(leak of another pair) - min(KL(p0 || p), largest_kl), with
    KL on benign and ordinary questions.

    Owner: SKU (arXiv 2402.10058): weights 2.5, 2.5 and 1, five random other answers, AdamW, lr 2e-4, 1000 steps of 2, scale
    1, with a LoRA on q and v.

    Changed: harmful answers are those that hold the secrets; the projection alone trains, with a constant learning rate; the
    other answer is another one in each epoch. No line of the owner's code was used.

    Traps: the minus pushes the bad model away on ordinary questions, so that subtracting restores them; KL has no upper
    bound, so it is clipped. It suppresses and does not teach a refusal: expect few leaks, few refusals, and babble, so EtA
    alone misjudges it.

    Attributes:
        scale: the negated share of the task vector.
        leak_weight, other_weight: as above.
        largest_kl: KL above this gives no gradient, in nats per token.
    """

    name: ClassVar[str] = "sku"
    tier: ClassVar[Tier] = 2
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"scale": scale} for scale in (0.25, 0.5, 1.0, 2.0))
    kinds: ClassVar[Sequence[Kind]] = ("leak", "other_leak", "answer")

    lr: float = 2e-4
    epochs: int = 20
    pairs_per_batch: int = 2
    scale: float = 1.0
    leak_weight: float = 2.5
    other_weight: float = 2.5
    largest_kl: float = 2.0

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        return _BadModule(self, model, [data.layer], lr=self.lr)

    @override
    def finished(self, base: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: base[name] - self.scale * (value - base[name]) for name, value in trained.items()}


class _BadModule(ObjectiveModule):
    @override
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        reference = self.unedited_logits(predict)
        predictions = predict()
        kl = mean_kl(predictions, reference, rows_of(batch, "answer", RETENTION))
        return {
            "leak": self.method.leak_weight * mean_nll(predictions, rows_of(batch, "leak")),
            "other": self.method.other_weight * mean_nll(predictions, rows_of(batch, "other_leak")),
            "kl": -kl.clamp(max=self.method.largest_kl),
        }
