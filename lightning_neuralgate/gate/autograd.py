"""Gradient masking for the MLP output projection.

The weight gradient of the projection y = W x is a sum over token positions. At gated positions, the contribution to row j is
multiplied by the gate; open positions contribute in full, and closed ones nothing:

    grad W[j] = sum_{t open} g_t[j] x_t  +  gate[j] * sum_{t gated} g_t[j] x_t

The sums have to be separated before they are added up, so the gate is part of the autograd graph, where it works the
same under every supported strategy (docs/trainer.md). Forward values do not change. With full weights, the gradient with
respect to x does not change either. An adapter is gated as a unit, since its factors are shared by all rows: the gradient is
masked where it enters the adapter.

A mask of columns, which belong to the projection's input units, is applied to the whole gradient of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.positions import Positions


@dataclass(frozen=True)
class GradientMask:
    """What passes of a projection's gradient in one forward pass.

    Attributes:
        positions: the gated and the closed tokens, (B, T) each.
        gate_values: (B, d), the gate of each sample: bool, or float in [0, 1]. It applies at the gated positions.
        columns: (k,) bool, the open input units of the projection; None: all.
        observe: called in the backward pass with the projection's input, (B, T, k), and the gradient of its output,
            (B, T, d), which is 0 at closed positions and not yet gated.
    """

    positions: Positions
    gate_values: Tensor
    columns: Tensor | None = None
    observe: Callable[[Tensor, Tensor], None] | None = None

    def apply(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the part of the output's gradient, (B, T, d), that passes."""
        if self.positions.closed is not None:
            grad = torch.where(self.positions.closed[:, :, None], grad.new_zeros(()), grad)
        if self.observe is not None:
            self.observe(x, grad)
        return grad if self.positions.gated is None else gated_gradient(grad, self.positions.gated, self.gate_values)

    def open_columns(self, grad_weight: Tensor) -> Tensor:
        """Return the weight's gradient, (d, k), with 0 in closed columns."""
        return (
            grad_weight if self.columns is None else torch.where(self.columns, grad_weight, grad_weight.new_zeros(()))
        )


def gated_gradient(grad: Tensor, positions: Tensor, gate_values: Tensor) -> Tensor:
    """Apply the gate to the gradient of a projection's output.

    Args:
        grad: (B, T, d).
        positions: (B, T) bool, where the gate applies.
        gate_values: (B, d), the gate of each sample's subject: bool, or float in [0, 1].

    >>> gated_gradient(torch.ones(1, 2, 2), torch.tensor([[True, False]]), torch.tensor([[False, True]]))
    tensor([[[0., 1.],
             [1., 1.]]])
    """
    where, gate_values = positions[:, :, None], gate_values[:, None, :]
    if gate_values.dtype == torch.bool:
        return torch.where(where & ~gate_values, grad.new_zeros(()), grad)
    return torch.where(where, grad * gate_values.to(grad.dtype), grad)


class GatedLinear(torch.autograd.Function):
    """y = x W^T + b with the gate in the gradients of W and b. The output is passed in, not computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        mask: GradientMask,
        meter: GradientMeter | None,
    ) -> Tensor:
        """Return `y` unchanged.

        Args:
            ctx: autograd's context.
            x: input of the projection, (B, T, k).
            weight: (d, k).
            bias: (d,) or None.
            y: output of the projection, (B, T, d), detached.
            mask: what passes of the gradient.
            meter: measures the gradient before and after the gate; None to skip that.
        """
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.mask, ctx.meter = bias is not None, mask, meter
        return y.view_as(y)  # autograd needs an output that is not the input itself

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ungated, gated = grad.flatten(0, -2), ctx.mask.apply(x, grad).flatten(0, -2)
        if ctx.meter is not None:
            ctx.meter.update(x.flatten(0, -2), ungated, gated, ctx.mask)
        grad_x = (grad @ weight.to(grad.dtype)).to(x.dtype) if needs_x else None
        grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = ctx.mask.open_columns(gated.T @ x.flatten(0, -2).to(grad.dtype)).to(weight.dtype)
        if needs_bias and ctx.has_bias:
            grad_bias = gated.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None


class GatedOutput(torch.autograd.Function):
    """The identity with the gate in its gradient, so that everything that computed the output gets the gated gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mask: GradientMask, meter: GradientMeter | None) -> Tensor:
        """Return `y`, (B, T, d), unchanged. `x`, from which it was computed, is only measured; see `GatedLinear`."""
        is_measured = meter is not None or mask.observe is not None
        ctx.save_for_backward(*([x.detach()] if is_measured else []))
        ctx.mask, ctx.meter = mask, meter
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0] if ctx.saved_tensors else grad
        gated = ctx.mask.apply(x, grad)
        if ctx.meter is not None:
            ctx.meter.update(x.flatten(0, -2), grad.flatten(0, -2), gated.flatten(0, -2), ctx.mask)
        return None, gated, None, None


