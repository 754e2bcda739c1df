"""Model identity: checksums that tell which model a gate belongs to, and whether weights or processors are the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.hf.decoder import DecoderLayout, find_decoder, find_hf_model
from lightning_neuralgate.hf.distributed import first_rows, original_class
from lightning_neuralgate.hf.quantized import quantized_kinds, quantized_layers


@dataclass(frozen=True)
class ModelIdentity:
    """The properties of a model that have to match for a gate to fit it.

    Attributes:
        architecture: class name of the Hugging Face model.
        checksum: checksum of the first rows of the embeddings and of every layer's weights except the MLP output projection,
            rounded to bfloat16. It differs between checkpoints, but does not change by an edit or by loading a float32
            checkpoint as bfloat16.
        layers_path: dotted path of the decoder layers.
        projection: path of the MLP output projection inside a layer.
        num_layers: number of decoder layers.
        hidden_size: width d of a layer's output.
        name: folder name or hub id of the model; provenance, not compared.
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
        """Compute the identity of the Hugging Face model in `module`: bare, or inside a LightningModule or PeftModel.

        Raises:
            UnsupportedSetupError: its weights are quantized in a format whose rows cannot be read, such as torchao's.
        """
        model, layout = find_hf_model(module), find_decoder(module)
        _refuse_unreadable(model)
        source = str(getattr(model, "name_or_path", ""))
        return cls(
            architecture=original_class(model).__name__,
            checksum=_unedited_weights_checksum(module, model, layout),
            layers_path=layout.layers_path,
            projection=layout.projection,
            num_layers=layout.num_layers,
            hidden_size=layout.hidden_size,
            name=Path(source).name if Path(source).is_dir() else source,
        )


def check_same_model(expected: ModelIdentity, module: nn.Module, artifact: str, made: str, make: str) -> None:
    """Check that an artifact was made in the model in `module`.

    Args:
        expected: identity of the artifact's model.
        module: the model, or a module that contains it. With sharded weights every process has to call this.
        artifact: what is checked, for the message, such as "gate".
        made: how it is made, as a participle ("located").
        make: the same as an infinitive ("locate").

    Raises:
        GateMismatchError: it was made in another model; the message names each property that differs, with both values.
    """
    found = ModelIdentity.of(module)
    differing = [
        f"{entry.name}: {artifact} has {getattr(expected, entry.name)!r}, model has {getattr(found, entry.name)!r}"
        for entry in fields(ModelIdentity)
        if entry.compare and getattr(expected, entry.name) != getattr(found, entry.name)
    ]
    precision = weights_precision(module)
    if [text.partition(":")[0] for text in differing] == ["checksum"] and precision not in ("float32", "bfloat16"):
        raise GateMismatchError(
            f"the model's weights are {precision}, and the {artifact}'s checksum is that of float32 or bfloat16 weights, so "
            "they cannot be compared. Load the model in bfloat16 (--model.dtype bfloat16) or "
            f"float32, or {make} again on the {precision} weights"
        )
    if differing:
        raise GateMismatchError(
            f"the {artifact} was {made} in another model ({'; '.join(differing)}); {make} again on this one"
        )


def weights_precision(module: nn.Module) -> str:
    """Return the precision of a model's decoder weights, such as "float32", or "8-bit" if they are quantized."""
    model = find_hf_model(module)
    quantization: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    settings = quantization if isinstance(quantization, dict) else vars(quantization or object)
    for bits in (4, 8):
        if settings.get(f"load_in_{bits}bit") or settings.get(f"_load_in_{bits}bit") or settings.get("bits") == bits:
            return f"{bits}-bit"
    if quantization is not None:
        return "quantized"
    parameters = find_decoder(module).layers[0].parameters()
    return str(next(parameters).dtype).removeprefix("torch.")


def _refuse_unreadable(model: nn.Module) -> None:
    for path, layer in quantized_layers(model).items():
        if kinds := [kind for kind in quantized_kinds(layer) if not hasattr(torch, kind)]:
            raise UnsupportedSetupError(
                f"the weight at {path} is quantized as {kinds[0]}, of which no checksum can be computed: load the model with "
                "load_model(..., quantize='int8' or 'nf4'), which uses bitsandbytes"
            )


def _unedited_weights_checksum(root: nn.Module, model: nn.Module, layout: DecoderLayout) -> str:
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
    """Compute a checksum of a model's weights from 4096 evenly spaced values of each tensor, its name and its shape.

    An edit changes full rows, so that many values are enough to notice it.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().flatten()
        stride = max(1, flat.numel() // 4096)
        sample = flat[::stride].to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


_PROCESSOR_STATE = {"padding", "truncation", "padding_side", "name_or_path", "is_local"}
"""Keys of a processor's files that calls change or that depend on where it was loaded from."""
_CONFIG_ORIGIN = {"name_or_path", "_name_or_path", "transformers_version", "dtype", "torch_dtype"}
"""Keys of a model's config that depend on where it was loaded from, or repeat a property of the weights."""


def processor_checksum(processor: Any) -> str:
    """Compute a checksum of the files that a processor is saved as: tokenizer, chat template and image settings."""
    digest = hashlib.sha256(type(getattr(processor, "image_processor", None)).__name__.encode())
    with TemporaryDirectory() as scratch:
        processor.save_pretrained(scratch)
        for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.suffix == ".json":
                settings = {name: v for name, v in json.loads(content).items() if name not in _PROCESSOR_STATE}
                content = json.dumps(settings, sort_keys=True).encode()
            digest.update(file.relative_to(scratch).as_posix().encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def config_checksum(model: nn.Module) -> str:
    """Compute a checksum of a model's config, without what depends on where it was loaded from."""
    config: Any = model.config
    content = json.dumps(_without_origin(config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _without_origin(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {str(name): _without_origin(value) for name, value in content.items() if name not in _CONFIG_ORIGIN}
