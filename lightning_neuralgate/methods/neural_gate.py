"""Neural Gate as a method, and the same edit with other masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import Callback
from torch import nn
from typing_extensions import override

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import DEFAULT_TAU, NeuralGate
from lightning_neuralgate.gate.positions import Scope
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from lightning_neuralgate.methods.base import Tier
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.training import TrainedMethod


@dataclass(frozen=True)
class Ungated(TrainedMethod):
    """Stage 2 without a gate: one projection, L = L_sen + alpha L_ben + w L_ret. The paper's ablation.

    Owner: the paper (arXiv 2603.12598) edits pair by pair with lr 1e-5.

    Changed: shuffled mini-batches and a retention term, the project's default (`PrivacyEditModule`).

    Attributes:
        alpha: weight of the benign term.
        retention_weight: weight of the retention term.
    """

    name: ClassVar[str] = "ungated"
    tier: ClassVar[Tier] = 1
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"lr": lr} for lr in (3e-4, 1e-3, 3e-3, 6e-3))

    alpha: float = 1.25
    retention_weight: float = 0.25

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        weights: dict[str, Any] = {"alpha": self.alpha, "retention_weight": self.retention_weight}
        return PrivacyEditModule(model, [data.layer], lr=self.lr, **weights)


@dataclass(frozen=True)
class NeuralGateEdit(Ungated):
    """Both stages of Neural Gate: locate in the layer, then the edit of `Ungated` behind the gate.

    Owner: the paper, with tau 0.3 at the subject's last token. Changed: as `Ungated`.

    Trap: the time of locating belongs to the method, so each fit locates anew.

    Attributes:
        tau: threshold of the gate.
        scope: positions at which the gate applies.
    """

    name: ClassVar[str] = "neural_gate"

    tau: float = DEFAULT_TAU
    scope: Scope = "subject_last"

    @override
    def callbacks(self, model: nn.Module, data: MethodData) -> list[Callback]:
        return [NeuralGateCallback(self.control(located_gate(model, data), data.seed), self.scope, self.tau)]

    def control(self, gate: NeuralGate, seed: int) -> NeuralGate:
        """Return the gate to edit with; here the located one."""
        return gate


@dataclass(frozen=True)
class ShuffledMask(NeuralGateEdit):
    """The located gate with its rows in another order, the same one for all subjects.

    Owner: none; a control. What it loses against `neural_gate` is owed to *which* rows are open. The shares of open rows and
    the overlap of subjects stay the same.
    """

    name: ClassVar[str] = "shuffled_mask"

    @override
    def control(self, gate: NeuralGate, seed: int) -> NeuralGate:
        return gate.shuffled(seed)


@dataclass(frozen=True)
class RandomMask(NeuralGateEdit):
    """As many open rows for each subject as in the located gate, drawn at random for each subject.

    Owner: none; a control, as `ShuffledMask`, in which the overlap of subjects is lost as well.
    """

    name: ClassVar[str] = "random_mask"

    @override
    def control(self, gate: NeuralGate, seed: int) -> NeuralGate:
        return gate.random(seed)


def located_gate(model: nn.Module, data: MethodData) -> NeuralGate:
    """Run stage 1 on the edit records in the data's layer, in full precision, and return the gate."""
    device = next(model.parameters()).device
    locator = PrivacyLocatorModule(model, [data.layer])
    batches = PrivacyPairDataModule(RecordSplits(list(data.records), [], [], []), data.processor, seed=data.seed)
    data.make_trainer(max_epochs=1, precision="32-true").fit(locator, datamodule=batches)
    model.to(device)
    return locator.gate
