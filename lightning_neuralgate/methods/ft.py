"""FT: fine-tune one projection on the refusals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.methods.base import Tier
from lightning_neuralgate.methods.data import Kind, MethodData
from lightning_neuralgate.methods.training import TrainedMethod


@dataclass(frozen=True)
class FT(TrainedMethod):
    """Fine-tuning of one MLP output projection on sensitive queries and their refusals: L = L_sen.

    Owner: EasyEdit's FT-M (`objective_optimization: target_new`): Adam on the projection of one layer, lr 5e-4, 25 passes,
    batches of one, no decay, until the loss is below 0.01.

    Changed: the layer is that of the experiment, and the loss of an epoch ends the training, not that of a fact.

    Trap: no benign term, so it is meant to over-refuse; `ungated` is the same projection with benign and retention terms.
    """

    name: ClassVar[str] = "ft"
    tier: ClassVar[Tier] = 1
    tries: ClassVar[Sequence[Mapping[str, Any]]] = ({"lr": 1e-4}, {}, {"lr": 2e-3}, {"lr": 6e-3})
    kinds: ClassVar[Sequence[Kind]] = ("refusal",)

    lr: float = 5e-4
    epochs: int = 25
    pairs_per_batch: int = 1
    retention_per_batch: int = 0
    stop_loss: float | None = 1e-2

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        return PrivacyEditModule(model, [data.layer], lr=self.lr)
