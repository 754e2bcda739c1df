"""The closed forms of MEMIT and AlphaEdit, in float64, with rank and condition of what was solved.

Rows are samples here: keys K (n, f) and residuals R (n, d); a change D (d, f) moves the output of key k by D k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Solve(NamedTuple):
    """A change of one projection.

    Attributes:
        change: D, (d, f) float64.
        key_rank: rank of the keys.
        condition: condition number of the solved matrix.
        fitted: |K D^T - R| / |R|, 0 where every key gets its residual.
        null_rank: rank of the projection on the null space; None without one.
    """

    change: Tensor
    key_rank: int
    condition: float
    fitted: float
    null_rank: float | None = None

    def report(self, layer: int) -> dict[str, float]:
        """Return the figures under names with the layer."""
        return {f"layer_{layer}_{name}": float(v) for name, v in self._asdict().items() if isinstance(v, (int, float))}


def memit_change(
    keys: Tensor, residuals: Tensor, covariance: Tensor, strength: float, preserved: Tensor, weight: float
) -> Solve:
    """Solve D = R^T K (strength C + K^T K + weight K_b^T K_b)^-1.

    Args:
        keys: K, (n, f).
        residuals: R, (n, d).
        covariance: C = E[k k^T] of ordinary inputs, (f, f).
        strength: lambda of C.
        preserved: K_b, keys whose outputs are to stay, (m, f); m may be 0.
        weight: of the preserved keys.
    """
    keys, residuals, covariance, preserved = (x.double() for x in (keys, residuals, covariance, preserved))
    system = strength * (covariance + covariance.T) / 2 + keys.T @ keys + weight * preserved.T @ preserved
    change = torch.linalg.solve(system, keys.T @ residuals).T
    energies = torch.linalg.eigvalsh(system)
    return _solve(
        change, keys, residuals, float(energies[-1] / energies[0].clamp(min=torch.finfo(energies.dtype).tiny))
    )


def alphaedit_change(keys: Tensor, residuals: Tensor, projection: Tensor, earlier: Tensor, l2: float = 1.0) -> Solve:
    """Solve D = R^T K P ((K^T K + K_p^T K_p) P + l2 I)^-1, which lies in the range of P.

    The equal symmetric form with P (K^T K + K_p^T K_p) P + l2 I is solved: P (M P + l2 I)^-1 = P (P M P + l2 I)^-1.

    Args:
        keys: K, (n, f).
        residuals: R, (n, d).
        projection: P, the projection on the null space of the preserved keys, (f, f).
        earlier: K_p, keys of earlier edits or others whose outputs are to stay, (m, f); m may be 0.
        l2: weight of the change's norm.
    """
    keys, residuals, projection, earlier = (x.double() for x in (keys, residuals, projection, earlier))
    projected = torch.cat([keys, earlier]) @ projection
    system = projected.T @ projected + l2 * torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    change = torch.linalg.solve(system, (keys @ projection).T @ residuals).T @ projection
    largest = torch.linalg.eigvalsh(projected @ projected.T)[-1]  # of the other eigenvalues the least is l2
    return _solve(change, keys @ projection, residuals, float((largest + l2) / l2))


def _solve(change: Tensor, keys: Tensor, residuals: Tensor, condition: float) -> Solve:
    missed = (keys @ change.T - residuals).norm() / residuals.norm().clamp(min=torch.finfo(residuals.dtype).tiny)
    return Solve(change, int(torch.linalg.matrix_rank(keys)), condition, float(missed))
