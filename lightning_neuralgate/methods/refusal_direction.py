"""The refusal direction, added to the output of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED, last_logits, model_inputs
from lightning_neuralgate.hf.hooks import capture_outputs
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.methods.base import Method, Tier
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.steering import DirectionSteering

_BATCH_SIZE = 16


@dataclass(frozen=True)
class RefusalDirection(Method):
    """The direction from answering to refusing, added at every token: h <- h + strength * r.

    r is the mean output of the data's layer over the tokens of refusals, minus that over the tokens of leaks, both behind the
    same sensitive queries.

    Owner: Arditi et al. (arXiv 2406.11717): difference of means between prompts to refuse and to answer, at the tokens of the
    template behind the instruction; layer and token are chosen by refusals and KL on 32 prompts; strength 1.

    Changed: an unedited model that never refuses has no such difference between prompts, so refusals and leaks are forced;
    the layer is that of all one-layer methods.

    Trap: it is unconditional, so it refuses benign queries alike: a lower bound for everything with a condition.

    Attributes:
        strength: factor of r.
    """

    name: ClassVar[str] = "refusal_direction"
    tier: ClassVar[Tier] = 3
    tries: ClassVar[Sequence[Mapping[str, Any]]] = tuple({"strength": c} for c in (0.5, 1.0, 2.0, 4.0))

    strength: float = 1.0

    @override
    def fit(self, model: nn.Module, data: MethodData) -> DirectionSteering:
        model.eval()
        refused, leaked = (
            target_states(model, data.processor, rows, data.layer)
            for rows in ([pair.refusal for pair in data.pairs], [pair.leak for pair in data.pairs])
        )
        direction = (refused - leaked).float().cpu()
        return DirectionSteering(
            method=self.name,
            settings=self.settings(),
            report={"layer": float(data.layer), "relative_norm": float((refused - leaked).norm() / leaked.norm())},
            model=ModelIdentity.of(model),
            layer=data.layer,
            direction=direction,
            strength=self.strength,
        )


@torch.no_grad()
def target_states(model: nn.Module, processor: Any, rows: Sequence[QueryRow], layer: int) -> Tensor:
    """Return the mean output of a layer over the target tokens of rows, each row counting once, (d,) float64."""
    layers, collate = find_decoder(model).layers, PrivacyPairCollator(processor)
    device = next(model.parameters()).device
    means = []
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = collate(rows[start : start + _BATCH_SIZE])
        is_target = (batch["labels"] != IGNORED).to(device, torch.float64)
        inputs = {name: value.to(device) for name, value in model_inputs(batch).items()}
        with capture_outputs(layers, [layer]) as outputs:
            last_logits(model, {**inputs, "use_cache": False}, 1)
        summed = (outputs[layer].double() * is_target[..., None]).sum(1)
        means.append(summed / is_target.sum(1, keepdim=True))
    return torch.cat(means).mean(0)
