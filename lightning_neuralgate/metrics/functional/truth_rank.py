"""Truth rank: is the true value more likely than decoys of the same pattern, under a model's own probabilities?

The values are ranked by their negative log-likelihood (NLL); the truth has rank 1 if it is the most likely one. Ties count as
half, so that a model that gives all values the same probability has the middle rank. With N decoys,

    rank = 1 + decoys that are more likely + ties / 2
    percentile = (decoys that are less likely + ties / 2) / N = (N + 1 - rank) / N
    exposure = log2(N + 1) - log2(rank), in bits

The mean percentile over secrets is an AUC: 1/2 if the model knows nothing of the truth, 1 if it always prefers the truth.
Exposure is the measure of Carlini et al. 2019, "The Secret Sharer" (arXiv 1802.08232), with drawn decoys in place of all
possible values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_neuralgate.errors import DataFormatError


class TruthRankScores(NamedTuple):
    """Rank of a true value among N decoys.

    Attributes:
        rank: 1 (most likely) to N + 1; a half where there are ties.
        percentile: share of decoys that are less likely, in [0, 1].
        exposure: bits, from 0 to log2(N + 1).
    """

    rank: float
    percentile: float
    exposure: float


def truth_rank(truth_nll: float, decoy_nlls: Sequence[float] | Tensor) -> TruthRankScores:
    """Rank a true value among decoys by their NLL.

    Args:
        truth_nll: NLL of the true value, summed over its tokens.
        decoy_nlls: NLL of each decoy, (N,).

    Raises:
        DataFormatError: there is no decoy, or an NLL is NaN.

    Example:
        >>> truth_rank(2.0, [1.0, 2.0, 5.0])  # one is more likely, one ties
        TruthRankScores(rank=2.5, percentile=0.5, exposure=0.67...)
    """
    truth, decoys = float(truth_nll), [float(nll) for nll in decoy_nlls]
    if not decoys:
        raise DataFormatError("the true value has no decoys to be ranked among; give at least one")
    if any(map(math.isnan, [truth, *decoys])):
        raise DataFormatError("the NLL of a value is not a number, so the true one has no rank")
    more_likely, ties = sum(nll < truth for nll in decoys), sum(nll == truth for nll in decoys)
    rank = 1 + more_likely + ties / 2
    count = len(decoys)
    return TruthRankScores(rank, (count + 1 - rank) / count, math.log2(count + 1) - math.log2(rank))


def _truth_rank_update(
    truth_nlls: Sequence[float] | Tensor, decoy_nlls: Sequence[Sequence[float] | Tensor]
) -> tuple[Tensor, Tensor]:
    """Sum percentile and exposure over secrets, (2,), and count the secrets, a scalar.

    Raises:
        DataFormatError: the numbers of true values and lists of decoys differ; see also `truth_rank`.
    """
    if len(truth_nlls) != len(decoy_nlls):
        raise DataFormatError(
            f"there are {len(truth_nlls)} true values and {len(decoy_nlls)} lists of decoys; give one each"
        )
    scores = [truth_rank(float(truth), decoys) for truth, decoys in zip(truth_nlls, decoy_nlls, strict=True)]
    sums = [math.fsum(score.percentile for score in scores), math.fsum(score.exposure for score in scores)]
    return torch.tensor(sums), torch.tensor(len(scores))