class GradientMeter:
    """Measure how much of a weight gradient passes the gate in one backward pass.

    For an adapter this is the gradient of the matrix that maps the input of the adapter's last factor to the layer's
    dimensions. `passed` is ||gated|| / ||ungated|| and `blocked` is ||ungated - gated|| / ||ungated||, of Frobenius norms.
    They need not add up to 1, since the two parts are not orthogonal.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard the accumulated gradients."""
        self._ungated: Tensor | None = None
        self._gated: Tensor | None = None

    def update(self, x: Tensor, ungated: Tensor, gated: Tensor, mask: GradientMask) -> None:
        """Add a part of the gradient.

        Args:
            x: inputs of the projection, (n, k).
            ungated: gradient of the output before the gate, (n, d).
            gated: gradient of the output after the gate, (n, d).
            mask: its closed columns are added to the blocked part.
        """
        x = x.to(ungated.dtype)
        before, after = (ungated.T @ x).float(), mask.open_columns(gated.T @ x).float()
        self._ungated = before if self._ungated is None else self._ungated + before
        self._gated = after if self._gated is None else self._gated + after

    @property
    def passed(self) -> float | None:
        """||gated|| / ||ungated||; None before a backward pass or if there is no gradient."""
        return self._relative_norm(self._gated)

    @property
    def blocked(self) -> float | None:
        """||ungated - gated|| / ||ungated||; None as for `passed`."""
        return self._relative_norm(
            None if self._gated is None or self._ungated is None else self._ungated - self._gated
        )

    def _relative_norm(self, part: Tensor | None) -> float | None:
        if self._ungated is None or part is None:
            return None
        norm = float(self._ungated.norm())
        return float(part.norm()) / norm if norm > 0 else None


@dataclass(frozen=True)
class GatedModule:
    """A module whose output has the layer's dimensions, and the parameters that the gate masks through it.

    Attributes:
        module: the projection, or the last factor of an adapter on it.
        parameters: the trained parameters of which each row (or entry, for a vector) belongs to one dimension, each as the
            module that holds it and its name there, since a sharding strategy may replace the tensor.
        is_adapter: True: mask the gradient of the module's output (adapters). False: mask only the gradients of weight and
            bias.
    """

    module: nn.Module
    parameters: tuple[tuple[nn.Module, str], ...]
    is_adapter: bool

    def gate(self, x: Tensor, y: Tensor, mask: GradientMask, meter: GradientMeter | None = None) -> Tensor:
        """Return `y`, which the module computed from `x`, with the gate in its backward pass."""
        if self.is_adapter:
            return GatedOutput.apply(x, y, mask, meter)
        return GatedLinear.apply(x, self.module.weight, self.module.bias, y.detach(), mask, meter)


def gated_modules(projection: nn.Module, path: str) -> list[GatedModule]:
    """Find what has to be gated in a projection: its weight and bias if they train, and LoRA and DoRA adapters on it.

    Args:
        projection: an `nn.Linear`, or one that peft has wrapped.
        path: its path in the model, for the error message.

    Raises:
        UnsupportedSetupError: nothing in the projection trains, or it is of a kind whose rows cannot be gated.
    """
    found: list[GatedModule] = []
    base = getattr(projection, "base_layer", projection)
    if not isinstance(base, nn.Linear):
        raise UnsupportedSetupError(
            f"{path} is a {type(base).__name__}; only nn.Linear projections (and LoRA or DoRA on them) can be gated"
        )
    if parameters := _trained(base):
        found.append(GatedModule(base, parameters, is_adapter=False))
    magnitudes = getattr(projection, "lora_magnitude_vector", {})
    for name, factor in getattr(projection, "lora_B", {}).items():
        if not isinstance(factor, nn.Linear):
            raise UnsupportedSetupError(f"{path}: adapter '{name}' has a {type(factor).__name__} as lora_B")
        # DoRA's magnitude scales the output of the base layer too, so it is the last module of the adapter
        last = magnitudes[name] if name in magnitudes else factor  # noqa: SIM401 - a ModuleDict has no get
        if parameters := _trained(factor) + (_trained(last) if last is not factor else ()):
            found.append(GatedModule(last, parameters, is_adapter=True))
    if not found:
        raise UnsupportedSetupError(
            f"nothing at {path} trains, so there is nothing to gate: set requires_grad on its weight, "
            "put LoRA on it, or choose other layers"
        )
    return found


def _trained(module: nn.Module) -> tuple[tuple[nn.Module, str], ...]:
    return tuple((module, name) for name, value in module.named_parameters(recurse=False) if value.requires_grad)
