"""Save an edited model so that what a later load reads is known to be the edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.hf.distributed import original_class
from lightning_neuralgate.hf.model_files import MODEL_FILES, common_ending, refuse_other_weights
from lightning_neuralgate.runtime.files import check_output
from lightning_neuralgate.runtime.written import check_written, update_folder


def check_model_output(folder: Path) -> None:
    """Check that an edited model can be written to a folder.

    Raises:
        DataFormatError: the folder holds a model, or files that would be loaded with one, which no edit has written.
    """
    check_written(folder, MODEL_FILES)


def save_model(
    model: Any, processor: Any, state: Mapping[str, Tensor], folder: Path, edited: Mapping[str, Tensor]
) -> None:
    """Save a model and its processor, and check that what transformers would load holds the edited weights.

    Args:
        model: the Hugging Face model.
        processor: its processor, or None.
        state: the state dict to save.
        folder: output folder. The files of an earlier edit in it are replaced.
        edited: parameter name -> value of the edited weights.

    Raises:
        DataFormatError: the folder is, holds or lies in that of the base model, or see `check_model_output`.
        WeightFilesError: what was saved cannot be loaded, or another file would be loaded in its place. As after every
            exception, the folder is as it was.
    """
    check_output("the output folder", folder, {"the folder of the base model": model.name_or_path or None})

    with update_folder(
        folder, "config.json", MODEL_FILES, lambda saved: check_written_model(saved, model, edited)
    ) as draft:
        model.save_pretrained(draft, state_dict=dict(state))
        if processor is not None:
            processor.save_pretrained(draft)


def check_written_model(folder: Path, model: Any, edited: Mapping[str, Tensor]) -> None:
    """Check that transformers finds all weights of a model in a folder, and the edited values among them.

    Raises:
        WeightFilesError: what was saved would not load as the edited model.
    """
    check_loads(folder, original_class(model))
    _check_holds(folder, edited)


def check_loads(folder: Path, model_class: Any) -> None:
    """Check that transformers finds all weights of a model in a folder. No weights are read.

    Raises:
        WeightFilesError: naming the tensors that are missing, unexpected or of another shape.
    """
    from transformers import logging

    refuse_other_weights(folder)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        # without accelerate, the weights are read
        device = {"device_map": "meta"} if _has_accelerate() else {}
        _, found = model_class.from_pretrained(folder, output_loading_info=True, local_files_only=True, **device)
    except Exception as error:  # loading raises many kinds
        raise WeightFilesError(f"the model saved to {folder} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    problems = {
        kind: sorted(map(str, found.get(kind) or ())) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if listed := "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names):
        raise WeightFilesError(f"the model saved to {folder} would not load as it was ({listed})")


def _has_accelerate() -> bool:
    from transformers.utils import is_accelerate_available

    return bool(is_accelerate_available())


def _check_holds(folder: Path, edited: Mapping[str, Tensor]) -> None:
    """Check that the weight files hold the edited values, under the name that ends most like the parameter's."""
    tensors = WeightFiles(folder).tensors
    for name, value in edited.items():
        expected = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        common = {other: common_ending(name, other) for other in tensors}
        best = [other for other, count in common.items() if count == max(common.values())]
        if not any(tensors[other].row_bytes().tobytes() == expected for other in best):
            raise WeightFilesError(f"the weights saved to {folder} do not hold the edited values of '{name}'")
