"""Row rules: which rows of a projection a sample may train at the gated positions.

A rule is one object with one method, so a rule of your own is one class. `LocatedRows` is the paper's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.neural_gate import DEFAULT_TAU, NeuralGate
from lightning_neuralgate.gate.subjects import GatedBatch

Observer = Callable[[Tensor, Tensor], None]
"""A function of a projection's input, (B, T, k), and the gradient of its output, (B, T, d), called in the backward pass."""


class RowRule(ABC):
    """Decides for each sample of a batch which rows of a projection its gradient reaches at the gated positions.

    Attributes:
        supports_layouts: whether all rows about one record and subject have the same values, and the rule observes nothing,
            so that they may share a prefix (`BatchLayout`). Otherwise full rows are run.
    """

    supports_layouts = False

    @abstractmethod
    def values(self, layer: int, name: str, batch: GatedBatch, size: int, device: torch.device) -> Tensor:
        """Return the gate values of a forward pass, (B, d), bool or float in [0, 1].

        Args:
            layer: index of the decoder layer.
            name: name of the projection, or of the adapter on it.
            batch: subjects and content of the batch.
            size: d.
            device: where the values are needed.
        """

    def observer(self, name: str, batch: GatedBatch) -> Observer | None:
        """Return a function to be called in the backward pass of this forward pass; None if the rule learns nothing."""
        return None

    def before_step(self) -> None:  # noqa: B027  only rules that learn need it
        """Take notice that all backward passes of an optimizer step have run, on every process."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` returned."""

    def __str__(self) -> str:
        return type(self).__name__


class LocatedRows(RowRule):
    """The paper's rule: rows that the locator found active for the row's subject. Rows without a subject reach all.

    Args:
        gate: the gate.
        tau: rows with an activity rate above tau are open.
        soft: use the activity rates themselves as values.
    """

    supports_layouts = True

    def __init__(self, gate: NeuralGate, tau: float = DEFAULT_TAU, soft: bool = False) -> None:
        if not 0.0 <= tau <= 1.0:
            raise ValueError(f"tau must lie in [0, 1], got {tau}")
        self.gate, self.tau, self.soft = gate, tau, soft
        self._values: dict[int, dict[str, Tensor]] = {}

    def values(self, layer: int, name: str, batch: GatedBatch, size: int, device: torch.device) -> Tensor:
        gates = self._values.get(layer)
        if gates is None or next(iter(gates.values())).device != device:
            gates = self._values[layer] = {s: self._of_subject(s, layer).to(device) for s in self.gate.subjects}
        return batch.gate_values(gates)

    def _of_subject(self, subject: str, layer: int) -> Tensor:
        return self.gate.rates(subject, layer) if self.soft else self.gate.mask(subject, layer, self.tau)

    def __str__(self) -> str:
        return "rates" if self.soft else f"rates above {self.tau}"


class ConflictRows(RowRule):
    """Close, for sensitive samples, the rows in which their gradient opposes that of benign and retention samples.

    For each row of the projection, the gradients of the sensitive and of all other samples are averaged over optimizer steps,
    m <- decay * m + (1 - decay) * g. A row is closed for sensitive samples while the cosine of the two averages is negative,
    where a step on the one loss raises the other. Before the first step everything is open. Where sensitive and benign losses
    differ in weight, the weights do not matter, since only the sign of a product counts.

    The gradients are taken apart inside the backward pass of the projection. This costs one more product as large as that of
    its weight gradient, and two float32 tensors of the size of the weight, or four during a step. Processes add up their
    gradients once per step (all-reduce of two such tensors), so that all close the same rows. Checkpoints hold the averages.

    Args:
        decay: weight of the past in the averages.
        roles: a function of the batch that returns the role of each row, "sensitive" or another. Default: the batch's `role`.
    """

    def __init__(self, decay: float = 0.9, roles: Callable[[Mapping[str, Any]], Sequence[str]] | None = None) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay, self.roles = decay, roles
        self._sums: dict[str, list[Tensor]] = {}
        self._means: dict[str, list[Tensor]] = {}
        self._open: dict[str, Tensor] = {}

    def values(self, layer: int, name: str, batch: GatedBatch, size: int, device: torch.device) -> Tensor:
        is_sensitive = torch.tensor(self._sensitive(batch), device=device)
        if name in self._means and name not in self._open:
            self._open[name] = ~conflicting_rows(*self._means[name])
        if name not in self._open:
            return torch.ones(len(is_sensitive), size, dtype=torch.bool, device=device)
        return self._open[name].to(device) | ~is_sensitive[:, None]

    def observer(self, name: str, batch: GatedBatch) -> Observer:
        sensitive = self._sensitive(batch)

        def observe(x: Tensor, grad: Tensor) -> None:
            parts = []
            for role in (True, False):
                rows = [row for row, value in enumerate(sensitive) if value == role]
                g, inputs = grad[rows].flatten(0, -2), x[rows].flatten(0, -2).to(grad.dtype)
                parts.append((g.T @ inputs).float())
            if name in self._sums:
                parts = [total + part for total, part in zip(self._sums[name], parts, strict=True)]
            self._sums[name] = parts

        return observe

    def before_step(self) -> None:
        for name, sums in sorted(self._sums.items()):
            if dist.is_available() and dist.is_initialized():
                for total in sums:
                    dist.all_reduce(total)
            # under a GradScaler, gradients may overflow
            is_finite = torch.stack([total.isfinite().all() for total in sums]).all()
            means = self._means.get(name) or [torch.zeros_like(total) for total in sums]
            self._means[name] = [
                torch.where(
                    is_finite, self.decay * mean.to(total.device) + (1 - self.decay) * total, mean.to(total.device)
                )
                for mean, total in zip(means, sums, strict=True)
            ]
            self._open.pop(name, None)
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        return {"means": {name: [mean.cpu() for mean in means] for name, means in self._means.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._means = {name: list(means) for name, means in state.get("means", {}).items()}
        self._sums, self._open = {}, {}

    def _sensitive(self, batch: GatedBatch) -> list[bool]:
        roles = self.roles(batch.content) if self.roles is not None else batch.content.get("role")
        if roles is None or len(roles) != len(batch.subjects):
            raise UnsupportedSetupError(
                "ConflictRows needs the role of each row, as in the batches of PrivacyPairDataModule, but found "
                f"{roles!r} for {len(batch.subjects)} rows: pass ConflictRows(roles=function), a function of the batch"
            )
        return [role == "sensitive" for role in roles]

    def __str__(self) -> str:
        return f"conflict (decay {self.decay})"


def conflicting_rows(first: Tensor, second: Tensor) -> Tensor:
    """Return the rows of two gradients that point against each other, (d, k) and (d, k) -> (d,) bool.

    >>> conflicting_rows(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[-1.0, 5.0], [1.0, 0.5]]))
    tensor([ True, False])
    """
    return (first * second).sum(1) < 0
