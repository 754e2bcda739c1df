"""How a gate meets a gradient.

The weight gradient of the MLP output projection y = W x is a sum over token positions. At the positions of the scope a
row j contributes only as far as the gate is open; at all others it contributes whole:

    grad W[j] = sum_{t not in scope} g_t[j] x_t  +  gate[j] * sum_{t in scope} g_t[j] x_t

The split has to happen before the sum, so it lives in the autograd graph, where every strategy sees the same. Values stay
what they were. With full weights the gradient that flows on to x stays what it was, too; an adapter is gated as a whole,
since its parts share the rows: what flows through it is gated on its way in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.subjects import last_position

Scope = Literal["subject_last", "subject", "from_subject", "all"]
SCOPES: tuple[Scope, ...] = ("subject_last", "subject", "from_subject", "all")


def scope_positions(scope: Scope, subject_mask: Tensor) -> Tensor:
    """Positions at which the gate applies, (B, T) bool, from the mask of the subject's tokens.

    >>> mask = torch.tensor([[False, True, True, False]])
    >>> scope_positions("subject_last", mask), scope_positions("from_subject", mask)
    (tensor([[False, False,  True, False]]), tensor([[False,  True,  True,  True]]))
    """
    if scope == "subject_last":
        return last_position(subject_mask)
    if scope == "subject":
        return subject_mask
    if scope == "from_subject":
        return subject_mask.cumsum(-1) > 0
    return torch.ones_like(subject_mask)


def gated_gradient(grad: Tensor, positions: Tensor, gate_values: Tensor) -> Tensor:
    """The gradient of a projection's output behind the gate.

    Args:
        grad: (B, T, d).
        positions: (B, T) bool, where the gate applies.
        gate_values: (B, d), how far it is open for each sample: bool, or float in [0, 1].

    >>> gated_gradient(torch.ones(1, 2, 2), torch.tensor([[True, False]]), torch.tensor([[False, True]]))
    tensor([[[0., 1.],
             [1., 1.]]])
    """
    where, gate_values = positions[:, :, None], gate_values[:, None, :]
    if gate_values.dtype == torch.bool:
        return torch.where(where & ~gate_values, grad.new_zeros(()), grad)
    return torch.where(where, grad * gate_values.to(grad.dtype), grad)


class GatedLinear(torch.autograd.Function):
    """The backward pass of y = x W^T + b, with the gate in the gradient of W and b; y is handed in, not recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        positions: Tensor,
        gate_values: Tensor,
        meter: GradientMeter | None,
    ) -> Tensor:
        """Return `y` as it is.

        Args:
            ctx: autograd's context.
            x: input of the projection, (B, T, k).
            weight: (d, k).
            bias: (d,) or None.
            y: output of the projection, (B, T, d), detached.
            positions: as in `gated_gradient`.
            gate_values: as in `gated_gradient`.
            meter: sees the gradient, if there is one.
        """
        ctx.save_for_backward(x, weight, positions, gate_values)
        ctx.has_bias, ctx.meter = bias is not None, meter
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, positions, gate_values = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        whole, gated = grad.flatten(0, -2), gated_gradient(grad, positions, gate_values).flatten(0, -2)
        if ctx.meter is not None:
            ctx.meter.measure(x.flatten(0, -2), whole, gated)
        grad_x = (grad @ weight.to(grad.dtype)).to(x.dtype) if needs_x else None
        grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = (gated.T @ x.flatten(0, -2).to(grad.dtype)).to(weight.dtype)
        if needs_bias and ctx.has_bias:
            grad_bias = gated.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None


