"""LoRA: a low-rank change of one projection, or of all linear modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.lora import add_lora
from lightning_neuralgate.edit.unedited import UneditedWeights
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.methods.base import Tier
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.training import TrainedMethod


@dataclass(frozen=True)
class LoRA(TrainedMethod):
    """A LoRA on the projection that all one-layer methods edit, with the loss of stage 2.

    Owner: KnowUnDo (arXiv 2407.01920) trains LoRAs of rank 32 with a scale of 1 and lr 1e-4; EasyEdit uses rank 8, lr 5e-3.

    Changed: the place is the MLP output projection of one layer, for a comparison of like with like, and the loss is
    L_sen + alpha L_ben + w L_ret. The factors are merged, so that the edit is a change of weights as every other.

    Trap: owners' scales alpha / r differ (4 in EasyEdit), which is a factor in the learning rate; here it is 1.

    Attributes:
        rank: rank of the change.
        alpha: weight of the benign term.
        retention_weight: weight of the retention term.
    """

    name: ClassVar[str] = "lora"
    tier: ClassVar[Tier] = 1
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"rank": 4, "lr": 1e-3}, {"rank": 4, "lr": 5e-3}, {"rank": 16, "lr": 1e-3}, {"rank": 16, "lr": 5e-3},
    )  # fmt: skip

    rank: int = 32
    lr: float = 1e-4
    alpha: float = 1.25
    retention_weight: float = 0.25

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        return PrivacyEditModule(model, [data.layer], lora_rank=self.rank, **self.loss_settings())

    def loss_settings(self) -> dict[str, Any]:
        """Return the arguments of the module that do not depend on the place."""
        return {"lr": self.lr, "alpha": self.alpha, "retention_weight": self.retention_weight}


@dataclass(frozen=True)
class LoRAAll(LoRA):
    """A LoRA on all linear modules of all decoder layers, which is what most users of LoRA train.

    Owner, changes and traps: as `LoRA`, except for the place. Its change is in every layer, so its edit file is the largest.
    """

    name: ClassVar[str] = "lora_all"

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        return _AllLinear(model, self.rank, **self.loss_settings())


class _AllLinear(PrivacyEditModule):
    def __init__(self, model: nn.Module, rank: int, **settings: Any) -> None:
        layers = list(range(find_decoder(model).num_layers))
        super().__init__(model, layers, **settings)
        train_all_linear(self, layers, rank)


def train_all_linear(module: PrivacyEditModule, layers: Sequence[int], rank: int) -> None:
    """Train a LoRA on all linear modules of some layers instead of the projections that an edit module trains."""
    module.model.requires_grad_(False)
    add_lora(module.model, layers, rank, all_linear=True)
    module.unedited = UneditedWeights(module.model)
