"""Telling models apart: what a gate must find again, and whether two models have the same weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lightning_neuralgate.layers import DecoderLayout, find_decoder, find_hf_model
from lightning_neuralgate.sharding import first_rows, original_class


@dataclass(frozen=True)
class ModelIdentity:
    """What a gate must find again in a model to fit it.

    Attributes:
        architecture: class name of the Hugging Face model.
        checksum: of the first rows of the embeddings and of every layer's weights but the MLP output projection, rounded to
            bfloat16: an edit does not change it, nor does reading a float32 checkpoint as bfloat16; another checkpoint does.
        layers_path: dotted path of the decoder layers.
        projection: path of the MLP output projection inside a layer.
        num_layers: number of decoder layers.
        hidden_size: width d of a layer's output.
        name: where the model came from (its folder's name or hub id); provenance, not compared.
    """

    architecture: str
    checksum: str
    layers_path: str
    projection: str
    num_layers: int
    hidden_size: int
    name: str = field(default="", compare=False)

    @classmethod
    def of(cls, module: nn.Module) -> ModelIdentity:
        """Identity of the Hugging Face model in `module` (bare, or inside a LightningModule or PeftModel)."""
        model, layout = find_hf_model(module), find_decoder(module)
        return cls(
            architecture=original_class(model).__name__,
            checksum=_untouched_weights_checksum(module, model, layout),
            layers_path=layout.layers_path,
            projection=layout.projection,
            num_layers=layout.num_layers,
            hidden_size=layout.hidden_size,
            name=_name(model),
        )


def _name(model: nn.Module) -> str:
    source = str(getattr(model, "name_or_path", ""))
    return Path(source).name if Path(source).is_dir() else source


def _untouched_weights_checksum(root: nn.Module, model: nn.Module, layout: DecoderLayout) -> str:
    wanted: list[tuple[nn.Parameter, int]] = [(model.get_input_embeddings().weight, 8)]  # type: ignore[operator]
    for layer in layout.layers:
        wanted += [
            (parameter, 1)
            for name, parameter in layer.named_parameters()
            if not name.replace("_fsdp_wrapped_module.", "").startswith(layout.projection) and "lora_" not in name
        ]
    digest = hashlib.sha256()
    for sample in first_rows(root, wanted):
        values = sample.to(torch.bfloat16).contiguous().view(torch.int16)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def model_checksum(model: nn.Module) -> str:
    """Checksum of all weights of a model: a strided sample of each, with its name and shape.

    An edit changes whole rows, so a sample of 4096 values a tensor sees it.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().flatten()
        stride = max(1, flat.numel() // 4096)
        sample = flat[::stride].to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
