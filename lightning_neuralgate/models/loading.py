"""Load a vision-language model and its processor by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_neuralgate.errors import MissingDependencyError, ModelLayoutError, UnsupportedSetupError
from lightning_neuralgate.hf.hub import local_folder, refuse_missing_path

if TYPE_CHECKING:
    from lightning_neuralgate.models.smol import EmbeddedModel

EMBEDDED = "smol-llava"
EMBEDDED_MODELS = (EMBEDDED, "smol-minigpt")
Precision = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "nf4"]


def load_model(
    source: str | Path,
    dtype: Precision = "float32",
    trust_remote_code: bool = False,
    quantize: Quantization | None = None,
) -> tuple[Any, Any]:
    """Load a Hugging Face image-text-to-text model, in eval mode, and its processor.

    Args:
        source: a folder, a hub repository, or the name of an embedded model (`smol-llava`, `smol-minigpt`).
        dtype: dtype of the weights.
        trust_remote_code: whether code in the checkpoint may run.
        quantize: load the text decoder's linear layers in 8 bits (`int8`) or 4 bits (`nf4`), with bitsandbytes (extra
            `quantized`). Weights that an `edit.safetensors` in the folder names keep `dtype`.

    Raises:
        MissingDependencyError: `quantize` without bitsandbytes.
        UnsupportedSetupError: `quantize` for a checkpoint that is quantized already.
        ModelLayoutError: naming the source: the model does not exist, is damaged or incomplete, is not an image-text-to-text
            model, or has no image processor.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import lightning_neuralgate.models.minigpt4  # noqa: F401  registers it with the Auto classes
    from lightning_neuralgate.hf.quantized import keep_gradients

    if Path(source).is_file():
        raise ModelLayoutError(f"'{source}' is a file; give the folder that it is in, {Path(source).parent}")
    source = embedded_model(str(source)).folder() if str(source) in EMBEDDED_MODELS else source
    refuse_missing_path(source, ModelLayoutError)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    quantization = {}
    try:
        if quantize is not None:
            from lightning_neuralgate.models.quantizing import quantization_config

            kept = getattr(torch, dtype)
            quantization["quantization_config"] = quantization_config(source, quantize, kept, trust_remote_code)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, dtype), output_loading_info=True, **quantization, **options
        )
        model, loading = loaded
        processor = AutoProcessor.from_pretrained(source, **options)
    except (torch.cuda.OutOfMemoryError, MissingDependencyError, UnsupportedSetupError):
        raise
    except (
        Exception
    ) as error:  # damaged folders raise errors of many kinds: SafetensorError, TypeError, RecursionError, ...
        raise ModelLayoutError(
            f"'{source}' cannot be loaded as an image-text-to-text model: {str(error) or repr(error)}\n"
            "Give a folder with config.json and safetensors weights, a hub repository, or one of "
            f"{', '.join(EMBEDDED_MODELS)}; if its files are damaged or cut short, download or save them again."
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelLayoutError(
            f"'{source}' lacks {len(missing)} of the model's tensors, such as {', '.join(missing[:3])}, so they "
            "would be random; download or save it again"
        )
    if getattr(processor, "image_processor", None) is None:
        raise ModelLayoutError(
            f"'{source}' has no image processor (preprocessor_config.json); add the files of its processor"
        )
    keep_gradients(model)
    return model.eval(), processor


def model_folder(source: str | Path, only: Sequence[str] | None = None) -> Path:
    """Return the folder with a model's files, downloaded from the hub if necessary.

    Args:
        source: a folder, a hub repository, or the name of an embedded model (`smol-llava`, `smol-minigpt`).
        only: glob patterns of the needed files; all files when left out.

    Raises:
        ModelLayoutError: the folder or repository does not exist.
    """
    if str(source) in EMBEDDED_MODELS:
        return embedded_model(str(source)).folder()
    return local_folder(source, ModelLayoutError, only)


def embedded_model(name: str) -> EmbeddedModel:
    """Return the embedded model with a name from `EMBEDDED_MODELS`."""
    if name == EMBEDDED:
        from lightning_neuralgate.models.smol import SMOL_LLAVA

        return SMOL_LLAVA
    from lightning_neuralgate.models.smol_minigpt import SMOL_MINIGPT

    return SMOL_MINIGPT
