"""Part of the edit is undone: the weights lie between the unedited and the edited ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_neuralgate.attacks.base import AttackNotApplicable, Context, WeightAttack
from lightning_neuralgate.attacks.weights.changing import changeable_model, load_unedited, restored, unedited_values


class Interpolated(WeightAttack):
    """Keep a share of the edit's change: W0 + share * (W - W0), with the unedited weights W0.

    It shows the edit's margin, as merging an edited with an unedited model does.

    Args:
        share: share that is kept; 1 is the edited model.
    """

    suite = "full"

    def __init__(self, share: float) -> None:
        self.share = share
        self.name = f"interpolated_{share:.0%}".removesuffix("%")
        self.clause = f"when {share:.0%} of the edit's change of the weights is kept"

    @contextmanager
    def changed(self, model: Any, processor: Any, context: Context) -> Iterator[Mapping[str, float]]:
        """Interpolate the weights.

        Raises:
            AttackNotApplicable: see `changeable_model`, `load_unedited` and `unedited_values`, or no weight is edited.
        """
        model = changeable_model(model)
        unedited = unedited_values(model, load_unedited(context))
        if not unedited:
            raise AttackNotApplicable("the weights are those of the unedited model")
        parameters = dict(model.named_parameters())
        with restored() as keep:
            for name, base in unedited.items():
                weight = parameters[name].detach()
                base = base.to(weight.device).float()
                keep(parameters[name])
                weight.copy_(base + self.share * (weight.float() - base))
            yield {}
