"""How a gate meets a gradient.

The weight gradient of the MLP output projection y = W x is a sum over token positions. At the positions of the scope a
row j contributes only where the gate is open; at all others it contributes whole:

    grad W[j] = sum_{t not in scope} g_t[j] x_t  +  gate[j] * sum_{t in scope} g_t[j] x_t

The split has to happen before the sum, so it lives in the autograd graph, where every strategy sees the same. Values stay
what they were, and so does the gradient that flows on to x; only behind the second factor of a low-rank adapter it is
gated, too, since the first factor shares its rows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.spans import last_position

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


class GatedLinear(torch.autograd.Function):
    """The backward pass of y = x W^T + b, with the gate in the gradient of W and b; y is handed in, not recomputed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, open_rows: Tensor, gate_input: bool
    ) -> Tensor:
        """Return `y` as it is.

        Args:
            ctx: autograd's context.
            x: input of the projection, (B, T, k).
            weight: (d, k).
            bias: (d,) or None.
            y: output of the projection, (B, T, d), detached.
            open_rows: (B, T, d) bool, False where a row's gradient is cut.
            gate_input: cut the gradient that flows on to x as well (for the second factor of a low-rank adapter).
        """
        ctx.save_for_backward(x, weight, open_rows)
        ctx.has_bias, ctx.gate_input = bias is not None, gate_input
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, open_rows = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        gated = torch.where(open_rows, grad, grad.new_zeros(()))
        grad_x = (gated if ctx.gate_input else grad) @ weight.to(grad.dtype) if needs_x else None
        grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = (gated.flatten(0, -2).T @ x.flatten(0, -2).to(grad.dtype)).to(weight.dtype)
        if needs_bias and ctx.has_bias:
            grad_bias = gated.flatten(0, -2).sum(0).to(weight.dtype)
        return (grad_x.to(x.dtype) if grad_x is not None else None), grad_weight, grad_bias, None, None, None


def gate_output(module: nn.Linear, x: Tensor, y: Tensor, open_rows: Tensor, gate_input: bool = False) -> Tensor:
    """`y = module(x)` with the gate in its backward pass. Shapes as in `GatedLinear`."""
    return GatedLinear.apply(x, module.weight, module.bias, y.detach(), open_rows, gate_input)


def gated_linears(projection: nn.Module, place: str) -> list[tuple[nn.Linear, bool]]:
    """The linear maps of a projection whose rows are the layer's dimensions and that train, each with `gate_input`.

    Args:
        projection: an `nn.Linear`, or one that peft has wrapped with LoRA.
        place: its path, for the error.

    Raises:
        UnsupportedSetupError: nothing there trains, or it is a kind whose rows cannot be gated.
    """
    found: list[tuple[nn.Linear, bool]] = []
    base = getattr(projection, "base_layer", projection)
    if not isinstance(base, nn.Linear):
        raise UnsupportedSetupError(
            f"{place} is a {type(base).__name__}; only nn.Linear projections (and LoRA on them) can be gated"
        )
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        found.append((base, False))
    if len(getattr(projection, "lora_magnitude_vector", ())):
        raise UnsupportedSetupError(f"{place} has a DoRA adapter; its normalization mixes rows. Use plain LoRA")
    for name, factor in getattr(projection, "lora_B", {}).items():
        if factor.weight.requires_grad:
            if not isinstance(factor, nn.Linear):
                raise UnsupportedSetupError(f"{place}: adapter '{name}' has a {type(factor).__name__} as lora_B")
            found.append((factor, True))
    if not found:
        raise UnsupportedSetupError(
            f"nothing at {place} trains, so there is nothing to gate: set requires_grad on its weight, "
            "put LoRA on it, or choose other layers"
        )
    return found
