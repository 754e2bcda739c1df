"""LoRA on MLP output projections: add it in place, and merge it into a state dict for saving.

Source: Hu et al., LoRA (arXiv 2106.09685); the layers are peft's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_neuralgate.errors import MissingDependencyError
from lightning_neuralgate.hf.decoder import Projection, find_decoder, find_hf_model


def add_lora(
    module: nn.Module, layers: Sequence[int], rank: int, projection: Projection = "mlp", all_linear: bool = False
) -> None:
    """Add trainable float32 LoRA factors to the output projections of some layers and freeze everything else.

    Args:
        module: a Hugging Face model, or a module that contains one.
        layers: decoder layers, 0-based.
        rank: rank of the update; its scale is 1 (alpha = rank).
        projection: the MLP's or that of attention, see `find_decoder`.
        all_linear: add factors to all linear modules of these layers, not only to the output projection.

    Raises:
        MissingDependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError("lora_rank needs peft: pip install 'lightning-neuralgate[demo]'") from error

    layout = find_decoder(module, projection)
    targets = [layout.projection_path(layer) for layer in layers]
    if all_linear:
        targets = [
            f"{layout.layers_path}.{layer}.{path}"
            for layer in layers
            for path, part in layout.layer(layer).named_modules()
            if isinstance(part, nn.Linear)
        ]
    # peft matches the pattern with the full module path
    pattern = "|".join(map(re.escape, targets))
    model = find_hf_model(module)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=f"({pattern})"), model)
    for path in targets:
        wrapped: Any = model.get_submodule(path)
        for factor in (*wrapped.lora_A.values(), *wrapped.lora_B.values()):
            factor.float()


def remove_lora(module: nn.Module) -> None:
    """Replace all projections with LoRA factors by those from before `add_lora`, whose weights have not changed."""
    for path, part in list(module.named_modules()):
        if hasattr(part, "lora_A"):
            module.set_submodule(path, part.base_layer)
    if hasattr(module, "peft_config"):
        del module.peft_config


def merged_lora(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the LoRA update merged into the weights, under the names from before `add_lora`.

    Args:
        model: the Hugging Face model.
        state: its full (unsharded) state dict; empty on processes that do not save.
    """
    merged = dict(state)
    for path, projection in model.named_modules():
        if not hasattr(projection, "lora_A") or not any(name.startswith(f"{path}.") for name in merged):
            continue
        for name, scale in projection.scaling.items():
            lora_a, lora_b = (merged.pop(f"{path}.lora_{factor}.{name}.weight").float() for factor in "AB")
            weight = merged[f"{path}.base_layer.weight"]
            merged[f"{path}.base_layer.weight"] = (weight.float() + scale * (lora_b @ lora_a)).to(weight.dtype)
        for name in [name for name in merged if name.startswith(f"{path}.base_layer.")]:
            merged[name.replace(".base_layer.", ".")] = merged.pop(name)
    return merged
