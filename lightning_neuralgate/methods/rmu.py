"""RMU: drive the states of leaks to one random direction, and keep those of other answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.methods.base import Report, Tier
from lightning_neuralgate.methods.data import RETENTION, Kind, MethodData
from lightning_neuralgate.methods.states import layer_states, pooled_states
from lightning_neuralgate.methods.training import ObjectiveModule, Predictions, TrainedMethod, rows_of

Unit = Literal["absolute", "norm"]


@dataclass(frozen=True)
class RMU(TrainedMethod):
    """Representation misdirection: at the tokens of answers, with h the output of the data's layer and h0 the unedited one,

        mean |h(leak) - c u|^2 / d + retain_weight * mean |h(retained) - h0(retained)|^2 / d

    where u is a random vector of length 1 with no negative entry. The MLP output projections of that layer and of the two
    below it train.

    Owner: RMU (arXiv 2403.03218): layer 7 of 32, c = 20, retain weight 100, lr 5e-5, 80 batches of 4, on whole texts;
    open-unlearning restricts it to the tokens of answers.

    Changed: the layer is that of the experiment; retained are the answers to benign twins and to ordinary questions.

    Traps: c = 20 belongs to the scale of the owner's activations, so the tries give c in units of the mean |h0| of leaks. The
    first token of an answer is predicted at the prompt's last token, which has no loss. It suppresses and does not teach a
    refusal: expect few leaks, few refusals, and babble.

    Attributes:
        coefficient: c.
        unit: of c: `absolute`, or `norm` for multiples of the mean |h0| over the tokens of leaks.
        retain_weight: weight of the second term.
        span: number of layers that train; the last one is the data's layer.
    """

    name: ClassVar[str] = "rmu"
    tier: ClassVar[Tier] = 3
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple(
        {"unit": "norm", "coefficient": c, "retain_weight": 1.0, "lr": lr} for c in (1.0, 4.0) for lr in (3e-4, 3e-3)
    )
    kinds: ClassVar[Sequence[Kind]] = ("leak", "answer")

    lr: float = 5e-5
    epochs: int = 4
    pairs_per_batch: int = 4
    retention_per_batch: int = 4
    coefficient: float = 20.0
    unit: Unit = "absolute"
    retain_weight: float = 100.0
    span: int = 3

    def __post_init__(self) -> None:
        if self.unit not in ("absolute", "norm") or self.span < 1:
            raise ValueError(f"unit must be absolute or norm, and span at least 1; got {self.unit} and {self.span}")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        leaks = pooled_states(model, data.processor, [pair.leak for pair in data.pairs], [data.layer], "target")
        norm = float(leaks[data.layer].norm(dim=1).mean())
        length = self.coefficient * (norm if self.unit == "norm" else 1.0)
        layers = list(range(max(0, data.layer - self.span + 1), data.layer + 1))
        return _RMUModule(self, model, layers, length * random_direction(leaks[data.layer].shape[1], data.seed), norm)

    @override
    def report(self, module: PrivacyEditModule) -> Report:
        assert isinstance(module, _RMUModule)
        return {"relative_coefficient": float(module.control.norm()) / module.norm}


class _RMUModule(ObjectiveModule):
    def __init__(self, method: RMU, model: nn.Module, layers: Sequence[int], control: Tensor, norm: float) -> None:
        # states are read in full rows
        super().__init__(method, model, layers, lr=method.lr, share_prefixes=False)
        self.control, self.norm = control, norm

    @override
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        layer = max(self.hparams["layers"])
        with torch.no_grad(), self.unedited.scaled(0.0):
            reference = layer_states(self.model, batch, [layer])[layer].float()
        states = layer_states(self.model, batch, [layer])[layer].float()
        is_target = batch["labels"] != IGNORED
        forget, retain = rows_of(batch, "leak"), rows_of(batch, "answer", RETENTION)
        control = self.control.to(states.device, states.dtype)
        return {
            "forget": mean_square(states[forget] - control, is_target[forget]),
            "retain": self.method.retain_weight * mean_square(states[retain] - reference[retain], is_target[retain]),
        }


def random_direction(size: int, seed: int) -> Tensor:
    """Return a vector of uniform entries, scaled to length 1, (size,) float32."""
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def mean_square(difference: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of squared entries, (B, T, d), over the tokens of a mask, (B, T), a scalar.

    Example:
        >>> mean_square(torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
        tensor(5.)
    """
    return difference[mask].square().mean()
