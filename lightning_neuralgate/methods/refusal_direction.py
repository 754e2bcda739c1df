"""The refusal direction, added to the output of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from typing_extensions import override

from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.methods.base import Method, Tier
from lightning_neuralgate.methods.data import MethodData
from lightning_neuralgate.methods.states import pooled_states
from lightning_neuralgate.methods.steering import DirectionSteering


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
            pooled_states(model, data.processor, rows, [data.layer], "target")[data.layer].mean(0)
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
