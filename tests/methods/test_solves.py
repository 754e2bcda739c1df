"""The closed forms equal their formulas, written with inverses and transposes, and keep what they promise to keep."""

from __future__ import annotations

import pytest
import torch

from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.methods.solves import alphaedit_change, memit_change

F, D, N = 12, 5, 4
IDENTITY = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 2, D)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def null_space(ordinary: torch.Tensor, share: float) -> torch.Tensor:
    """Return P of the keys of ordinary prompts, (m, f), by the shared artifact."""
    c = (ordinary.T @ ordinary / len(ordinary)).float()
    return InputCovariance({1: c}, IDENTITY, len(ordinary), 1).projector(1, share).matrix


def test_memit_equals_the_inverse() -> None:
    keys, residuals, benign, ordinary = drawn(N, F), drawn(N, D, seed=1), drawn(3, F, seed=2), drawn(40, F, seed=3)
    c = ordinary.T @ ordinary / 40
    solve = memit_change(keys, residuals, c, 15.0, benign, 7.0)
    k, r, b = keys.T, residuals.T, benign.T
    expected = r @ k.T @ torch.linalg.inv(15.0 * c + k @ k.T + 7.0 * b @ b.T)
    torch.testing.assert_close(solve.change, expected)
    assert solve.key_rank == N
    assert solve.condition == pytest.approx(float(torch.linalg.cond(15.0 * c + k @ k.T + 7.0 * b @ b.T)))


def test_memit_fits_its_keys_without_covariance_and_keeps_preserved_ones_more_with_more_weight() -> None:
    keys, residuals, benign = drawn(N, F), drawn(N, D, seed=1), drawn(3, F, seed=2)
    solves = [memit_change(keys, residuals, torch.eye(F), 1e-9, benign, weight) for weight in (0.0, 1.0, 1e6)]
    moved = [float((benign @ solve.change.T).norm()) for solve in solves]
    assert solves[0].fitted < 1e-6
    assert moved[0] > 1e-2 > 1e-4 > moved[2]
    assert moved[1] < moved[0]


def test_keys_that_are_all_the_same_show_in_the_rank() -> None:
    same = drawn(1, F).expand(N, F)
    assert memit_change(same, drawn(N, D, seed=1), torch.eye(F), 1.0, torch.zeros(0, F), 1.0).key_rank == 1


def test_alphaedit_equals_the_inverse() -> None:
    keys, residuals, earlier = drawn(N, F), drawn(N, D, seed=1), drawn(2, F, seed=2)
    p = null_space(drawn(6, F, seed=3), 0.9).double()
    solve = alphaedit_change(keys, residuals, p, earlier, l2=0.5)
    k, r, e = keys.T, residuals.T, earlier.T
    system = k @ k.T @ p + e @ e.T @ p + 0.5 * torch.eye(F, dtype=torch.float64)
    torch.testing.assert_close(solve.change, r @ k.T @ p @ torch.linalg.inv(system), atol=1e-6, rtol=1e-5)
    assert solve.condition == pytest.approx(float(torch.linalg.eigvals(system).abs().max()) / 0.5, rel=1e-4)


def test_alphaedit_leaves_the_outputs_of_preserved_keys() -> None:
    ordinary, keys = drawn(6, F, seed=3), drawn(N, F)
    p = null_space(ordinary, 1 - 1e-7)
    change = alphaedit_change(keys, drawn(N, D, seed=1), p, torch.zeros(0, F), l2=1e-3).change
    assert float((ordinary @ change.T).norm() / ordinary.norm()) < 1e-4
    assert float((keys @ change.T).norm()) > 0.1
