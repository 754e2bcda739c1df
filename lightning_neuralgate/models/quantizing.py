"""Load a checkpoint's decoder in 8 or 4 bits, with bitsandbytes.

Only the linear layers of the text decoder are quantized. The vision tower, the projector, embeddings and the output layer
keep the model's type, and so do the weights that `edit.safetensors` in the model's folder names: rounding them would change
the edit.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

from lightning_neuralgate.errors import MissingDependencyError, UnsupportedSetupError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.model_files import DELTA_NAME, most_alike


def quantization_config(
    source: str | Path, kind: str, dtype: torch.dtype, trust_remote_code: bool = False
) -> BitsAndBytesConfig:
    """Return the configuration with which transformers quantizes a checkpoint while it is loaded.

    Args:
        source: a model folder or a hub repository, not quantized.
        kind: `int8`, LLM.int8 (Dettmers et al., arXiv 2208.07339), or `nf4`, the 4-bit type of QLoRA (arXiv 2305.14314).
        dtype: the type that 4-bit layers compute in.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        UnsupportedSetupError: the checkpoint is quantized already.
    """
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise MissingDependencyError(
            f"loading a model in {kind} needs bitsandbytes: pip install 'lightning-neuralgate[quantized]'"
        )
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedSetupError(f"'{source}' is quantized already: load it without quantize={kind!r}")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    kept = [*_outside_layers(model), *_edited_modules(Path(source), model)]
    # warns in every pass of every layer that inputs are rounded to float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept
    )


def _outside_layers(model: nn.Module) -> list[str]:
    """Return the paths of the largest modules that hold no decoder layer."""
    layers = find_decoder(model).layers_path
    parents = ["", *(layers[:end] for end, sign in enumerate(layers) if sign == ".")]
    inside = {*parents, layers}
    children = (
        f"{parent}.{name}".lstrip(".") for parent in parents for name, _ in model.get_submodule(parent).named_children()
    )
    return [path for path in children if path not in inside]


def _edited_modules(folder: Path, model: nn.Module) -> list[str]:
    """Return the paths of the modules of which the edit file in a model folder changes a weight."""
    if not (folder / DELTA_NAME).is_file():
        return []
    with safe_open(folder / DELTA_NAME, "np") as stream:
        names = [name.removesuffix(".rows") for name in stream.keys() if name.endswith(".rows")]  # noqa: SIM118
    parameters = [name for name, _ in model.named_parameters()]
    found = (name for edited in names if (name := most_alike(edited, parameters)) is not None)
    return [name.rpartition(".")[0] for name in found]
