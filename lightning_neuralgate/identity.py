"""Telling models apart: what a gate must find again, and whether two models have the same weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from lightning_neuralgate.layers import find_decoder, find_hf_model
from lightning_neuralgate.sharding import original_class


@dataclass(frozen=True)
class ModelIdentity:
    """What a gate must find again in a model to fit it.

    Attributes:
        architecture: class name of the Hugging Face model.
        checksum: of a few rows of the input embeddings in bfloat16, which neither an edit nor a change of precision
            touches; it tells two checkpoints of one architecture apart.
        layers_path: dotted path of the decoder layers.
        projection: path of the MLP output projection inside a layer.
        num_layers: number of decoder layers.
        hidden_size: width d of a layer's output.
    """

    architecture: str
    checksum: str
    layers_path: str
    projection: str
    num_layers: int
    hidden_size: int

    @classmethod
    def of(cls, module: nn.Module) -> ModelIdentity:
        """Identity of the Hugging Face model in `module` (bare, or inside a LightningModule or PeftModel)."""
        model, layout = find_hf_model(module), find_decoder(module)
        return cls(
            architecture=original_class(model).__name__,
            checksum=_embedding_checksum(model),
            layers_path=layout.layers_path,
            projection=layout.projection,
            num_layers=layout.num_layers,
            hidden_size=layout.hidden_size,
        )


def _embedding_checksum(model: nn.Module) -> str:
    rows = model.get_input_embeddings().weight.detach()[:8]  # type: ignore[operator]
    if hasattr(rows, "full_tensor"):  # sharded by FSDP2
        rows = rows.full_tensor()
    values = rows.to("cpu", torch.bfloat16).contiguous().view(torch.int16)
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


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
