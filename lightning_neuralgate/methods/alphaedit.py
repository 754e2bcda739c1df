"""AlphaEdit: MEMIT's change, in the null space of preserved keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_neuralgate.gate.keys import InputCovariance, check_strength
from lightning_neuralgate.methods.memit import ClosedForm
from lightning_neuralgate.methods.solves import Solve, alphaedit_change


@dataclass(frozen=True)
class AlphaEdit(ClosedForm):
    """The change that is closest to the values and does not answer to keys of ordinary prompts at all.

        D = R K^T P (K K^T P + K_p K_p^T P + l2 I)^-1

    P projects away from the directions that hold a share of the energy of ordinary inputs (`InputCovariance.projector`). K_p
    are the keys of the benign twins.

    Owner: Fang et al. (arXiv 2410.02355): P from eigenvalues of C below 0.02, l2 = 1, layers 4 to 8, K_p of earlier edits;
    value search with lr 0.1, decay 0.5, clamp 0.75.

    Changed: all requests are one batch, so that there are no earlier edits, and K_p are benign twins. C is as in `MEMIT`.

    Trap: the threshold 0.02 depends on the scale of the model; on another one P may have rank 0 or f. A share of the energy
    does not, and the report has the rank of P, which should be 30 to 80 % of the input directions.

    Attributes:
        share: share of the energy that is kept free of changes, in (0, 1).
        l2: weight of the change's norm.
        preserve: weight of the benign twins among the preserved keys.
    """

    name: ClassVar[str] = "alphaedit"
    tries: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"share": 0.8}, {"share": 0.95}, {"share": 0.99}, {"share": 0.95, "key": "last"},
    )  # fmt: skip

    value_lr: float = 0.1
    clamp: float = 0.75
    share: float = 0.95
    l2: float = 1.0
    preserve: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.share, None)
        if not self.l2 > 0:
            raise ValueError(f"l2 must be above 0, got {self.l2}")

    @override
    def change(self, covariance: InputCovariance, layer: int, keys: Tensor, residuals: Tensor, benign: Tensor) -> Solve:
        projector = covariance.projector(layer, self.share, device=keys.device).to(keys.device)
        solve = alphaedit_change(keys, residuals, projector.matrix, self.preserve**0.5 * benign, self.l2)
        return solve._replace(null_rank=projector.size - projector.removed)
