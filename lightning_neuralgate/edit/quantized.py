"""Edit a model that was loaded in 8 or 4 bits: its output projections train unquantized, and are saved into its checkpoint.

    load    W of the edited projection as in the checkpoint, in float32; all else stays quantized
    save    a copy of the checkpoint with the edited W, and the edit file between both

What trains is what is saved, and the edit is not rounded to the few values of a quantized weight.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.saving import check_written_model
from lightning_neuralgate.edit.weight_files import WEIGHT_PATTERNS, TensorLocation, WeightFiles
from lightning_neuralgate.errors import ModelLayoutError, NeuralGateError, UnsupportedSetupError
from lightning_neuralgate.hf.decoder import Projection, find_decoder, find_hf_model
from lightning_neuralgate.hf.hub import local_folder
from lightning_neuralgate.hf.master_weights import MasterLinear
from lightning_neuralgate.hf.model_files import MODEL_FILES, is_model_file, most_alike
from lightning_neuralgate.hf.quantized import is_from_bitsandbytes, keep_gradients, quantized_kinds, quantized_layers
from lightning_neuralgate.runtime.files import check_output
from lightning_neuralgate.runtime.parsing import read_json_object
from lightning_neuralgate.runtime.written import update_folder

WAY_OUT = (
    "load the full-precision checkpoint with load_model(..., quantize='nf4'), with --model.quantize on the command line, "
    "or in bfloat16"
)


def restore_projections(model: nn.Module, layers: Sequence[int], projection: Projection = "mlp") -> Path | None:
    """Replace the output projections of some layers of a quantized model, in place, by float32 ones from its checkpoint.

    Args:
        model: a Hugging Face model that transformers quantized with bitsandbytes while it loaded a full-precision checkpoint,
            or a module that contains one.
        layers: decoder layers, 0-based.
        projection: the MLP's; that of attention is refused, since it is part of the model's checksum.

    Returns:
        The folder of the checkpoint, or None if the model is not quantized.

    Raises:
        UnsupportedSetupError: the model is quantized in another way, its device map spans several devices, or the checkpoint
            cannot be read or is quantized itself.
    """
    layout, found = find_decoder(model, projection), find_hf_model(model)
    paths = [layout.projection_path(layer) for layer in layers]
    quantized = quantized_layers(found)
    if not quantized and not any(quantized_kinds(found.get_submodule(path)) for path in paths):
        return None
    if projection != "mlp":
        raise UnsupportedSetupError(
            "the output projection of attention cannot be edited in a quantized model: load it in bfloat16, or edit the MLP's"
        )
    for path, part in {**quantized, **{path: found.get_submodule(path) for path in paths}}.items():
        _refuse_other_kinds(part, path)
    keep_gradients(found)
    files = _open_checkpoint(str(found.name_or_path))
    for path in paths:
        replaced: Any = found.get_submodule(path)
        values = {name: _read(files, f"{path}.{name}") for name, _ in replaced.named_parameters(recurse=False)}
        shape = (replaced.out_features, replaced.in_features)
        if tuple(values["weight"].shape) != shape:
            raise UnsupportedSetupError(
                f"the weight at {path} is {list(shape)}, and in {files.folder} {list(values['weight'].shape)}: edit the "
                "model in bfloat16"
            )
        with torch.device("meta"):
            linear = MasterLinear(replaced.in_features, replaced.out_features, "bias" in values)
        linear.stored_dtype = values["weight"].dtype
        for name, value in values.items():
            master = nn.Parameter(value.to(replaced.weight.device, torch.float32), requires_grad=False)
            setattr(linear, name, master)
        found.set_submodule(path, linear.train(replaced.training))
    return files.folder


def save_into_checkpoint(
    model: Any, processor: Any, checkpoint: Path, folder: Path, edited: Mapping[str, Tensor]
) -> None:
    """Save a copy of the full-precision checkpoint of a quantized model with the edited weights, and the edit file.

    Memory use is that of the edited weights.

    Args:
        model: the Hugging Face model.
        processor: its processor, or None.
        checkpoint: folder from `restore_projections`.
        folder: output folder. The files of an earlier edit in it are replaced.
        edited: parameter name -> value.

    Raises:
        DataFormatError: the folder is, holds or lies in the checkpoint, or holds a model that no edit has written.
        WeightFilesError: what was saved would not load as the edited model. The folder is as it was.
    """
    check_output("the output folder", folder, {"the folder of the base model": checkpoint})
    stored: dict[str, Tensor] = {}
    with update_folder(
        folder, "config.json", MODEL_FILES, lambda saved: check_written_model(saved, model, stored)
    ) as draft:
        for file in checkpoint.iterdir():
            is_weights = file.suffix in (".bin", ".safetensors") and not file.name.startswith("model")
            if file.is_file() and not is_weights and (is_model_file(Path(file.name)) or file.suffix == ".py"):
                shutil.copyfile(file, draft / file.name)
        files = WeightFiles(draft)
        for name, value in edited.items():
            location = _locate(files, name)
            stored[name] = value.detach().cpu().to(_read(files, name).dtype)
            rows = location.row_bytes("r+")
            rows[:] = stored[name].contiguous().flatten().view(torch.uint8).numpy().reshape(rows.shape)
            rows.flush()  # type: ignore[attr-defined]  # with "r+" it is a memmap
        if processor is not None:
            processor.save_pretrained(draft)
        (folder / DELTA_NAME).unlink(missing_ok=True)  # describes the weights that are about to be replaced
    EditDelta.between(checkpoint, folder).save(folder / DELTA_NAME)


def _refuse_other_kinds(layer: nn.Module, path: str) -> None:
    kinds = ", ".join(quantized_kinds(layer))
    if kinds and not is_from_bitsandbytes(layer):
        raise UnsupportedSetupError(
            f"the weight at {path} is quantized ({kinds} in a {type(layer).__name__}), and a model edited there could not be "
            f"loaded again: {WAY_OUT}"
        )
    if "forward" in vars(layer):
        raise UnsupportedSetupError(
            f"{path} was loaded with a device_map over several devices, and no float32 copy of it can be trained: load the "
            "model on one device"
        )


def _open_checkpoint(source: str) -> WeightFiles:
    try:
        folder = local_folder(source, ModelLayoutError, (*WEIGHT_PATTERNS, "*.json", "*.py"))
        files = WeightFiles(folder)
        config = read_json_object(folder / "config.json", ModelLayoutError)
    except NeuralGateError as error:
        raise UnsupportedSetupError(
            f"the model is quantized, and an edit of it needs the full-precision checkpoint that it was loaded from: {error}"
        ) from error
    if config.get("quantization_config") is not None:
        raise UnsupportedSetupError(
            f"the weights in {folder} are quantized, and an edit cannot be saved there: {WAY_OUT}"
        )
    return files


def _locate(files: WeightFiles, name: str) -> TensorLocation:
    stored = most_alike(name, files.tensors)
    if stored is None:
        raise UnsupportedSetupError(
            f"no tensor in {files.folder} is certainly the parameter '{name}'; edit the model in bfloat16"
        )
    return files.tensors[stored]


def _read(files: WeightFiles, name: str) -> Tensor:
    with safe_open(_locate(files, name).file, "pt") as stream:
        tensor: Tensor = stream.get_tensor(most_alike(name, files.tensors))
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        raise UnsupportedSetupError(f"'{name}' is {tensor.dtype} in {files.folder}: {WAY_OUT}")
    return tensor
