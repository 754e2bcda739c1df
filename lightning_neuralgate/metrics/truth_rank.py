"""Truth rank as a torchmetrics class; `metrics.functional.truth_rank` has the formulas and their source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_neuralgate.metrics.base import PlottableMetric
from lightning_neuralgate.metrics.functional.truth_rank import _truth_rank_update


class TruthRank(PlottableMetric):
    """Truth rank: mean percentile (AUC) and mean exposure of true values among decoys of the same pattern.

    As input to `forward` and `update`: `truth_nlls` (Q,) and `decoy_nlls`, one list per secret. As output of `forward` (this
    batch) and `compute` (all so far): the scalars `auc`, in [0, 1], and `exposure`, in bits; NaN over zero secrets.

    Lightning resets only metrics that return a single scalar, so in `on_validation_epoch_end` of a LightningModule:

        self.log_dict(self.truth_rank.compute())
        self.truth_rank.reset()

    Args:
        kwargs: arguments of `torchmetrics.Metric`.

    Example:
        >>> from lightning_neuralgate.metrics import TruthRank
        >>> rank = TruthRank()
        >>> rank.update([1.0], [[2.0, 3.0, 4.0]])  # more likely than all three decoys
        >>> rank.update([9.0], [[2.0, 3.0, 4.0]])
        >>> rank.compute()
        {'auc': tensor(0.5000), 'exposure': tensor(1.)}
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0

    sums: Tensor
    secrets: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")
        self.add_state("secrets", torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, truth_nlls: Sequence[float] | Tensor, decoy_nlls: Sequence[Sequence[float] | Tensor]) -> None:
        """Add secrets.

        Args:
            truth_nlls: NLL of each true value, summed over its tokens.
            decoy_nlls: for each true value the NLLs of its decoys, at least one.

        Raises:
            DataFormatError: the numbers of true values and lists differ, a list is empty, or an NLL is NaN. The state does
                not change then.
        """
        sums, secrets = _truth_rank_update(truth_nlls, decoy_nlls)
        self._add_to_state("sums", sums)
        self._add_to_state("secrets", secrets)

    @override
    def compute(self) -> dict[str, Tensor]:
        """Return `auc` and `exposure` over all secrets so far, scalars; NaN over zero secrets."""
        auc, exposure = self.sums / self.secrets
        return {"auc": auc, "exposure": exposure}
