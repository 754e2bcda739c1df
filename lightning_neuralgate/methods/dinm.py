"""DINM: locate the layer in which safe and unsafe answers differ most, and edit its projection under a KL constraint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import last_logits
from lightning_neuralgate.hf.hooks import capture_outputs
from lightning_neuralgate.methods.base import Report, Tier
from lightning_neuralgate.methods.data import RETENTION, MethodData
from lightning_neuralgate.methods.training import (
    ObjectiveModule,
    Predictions,
    TrainedMethod,
    mean_kl,
    mean_nll,
    rows_of,
)

Place = Literal["located", "data"]


@dataclass(frozen=True)
class DINM(TrainedMethod):
    """One projection trains on edit_weight * NLL(refusal) + KL(p0 || p), with KL on benign and ordinary questions.

    Owner: DINM (arXiv 2403.14472, EasyEdit): the layer with the largest L2 distance between the hidden states of a safe and
    an unsafe response; its MLP output projection, 10 Adam steps on one instance, lr 5e-4 (LLaMA-2-7B-chat), weight 0.1.

    Changed: safe is the refusal prefix, unsafe the answer that leaks; one edit for all records with 10 passes over them, in
    the layer that most records vote for; the KL term uses benign twins and ordinary questions. There is no safety prompt
    behind the query: the owner's evaluation keeps one in the input, which would be another method.

    Traps: distances grow with depth, so the vote falls on the last layers. The owner pads both responses to one length and
    counts the padding; here only the first tokens are compared, as many as both have. The owner's option `kl_factor` is the
    weight of the edit loss, not of KL.

    Attributes:
        edit_weight: weight of the NLL of refusals.
        place: `located`, or `data` for the layer that all one-layer methods edit.
    """

    name: ClassVar[str] = "dinm"
    tier: ClassVar[Tier] = 2
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {}, {"lr": 3e-3}, {"place": "data"}, {"place": "data", "lr": 3e-3},
    )  # fmt: skip

    lr: float = 5e-4
    epochs: int = 10
    edit_weight: float = 0.1
    place: Place = "located"

    def __post_init__(self) -> None:
        if self.place not in ("located", "data"):
            raise ValueError(f"place must be located or data, got '{self.place}'")

    @override
    def module(self, model: nn.Module, data: MethodData) -> PrivacyEditModule:
        layer = data.layer if self.place == "data" else toxic_layer(model, data)
        return _DINMModule(self, model, [layer], lr=self.lr)

    @override
    def report(self, module: PrivacyEditModule) -> Report:
        return {"layer": float(module.hparams["layers"][0])}


class _DINMModule(ObjectiveModule):
    @override
    def objective(self, batch: dict[str, Any], predict: Callable[[], Predictions]) -> dict[str, Tensor]:
        reference = self.unedited_logits(predict)
        predictions = predict()
        return {
            "edit": self.method.edit_weight * mean_nll(predictions, rows_of(batch, "refusal")),
            "kl": mean_kl(predictions, reference, rows_of(batch, "answer", RETENTION)),
        }


def toxic_layer(model: nn.Module, data: MethodData) -> int:
    """Return the layer in which the states of refusals and leaks differ most, for most pairs; of equals the lowest."""
    texts = dict.fromkeys((str(pair.refusal.target), str(pair.leak.target)) for pair in data.pairs)
    votes = Counter(int(response_distances(model, data.tokenizer, *both).argmax()) for both in texts)
    return min(votes, key=lambda layer: (-votes[layer], layer))


@torch.no_grad()
def response_distances(model: nn.Module, tokenizer: Any, safe: str, unsafe: str) -> Tensor:
    """Return the L2 distance of the outputs of each layer between two texts without a prompt, (layers,).

    Only the first tokens are compared, as many as both texts have.
    """
    layers = find_decoder(model).layers
    device = next(model.parameters()).device
    states = []
    for text in (safe, unsafe):
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=device)
        with capture_outputs(layers, range(len(layers))) as outputs:
            last_logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}, 1)
        states.append(torch.stack([outputs[layer][0].float() for layer in range(len(layers))]))
    count = min(state.shape[1] for state in states)
    return (states[0][:, :count] - states[1][:, :count]).flatten(1).norm(dim=1)
