"""Readers of the files and folders that a MiniGPT-4 is converted from, with checks."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.models.minigpt4.processing import IMAGE_TOKEN
from lightning_neuralgate.runtime.parsing import read_json_object

_EXPECTED = {
    "llama": "give a transformers folder of LLaMA-2-chat or Vicuna",
    "blip-2": "give a transformers folder of BLIP-2",
}


def read_config(folder: Path, model_type: str) -> Any:
    """Read the configuration of a transformers folder.

    Args:
        folder: the folder.
        model_type: expected type, `llama` or `blip-2`.

    Raises:
        WeightFilesError: the configuration is missing, unreadable, of another model type or of quantized weights.
    """
    from transformers import AutoConfig

    hint = _EXPECTED[model_type]
    if not (folder / "config.json").is_file():
        raise WeightFilesError(f"{folder} is not a folder with a config.json; {hint}")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a corrupt file can raise anything
        raise WeightFilesError(f"{folder / 'config.json'} cannot be read: {error}\n{hint}") from error
    if config.model_type != model_type:
        raise WeightFilesError(f"{folder} is a '{config.model_type}' model; {hint}")
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        raise WeightFilesError(f"{folder} is quantized ({quantization.get('quant_method')}); {hint}, not quantized")
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pth` file, or those under its `model` entry if it has one.

    Raises:
        WeightFilesError: the file does not exist, or contains more than tensors in plain containers.
    """
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file can raise anything
        raise WeightFilesError(f"{file} cannot be read as a tensor file: {_read_problem(file, error)}") from error
    tensors = loaded.get("model", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightFilesError(
            f"{file} is not a mapping of names to tensors, nor has one under 'model'; give a checkpoint"
        )
    return dict(tensors)


def _read_problem(file: Path, error: Exception) -> str:
    """Describe why torch cannot load a file; torch's own message advises running any code in it."""
    if isinstance(error, (OSError, MemoryError)):
        return str(error) or type(error).__name__
    with file.open("rb") as stream:
        start = stream.read(24)
    if not start:
        return "it is empty; download it again"
    if not start.startswith((b"PK", b"\x80")):  # a zip archive or, before torch 1.6, a pickle
        return f"it is not a torch file, it starts with {start!r}; download it again"
    if isinstance(error, pickle.UnpicklingError):
        return "it is corrupt, or contains objects other than tensors and plain containers, which could run code"
    return f"it is corrupt or truncated; download it again ({type(error).__name__})"


def read_tokenizer(folder: Path) -> Any:
    """Read the language model's tokenizer and add the image token.

    MiniGPT-4 was trained with each piece of text between special tokens tokenized separately, so that it starts a word (`▁</`
    after a picture). LLaMA's tokenizer class calls this `legacy` and loses it when saved; `PreTrainedTokenizerFast` keeps it.

    Raises:
        WeightFilesError: there is no tokenizer, it cannot be loaded, or it has no begin- or end-of-sequence token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise WeightFilesError(f"{folder} has no tokenizer.json or tokenizer.model; add the model's tokenizer files")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, legacy=True, trust_remote_code=False)
    except Exception as error:  # a corrupt file can raise anything
        raise WeightFilesError(
            f"the tokenizer of {folder} cannot be loaded: {error}\n"
            "To read a tokenizer.model without a tokenizer.json: pip install sentencepiece"
        ) from error
    missing = [name for name in ("bos_token", "eos_token") if not getattr(tokenizer, name)]
    if missing:
        raise WeightFilesError(
            f"the tokenizer of {folder} has no {' and no '.join(missing)}, but MiniGPT-4's prompts start with bos_token and "
            "its answers end with eos_token; add what is missing to tokenizer_config.json (LLaMA's are <s> and </s>)"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token,
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=tokenizer.model_max_length,
    )


def read_language_model(folder: Path, dtype: torch.dtype) -> Any:
    """Load the language model and check that its files have every tensor, which transformers would initialize otherwise.

    Raises:
        WeightFilesError: it cannot be loaded, or tensors are missing, unexpected or of the wrong shape; all are listed.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    except Exception as error:  # a corrupt file can raise anything
        raise WeightFilesError(
            f"{folder} cannot be loaded as a language model: {str(error) or repr(error)}; download it again"
        ) from error
    model, info = loaded
    # older folders contain the rotary frequencies, which are computed
    unexpected = sorted(name for name in info["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
    wrong_shape = {
        name: f"{name} is {list(shape)}, expected {list(expected)}" for name, shape, expected in info["mismatched_keys"]
    }
    problems = {
        "missing": sorted(info["missing_keys"] - wrong_shape.keys()),
        "unexpected": unexpected,
        "wrong shape": [wrong_shape[name] for name in sorted(wrong_shape)],
    }
    if lines := listed_problems(problems):
        raise WeightFilesError(
            f"the weights in {folder} are not a complete language model; download them again:\n{lines}"
        )
    return model


def listed_problems(problems: Mapping[str, Collection[str]]) -> str:
    """Return a line per kind of problem that has tensors; empty if none has."""
    return "\n".join(f"{title}: {', '.join(names)}" for title, names in problems.items() if names)


def read_blip2(folder: Path) -> dict[str, Tensor]:
    """Read tower, final norm, Q-Former and query tokens of a transformers folder of BLIP-2, without its language model.

    Raises:
        WeightFilesError: the weights are missing or cannot be read.
    """
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    try:
        names = (
            sorted(set(read_json_object(index, WeightFilesError)["weight_map"].values()))
            if index.is_file()
            else ["model.safetensors"]
        )
        tensors = {}
        for name in names:
            with safe_open(folder / Path(name).name, "pt") as stream:
                for key in stream.keys():  # noqa: SIM118  the stream is not a mapping
                    if key.startswith(("vision_model.", "qformer.", "query_tokens")):
                        tensors[key] = stream.get_tensor(key)
    except Exception as error:  # a corrupt file can raise anything
        raise WeightFilesError(
            f"{folder} has no readable safetensors weights: {error!r}; {_EXPECTED['blip-2']}"
        ) from error
    return tensors