class GatedOutput(torch.autograd.Function):
    """The identity, with the gate in its gradient: everything that made the output sees the gated gradient alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, positions: Tensor, gate_values: Tensor, meter: GradientMeter | None
    ) -> Tensor:
        """Return `y`, (B, T, d), as it is; `x`, what it was made of, is for the meter. See `GatedLinear`."""
        ctx.save_for_backward(positions, gate_values, *([] if meter is None else [x.detach()]))
        ctx.meter = meter
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions, gate_values, *x = ctx.saved_tensors
        gated = gated_gradient(grad, positions, gate_values)
        if ctx.meter is not None:
            ctx.meter.measure(x[0].flatten(0, -2), grad.flatten(0, -2), gated.flatten(0, -2))
        return None, gated, None, None, None


class GradientMeter:
    """How much of a weight gradient the gate lets through in one backward pass.

    For an adapter it is the gradient of what the adapter stands for, a matrix from the input of its last part to the
    layer's dimensions. The norms of what passes and of what is blocked need not add up: both may point anywhere.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was seen: a new forward pass."""
        self._whole: Tensor | None = None
        self._gated: Tensor | None = None

    def measure(self, x: Tensor, whole: Tensor, gated: Tensor) -> None:
        """Add a part of the gradient, given the inputs (n, k) and the output's gradient (n, d) before and behind the gate."""
        x = x.to(whole.dtype)
        before, after = (whole.T @ x).float(), (gated.T @ x).float()
        self._whole = before if self._whole is None else self._whole + before
        self._gated = after if self._gated is None else self._gated + after

    @property
    def passed(self) -> float | None:
        """Norm of the gradient behind the gate, over that before it; None before a backward pass, or without a gradient."""
        return self._share(self._gated)

    @property
    def blocked(self) -> float | None:
        """Norm of what the gate takes away, over that of the gradient before it; None as for `passed`."""
        return self._share(None if self._gated is None or self._whole is None else self._whole - self._gated)

    def _share(self, part: Tensor | None) -> float | None:
        if self._whole is None or part is None:
            return None
        norm = float(self._whole.norm())
        return float(part.norm()) / norm if norm > 0 else None


@dataclass(frozen=True)
class GatedPlace:
    """A module whose output has the layer's dimensions, and what trains in it.

    Attributes:
        module: the projection itself, or the part of an adapter that adds to its output.
        rows: the parameters of which each row (or entry, for a vector) belongs to one dimension, as module and name.
        adapter: whether all that lies before the output is gated with it.
    """

    module: nn.Module
    rows: tuple[tuple[nn.Module, str], ...]
    adapter: bool

    def gate(
        self, x: Tensor, y: Tensor, positions: Tensor, gate_values: Tensor, meter: GradientMeter | None = None
    ) -> Tensor:
        """`y`, which the module made of `x`, with the gate in its backward pass."""
        if self.adapter:
            return GatedOutput.apply(x, y, positions, gate_values, meter)
        return GatedLinear.apply(x, self.module.weight, self.module.bias, y.detach(), positions, gate_values, meter)


def gated_places(projection: nn.Module, place: str) -> list[GatedPlace]:
    """Where a projection has to be gated: its own weight and bias if they train, and its LoRA or DoRA adapters.

    Args:
        projection: an `nn.Linear`, or one that peft has wrapped.
        place: its path, for the error.

    Raises:
        UnsupportedSetupError: nothing there trains, or it is a kind whose rows cannot be gated.
    """
    found: list[GatedPlace] = []
    base = getattr(projection, "base_layer", projection)
    if not isinstance(base, nn.Linear):
        raise UnsupportedSetupError(
            f"{place} is a {type(base).__name__}; only nn.Linear projections (and LoRA or DoRA on them) can be gated"
        )
    if rows := _trained(base):
        found.append(GatedPlace(base, rows, adapter=False))
    magnitudes = getattr(projection, "lora_magnitude_vector", {})
    for name, factor in getattr(projection, "lora_B", {}).items():
        if not isinstance(factor, nn.Linear):
            raise UnsupportedSetupError(f"{place}: adapter '{name}' has a {type(factor).__name__} as lora_B")
        # DoRA's magnitude scales the base's output, too, so its gate sits behind both
        last = magnitudes[name] if name in magnitudes else factor  # noqa: SIM401 - a ModuleDict has no get
        if rows := _trained(factor) + (_trained(last) if last is not factor else ()):
            found.append(GatedPlace(last, rows, adapter=True))
    if not found:
        raise UnsupportedSetupError(
            f"nothing at {place} trains, so there is nothing to gate: set requires_grad on its weight, "
            "put LoRA on it, or choose other layers"
        )
    return found


def _trained(module: nn.Module) -> tuple[tuple[nn.Module, str], ...]:
    return tuple((module, name) for name, value in module.named_parameters(recurse=False) if value.requires_grad)
