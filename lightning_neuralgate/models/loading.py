"""Load a vision-language model and its processor by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.hub import local_folder

EMBEDDED = "smol-llava"
Precision = Literal["float32", "bfloat16", "float16"]


def load_model(source: str | Path, dtype: Precision = "float32", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A Hugging Face image-text-to-text model, in eval mode, and its processor.

    Args:
        source: a folder, a hub repository, or `smol-llava` for the embedded model.
        dtype: precision of the weights.
        trust_remote_code: run code that comes with the checkpoint; off unless asked for.

    Raises:
        ModelLayoutError: there is no such model, or it is none that takes images and text.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    source = _embedded_folder() if str(source) == EMBEDDED else source
    options = {"trust_remote_code": trust_remote_code}
    try:
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=getattr(torch, dtype), **options)
        processor = AutoProcessor.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLayoutError(
            f"'{source}' cannot be loaded as an image-text-to-text model: {error}\n"
            f"Give a folder with config.json and safetensors weights, a hub repository, or '{EMBEDDED}'."
        ) from error
    return model.eval(), processor


def model_folder(source: str | Path, only: Sequence[str] | None = None) -> Path:
    """The folder with a model's files, fetched from the hub if need be.

    Args:
        source: a folder, a hub repository, or `smol-llava` for the embedded model.
        only: patterns of the files that are needed; all of them when left out.

    Raises:
        ModelLayoutError: there is no such folder or repository.
    """
    return _embedded_folder() if str(source) == EMBEDDED else local_folder(source, ModelLayoutError, only)


def _embedded_folder() -> Path:
    from lightning_neuralgate.models.smol import smol_llava_folder

    return smol_llava_folder()
