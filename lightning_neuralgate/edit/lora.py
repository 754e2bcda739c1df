"""A LoRA on MLP output projections, in place, and its merged weights for saving.

Source: Hu et al., LoRA (arXiv 2106.09685); the layers are peft's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.hf.decoder import find_decoder, find_hf_model


def add_lora(module: nn.Module, layers: Sequence[int], rank: int) -> None:
    """Put float32 LoRA factors on the MLP output projections of some layers; they train, all else is frozen.

    Args:
        module: a Hugging Face model, or what holds one.
        layers: decoder layers, counted from 0.
        rank: rank of the change; its scale is 1 (alpha = rank).

    Raises:
        MissingDependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError("lora_rank needs peft: pip install 'lightning-neuralgate[demo]'") from error

    layout = find_decoder(module)
    paths = "|".join(re.escape(layout.projection_path(layer)) for layer in layers)
    # peft takes a pattern for the name of the whole path
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({paths})"), find_hf_model(module))
    for layer in layers:
        projection: Any = layout.output_projection(layer)
        for factor in (*projection.lora_A.values(), *projection.lora_B.values()):
            factor.float()


def merged_lora(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names that the model had before `add_lora`, with the change added to the weights.

    Args:
        model: the Hugging Face model.
        state: its weights, whole; empty on processes that do not save.
    """
    merged = dict(state)
    for path, projection in model.named_modules():
        if not hasattr(projection, "lora_A") or not any(name.startswith(f"{path}.") for name in merged):
            continue
        for name, scale in projection.scaling.items():
            first, last = (merged.pop(f"{path}.lora_{factor}.{name}.weight").float() for factor in "AB")
            weight = merged[f"{path}.base_layer.weight"]
            merged[f"{path}.base_layer.weight"] = (weight.float() + scale * (last @ first)).to(weight.dtype)
        for name in [name for name in merged if name.startswith(f"{path}.base_layer.")]:
            merged[name.replace(".base_layer.", ".")] = merged.pop(name)
    return merged
