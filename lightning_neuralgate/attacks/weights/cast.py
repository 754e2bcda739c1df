"""The weights are cast to half precision, as most users load a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from lightning_neuralgate.attacks.base import AttackNotApplicable, Context, WeightAttack
from lightning_neuralgate.attacks.weights.changing import changeable_model, restored


class Cast(WeightAttack):
    """Round all weights to a half-precision dtype and back.

    Computation stays in the model's dtype: it is the rounding of the weights that can undo small changes of an edit.

    The further figure `weights_changed` is the share of weights that the dtype cannot represent.

    Args:
        dtype: "bfloat16" or "float16".
    """

    def __init__(self, dtype: Literal["bfloat16", "float16"]) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.name = f"cast_{dtype}"
        self.suite = "quick" if dtype == "bfloat16" else "full"
        self.clause = f"when the weights are cast to {dtype}"

    @contextmanager
    def changed(self, model: Any, processor: Any, context: Context) -> Iterator[Mapping[str, float]]:
        """Round the weights.

        Raises:
            AttackNotApplicable: see `changeable_model`, or no weight changes.
        """
        changed = total = 0
        with restored() as keep:
            for parameter in changeable_model(model).parameters():
                rounded = parameter.detach().to(self.dtype).to(parameter.dtype)
                difference = int((rounded != parameter).sum())
                if difference:
                    keep(parameter)
                    parameter.detach().copy_(rounded)
                changed, total = changed + difference, total + parameter.numel()
            if not changed:
                raise AttackNotApplicable("casting changes none of the weights")
            yield {"weights_changed": changed / total}
