"""MemFlex: find the projections that matter for what is to be forgotten and not for the rest, and train only those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.methods.base import Report, Tier
from lightning_neuralgate.methods.data import RETENTION, Kind, MethodData
from lightning_neuralgate.methods.training import (
    ObjectiveModule,
    Predictions,
    TrainedMethod,
    mean_gradients,
    mean_nll,
    rows_of,
)


@dataclass(frozen=True)
class MemFlex(TrainedMethod):
    """Located projections train on -forget_weight * NLL(leak) + retain_weight * NLL(benign and ordinary answers).

    With g_f and g_r the mean gradients of the two NLL, the projection of a layer is located if cos(g_f, g_r) < cosine and
    mean |g_f| is above its `quantile` over the layers.

    Owner: MemFlex of KnowUnDo (arXiv 2407.01920): cosine 0.92, mean |g_f| > 6e-4, weights 0.4 and 2.0, lr 3e-4, 2 epochs,
    batches of 16, on the tensors of a LoRA.

    Changed: the regions are the MLP output projections of all layers with their full weights; one gradient on leaks instead
    of three with random targets; a constant learning rate.

    Traps: 6e-4 belongs to the scale of the owner's LoRA, so the threshold is a quantile. Ascent on leaks has no lower bound
    and ends in babble; `MemFlexRefusal` replaces it by the refusal.

    Attributes:
        cosine: largest cosine of a located tensor.
        quantile: of mean |g_f|, in [0, 1).
        forget_weight, retain_weight: as above.
    """

    name: ClassVar[str] = "memflex"
    tier: ClassVar[Tier] = 2
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"quantile": 0.5}, {"quantile": 0.8}, {"quantile": 0.5, "lr": 1e-3}, {"quantile": 0.8, "lr": 1e-3},
    )  # fmt: skip
    kinds: ClassVar[Sequence[Kind]] = ("leak", "answer")
    forgotten: ClassVar[Kind] = "leak"

    lr: float = 3e-4
    epochs: int = 2
    pairs_per_batch: int = 16
    retention_per_batch: int = 4
    cosine: float = 0.92
    quantile: float = 0.5
    forget_weight: float = 0.4
    retain_weight: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise ValueError(f"quantile must lie in [0, 1), got {self.quantile}")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        return _MemFlexModule(self, model, self.located(model, data), lr=self.lr)

    def located(self, model: nn.Module, data: MethodData) -> list[int]:
        """Return the located layers; the one with the least cosine if there is none."""
        layers = editable_layers(model)
        layout = find_decoder(model)
        parameters = [layout.output_projection(layer).get_parameter("weight") for layer in layers]
        forget = mean_gradients(model, data, [self.forgotten], parameters)
        retain = mean_gradients(model, data, ["answer"], parameters, retention=1)
        return [layers[index] for index in located_regions(forget, retain, self.cosine, self.quantile)]

    @override
    def report(self, module: PrivacyEditModule) -> Report:
        layers = module.hparams["layers"]
        return {"located": float(len(layers)), "layers": " ".join(map(str, layers))}


@dataclass(frozen=True)
class MemFlexRefusal(MemFlex):
    """MemFlex with refuse_weight * NLL(refusal) in place of the ascent on leaks, in the regions of the refusals' gradient.

    Owner, changes and traps: as `MemFlex`. It shows what the location is worth when the objective teaches refusals.

    Attributes:
        refuse_weight: weight of the NLL of refusals.
    """

    name: ClassVar[str] = "memflex_refusal"
    kinds: ClassVar[Sequence[Kind]] = ("refusal", "answer")
    forgotten: ClassVar[Kind] = "refusal"

    refuse_weight: float = 1.0


class _MemFlexModule(ObjectiveModule):
    @override
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        predictions, method = predict(), self.method
        weight = method.refuse_weight if isinstance(method, MemFlexRefusal) else -method.forget_weight
        return {
            "forget": weight * mean_nll(predictions, rows_of(batch, method.forgotten)),
            "retain": method.retain_weight * mean_nll(predictions, rows_of(batch, "answer", RETENTION)),
        }


def located_regions(forget: Sequence[Tensor], retain: Sequence[Tensor], cosine: float, quantile: float) -> list[int]:
    """Return which tensors are located, by their gradients; the one with the least cosine if there is none.

    Example:
        >>> g = torch.tensor([1.0, 0.0])
        >>> located_regions([g, 2 * g, 3 * g], [g, -g, 0.1 * g + torch.tensor([0.0, 1.0])], 0.92, 0.5)
        [1, 2]
    """
    cosines = torch.stack([
        torch.nn.functional.cosine_similarity(f.flatten().float(), r.flatten().float(), dim=0)
        for f, r in zip(forget, retain, strict=True)
    ])  # fmt: skip
    sizes = torch.stack([gradient.abs().mean().float() for gradient in forget])
    found = ((cosines < cosine) & (sizes >= sizes.quantile(quantile))).nonzero()[:, 0].tolist()
    return found or [int(cosines.argmin())]


def editable_layers(model: nn.Module) -> list[int]:
    """Return the layers with an MLP output projection; layers with a mixture of experts have none."""
    layout = find_decoder(model)
    found = []
    for layer in range(layout.num_layers):
        try:
            layout.output_projection(layer)
        except ModelLayoutError:
            continue
        found.append(layer)
    return found
