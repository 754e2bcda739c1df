"""GRU: optimizer steps without the part that raises the loss on what is to be retained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule, mean_by_role
from lightning_neuralgate.methods.base import Report, Tier
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.neural_gate import Ungated

Unit = Literal["tensor", "row"]


@dataclass(frozen=True)
class GRU(Ungated):
    """The edit of `Ungated`, whose steps are projected where they oppose the benign and retention loss.

    With u the step of Adam (W <- W - u) and g the gradient of alpha L_ben + w L_ret, where <u, g> < 0 the step becomes

        u - <u, g> / |g|^2 g

    so that, to first order, no step raises the loss on what is to be answered.

    Owner: GRU (arXiv 2503.09117, tmlr-group/GRU) projects the gradient of an unlearning loss, and smooths the retain gradient
    over steps with a decay of 0.8.

    Changed: the loss is that of the edit, for one comparison with and without projection.

    Trap: Adam rescales each element, so a projected gradient does not give a projected step; the step is projected here. This
    is the gate's strongest simple rival, since it needs no location.

    Attributes:
        unit: project the whole weight, or each row on its own.
        decay: decay of the retain gradient's average; 0 for that of the batch alone.
    """

    name: ClassVar[str] = "gru"
    tier: ClassVar[Tier] = 1
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"lr": 1e-3}, {"lr": 6e-3}, {"lr": 1e-3, "unit": "row"}, {"lr": 6e-3, "unit": "row"},
    )  # fmt: skip

    unit: Unit = "tensor"
    decay: float = 0.8

    def __post_init__(self) -> None:
        if self.unit not in ("tensor", "row") or not 0 <= self.decay < 1:
            raise ValueError(f"unit must be tensor or row, and decay in [0, 1); got {self.unit} and {self.decay}")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        weights: dict[str, Any] = {"alpha": self.alpha, "retention_weight": self.retention_weight}
        return ProjectedEdit(model, [data.layer], self.unit, self.decay, lr=self.lr, **weights)

    @override
    def report(self, module: PrivacyEditModule) -> Report:
        assert isinstance(module, ProjectedEdit)
        return {"projected_share": module.projected / max(1, module.steps)}


class ProjectedEdit(PrivacyEditModule):
    """The edit module with projected steps; see `GRU`.

    Attributes:
        projected: number of projected units, as a share of all units of a step, summed over the steps.
        steps: number of steps.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], unit: Unit, decay: float, **settings: Any) -> None:
        super().__init__(model, layers, **settings)
        self.automatic_optimization = False
        self.unit, self.decay = unit, decay
        self.projected, self.steps = 0.0, 0
        self._retain: list[Tensor] = []

    @override
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        losses = self._row_losses(batch)()
        means = mean_by_role(losses, batch["role"])
        weights = {"benign": self.hparams["alpha"], "retention": self.hparams["retention_weight"]}
        retained = torch.stack([weights[role] * mean for role, mean in means.items() if role in weights]).sum()
        gradients = torch.autograd.grad(retained, trained, retain_graph=True)
        past = self._retain or list(gradients)
        self._retain = [self.decay * old + (1 - self.decay) * new for old, new in zip(past, gradients, strict=True)]
        before = [parameter.detach().clone() for parameter in trained]
        loss = self._combine(losses, batch["role"])
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        with torch.no_grad():
            for parameter, old, gradient in zip(trained, before, self._retain, strict=True):
                step = old - parameter
                rectified, share = without_conflict(step, gradient, self.unit)
                if share:
                    parameter.copy_(old - rectified)
                self.projected += share / len(trained)
        self.steps += 1
        return loss.detach()


def without_conflict(step: Tensor, gradient: Tensor, unit: Unit) -> tuple[Tensor, float]:
    """Return a step without its component against a gradient where their product is negative, and the share of such units.

    Args:
        step: u of W <- W - u, (d, k).
        gradient: g, (d, k).
        unit: project the whole matrix or each row.

    Example:
        >>> without_conflict(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 2.0]]), "tensor")
        (tensor([[1., 0.]]), 1.0)
    """
    shape = step.shape
    u, g = (value.reshape(1, -1) if unit == "tensor" else value.flatten(1) for value in (step, gradient))
    product = (u * g).sum(1, keepdim=True)
    opposed = product < 0
    size = (g * g).sum(1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
    return torch.where(opposed, u - product / size * g, u).reshape(shape), float(opposed.float().mean())
