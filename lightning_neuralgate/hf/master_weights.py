"""Float32 master weights of single linear layers in a model in half precision.

The steps of an edit are smaller than the spacing of bfloat16 and float16 numbers, so they would be rounded away. With master
weights, one layer keeps its weight in float32 and rounds a copy in each forward pass; the rest of the model stays as it is:

    y = x round(W)^T        dL/dW = dL/d round(W)

round(W) are the values that a checkpoint in half precision holds, so a model computes what its saved copy will compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.hf.decoder import Projection, find_decoder

HALF_PRECISION = (torch.bfloat16, torch.float16)


class MasterLinear(nn.Linear):
    """A linear layer with weight and bias in float32 that rounds them to `stored_dtype` in each forward pass.

    `add_masters` turns an `nn.Linear` into one, with the same parameter objects. In a quantized model it takes the place of a
    quantized layer; `stored_dtype` is then the checkpoint's, and may be float32.
    """

    stored_dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, (..., d), for inputs in any type, (..., k)."""
        bias = None if self.bias is None else self._rounded(self.bias, input.dtype)
        return F.linear(input, self._rounded(self.weight, input.dtype), bias)

    def _rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        rounded = value.to(self.stored_dtype)
        if dtype != torch.float32:
            return rounded.to(dtype)
        return value + (rounded.to(dtype) - value).detach()  # exactly `rounded`, and its gradient is not rounded


def add_masters(module: nn.Module, layers: Sequence[int], projection: Projection = "mlp") -> list[MasterLinear]:
    """Keep the output projections of some layers in float32, in place, where they are in half precision.

    Parameters stay the same objects, so optimizers may hold them already, as long as they have not made a step.

    Args:
        module: a Hugging Face model, or a module that contains one. Call this before it is sharded or wrapped.
        layers: decoder layers, 0-based.
        projection: the MLP's or that of attention, see `find_decoder`.

    Returns:
        The changed layers. Others, also those with an adapter, are left as they are.

    Raises:
        UnsupportedSetupError: a projection is in half precision, but is no plain `nn.Linear`.
    """
    layout = find_decoder(module, projection)
    added: list[MasterLinear] = []
    for layer in layers:
        linear: Any = layout.output_projection(layer)
        if hasattr(linear, "base_layer") or not is_half(linear):
            continue
        if type(linear) is not nn.Linear or "forward" in vars(linear):
            raise UnsupportedSetupError(
                f"{layout.projection_path(layer)} is a {type(linear).__name__} in half precision, of which no float32 copy "
                "can be trained (only of a plain nn.Linear, loaded without device_map): load the model in float32"
            )
        master: Any = linear
        master.__class__ = MasterLinear
        master.stored_dtype = master.weight.dtype
        _convert(master, torch.float32)
        added.append(master)
    return added


def remove_masters(masters: Sequence[MasterLinear]) -> None:
    """Round the weights of layers from `add_masters` to their stored type, and make them plain linear layers again."""
    for linear in masters:
        _convert(linear, linear.stored_dtype)
        del linear.stored_dtype
        linear.__class__ = nn.Linear  # type: ignore[assignment]


def is_half(module: nn.Module) -> bool:
    """Whether a parameter of a module is in bfloat16 or float16."""
    return any(parameter.dtype in HALF_PRECISION for parameter in module.parameters())


def stored_dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    """Return the type that each master weight of a module is saved in, by the parameter's name."""
    return {
        f"{path}.{name}" if path else name: part.stored_dtype
        for path, part in module.named_modules()
        if isinstance(part, MasterLinear)
        for name, parameter in part.named_parameters(recurse=False)
        if part.stored_dtype != parameter.dtype
    }


def stored_values(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of a module with its master weights rounded to the type that they are saved in."""
    dtypes = stored_dtypes(module)
    return {name: value.to(dtypes[name]) if name in dtypes else value for name, value in state.items()}


def _convert(linear: nn.Linear, dtype: torch.dtype) -> None:
    for parameter in linear.parameters():
        parameter.data = parameter.data.to(dtype)  # the same object, as in `nn.Module.to`
        if parameter.grad is not None:
            parameter.grad = None
