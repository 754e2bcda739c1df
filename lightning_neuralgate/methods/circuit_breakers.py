"""Circuit breakers: turn the states of leaks away from the unedited ones, and keep all other states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED
from lightning_neuralgate.methods.base import Report, Tier
from lightning_neuralgate.methods.data import RETENTION, Kind, MethodData
from lightning_neuralgate.methods.lora import train_all_linear
from lightning_neuralgate.methods.states import layer_states
from lightning_neuralgate.methods.training import ObjectiveModule, Predictions, TrainedMethod, rows_of

_START = 1e-3
"""Standard deviation of the second factors at the start."""


@dataclass(frozen=True)
class CircuitBreakers(TrainedMethod):
    """Representation rerouting: with h the outputs of layers, h0 the unedited ones, and p = step / (2 steps of the training),

        coefficient ((1 - p) mean relu(cos(h, h0)) + p mean |h - h0|)

    The first mean is over the tokens of leaks in the two target layers, the second over all tokens of what is retained, in
    all layers up to the higher target. A LoRA on all linear modules of these layers trains.

    Owner: circuit breakers (arXiv 2406.04313, GraySwanAI/circuit-breakers): LoRA of rank 16 with a scale of 1 and dropout
    0.05, target layers 10 and 20 of 32, coefficient 10, lr 1e-4, 150 steps of 16 under the schedule above.

    Changed: the targets are the data's layer and the one of twice its number; about as many steps of fewer pairs; no dropout.
    Rerouted are the tokens of leaks alone, since a picture and most of a query are those of the benign twin as well.
    Retained are benign twins, ordinary questions, and refusals behind sensitive queries, as the owner keeps refusals. The
    LoRA starts at small random values: at 0 neither term has a gradient, and only rounding would leave that point.

    Traps: |h - h0| grows with the scale of the states and the cosine does not, so the balance of the two terms is another one
    in each model. It breaks answers that leak, and does not teach a refusal: expect few leaks, few refusals, and babble, also
    behind an answer that is started for the model.

    Attributes:
        coefficient: as above.
        rank: rank of the LoRA.
    """

    name: ClassVar[str] = "circuit_breakers"
    tier: ClassVar[Tier] = 3
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"lr": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3))
    kinds: ClassVar[Sequence[Kind]] = ("leak", "refusal", "answer")

    lr: float = 1e-4
    epochs: int = 8
    pairs_per_batch: int = 4
    retention_per_batch: int = 4
    coefficient: float = 10.0
    rank: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        last = find_decoder(model).num_layers - 1
        return RerouteModule(self, model, sorted({data.layer, min(2 * data.layer, last)}))

    @override
    def report(self, module: PrivacyEditModule) -> Report:
        assert isinstance(module, RerouteModule)
        return {"targets": " ".join(map(str, module.targets))}


class RerouteModule(ObjectiveModule):
    """The training of `CircuitBreakers`.

    Args:
        method: the method.
        model: the model; a LoRA is added in place.
        targets: target layers, in ascending order.

    Attributes:
        progress: p of the next step, from 0 to 1/2.
    """

    def __init__(self, method: CircuitBreakers, model: nn.Module, targets: Sequence[int]) -> None:
        layers = list(range(targets[-1] + 1))
        # states are read in full rows
        super().__init__(method, model, layers, lr=method.lr, share_prefixes=False)
        train_all_linear(self, layers, method.rank)
        for name, factor in self.model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(factor, std=_START)
        self.targets, self.progress = list(targets), 0.0

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.progress = self.trainer.global_step / (2 * self.trainer.estimated_stepping_batches)

    @override
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        layers = range(self.targets[-1] + 1)
        with torch.no_grad(), self.unedited.scaled(0.0):
            reference = layer_states(self.model, batch, layers)
        states = layer_states(self.model, batch, layers)
        leaks, retained = rows_of(batch, "leak"), rows_of(batch, "refusal", "answer", RETENTION)
        leaked, kept = batch["labels"][leaks] != IGNORED, batch["attention_mask"][retained].bool()
        cosines = [_cosine(states[layer][leaks][leaked], reference[layer][leaks][leaked]) for layer in self.targets]
        moved = [(states[layer][retained] - reference[layer][retained])[kept].float().norm(dim=1) for layer in layers]
        c, p = self.method.coefficient, self.progress
        return {
            "reroute": c * (1 - p) * torch.cat(cosines).relu().mean(),
            "retain": c * p * torch.cat(moved).mean(),
        }


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    return torch.cosine_similarity(first.float(), second.float(), dim=1)
