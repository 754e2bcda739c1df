"""Telling models apart: what a gate must find again, and whether two models have the same weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lightning_neuralgate.hf.decoder import DecoderLayout, find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import first_rows, original_class


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


_LEFT_BEHIND = {"padding", "truncation", "padding_side", "name_or_path", "is_local"}
"""In a processor's files: what calls leave behind, and where it was read."""
_ORIGIN = {"name_or_path", "_name_or_path", "transformers_version", "dtype", "torch_dtype"}
"""In a model's config: where it was read, and what its weights say themselves."""


def processor_checksum(processor: Any) -> str:
    """Checksum of how a processor makes prompts and pictures into inputs: of the files that it is saved as, tokenizer, chat
    template and picture settings among them.
    """
    digest = hashlib.sha256(type(getattr(processor, "image_processor", None)).__name__.encode())
    with TemporaryDirectory() as scratch:
        processor.save_pretrained(scratch)
        for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.suffix == ".json":
                told = {name: value for name, value in json.loads(content).items() if name not in _LEFT_BEHIND}
                content = json.dumps(told, sort_keys=True).encode()
            digest.update(file.relative_to(scratch).as_posix().encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def config_checksum(model: nn.Module) -> str:
    """Checksum of a model's config: what its weights alone do not say."""
    config: Any = model.config
    return hashlib.sha256(
        json.dumps(_without_origin(config.to_dict()), sort_keys=True, default=str).encode()
    ).hexdigest()


def _without_origin(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {str(name): _without_origin(value) for name, value in content.items() if name not in _ORIGIN}
