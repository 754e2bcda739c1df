"""Linear layers whose weights are quantized to 8 or 4 bits."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn


def quantized_kinds(module: nn.Module) -> list[str]:
    """Return the storage types of a module's quantized weights, such as `int8`; empty if all are floating-point."""
    return sorted({_kind(tensor) for tensor in chain(module.parameters(), module.buffers())} - {""})


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the quantized linear layers of a model by their path."""
    linear = ((path, part) for path, part in model.named_modules() if hasattr(part, "in_features"))
    return {path: part for path, part in linear if quantized_kinds(part)}


def is_from_bitsandbytes(module: nn.Module) -> bool:
    """Return whether a module is a quantized layer of bitsandbytes."""
    return type(module).__module__.startswith("bitsandbytes.")


def rounds_inputs(model: nn.Module) -> bool:
    """Return whether layers of a model round their inputs to 8 bits, so that sums in another order differ more."""
    return any(is_from_bitsandbytes(part) and type(part).__name__ == "Linear8bitLt" for part in model.modules())


def keep_gradients(model: nn.Module) -> None:
    """Let 4-bit layers of bitsandbytes pass gradients on a CPU, in place.

    Where the CPU has AVX512-BF16, the first pass without gradient converts the weights of such a layer to a format for
    inference: later passes compute in bfloat16 and return a constant, so that gradients miss the layer without an error.
    """
    layers: list[Any] = [part for part in model.modules() if hasattr(part, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            layer.state_dict()  # converts the weight back


def _kind(tensor: Tensor) -> str:
    if not tensor.dtype.is_floating_point:
        return str(tensor.dtype).removeprefix("torch.")
    kind = type(tensor.data)  # the tensor types of torchao have a floating-point dtype
    return "" if f"{kind.__module__}.".startswith("torch.") else kind.__name__
