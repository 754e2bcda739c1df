"""FT-L: fine-tuning within a box around the unedited weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.ft import FT


@dataclass(frozen=True)
class FTL(FT):
    """FT whose weights stay in a box, |W - W0| <= e for every element, after each step.

    Owner: ROME's FT-L (arXiv 2202.05262): Adam, and clamp(W, W0 - e, W0 + e) after each step, with e = 5e-5.

    Changed: EasyEdit's `prompt_last` predicts every target token from the last prompt position, which fits targets of one
    token only; here each token is predicted behind the ones before it, as in FT.

    Trap: some configurations of EasyEdit switch the bound off, and are FT under another name. Which e binds depends on the
    scale of the weights, so the tries differ in e.

    Attributes:
        bound: largest change e of an element.
    """

    name: ClassVar[str] = "ft_l"
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"bound": e, "lr": 2e-3} for e in (1e-4, 5e-4, 2e-3, 5e-3))

    bound: float = 5e-5

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise ValueError(f"bound must be above 0, got {self.bound}")

    @override
    def callbacks(self, model: nn.Module, data: MethodData) -> list[Callback]:
        return [Box(self.bound)]


class Box(Callback):
    """Clamp what trains to W0 - e .. W0 + e after each optimizer step.

    Args:
        bound: e.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        limits: list[tuple[nn.Parameter, Tensor, Tensor]] = [
            (parameter, parameter.detach() - self.bound, parameter.detach() + self.bound) for parameter in trained
        ]

        @torch.no_grad()
        def clamp(*_: Any) -> None:
            for parameter, low, high in limits:
                parameter.clamp_(low, high)

        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(clamp)
