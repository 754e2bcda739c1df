"""What a MiniGPT-4 is put together from: files of tensors, and folders of transformers, each read and checked."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_neuralgate.errors import WeightFilesError
from lightning_neuralgate.models.minigpt4.processing import IMAGE_TOKEN

_WANTED = {"llama": "a LLaMA-2-chat or Vicuna folder of transformers", "blip-2": "a BLIP-2 folder"}


def read_config(folder: Path, model_type: str) -> Any:
    """The configuration in a folder of transformers.

    Args:
        folder: the folder.
        model_type: `llama` or `blip-2`.

    Raises:
        WeightFilesError: it is no folder, has no configuration that can be read, or one of another architecture or of
            quantized weights.
    """
    from transformers import AutoConfig

    wanted = f"{_WANTED[model_type]} was expected"
    if not folder.is_dir():
        raise WeightFilesError(f"{folder} is no folder; {wanted}")
    if not (folder / "config.json").is_file():
        raise WeightFilesError(f"{folder} holds no config.json; {wanted}")
    try:
        found = AutoConfig.from_pretrained(folder)
    except Exception as error:  # there is no end to what a broken file raises
        raise WeightFilesError(f"{folder} has a config.json that cannot be read: {error}\n{wanted}") from error
    if found.model_type != model_type:
        raise WeightFilesError(f"{folder} holds a '{found.model_type}'; {wanted}")
    if (quantized := getattr(found, "quantization_config", None)) is not None:
        raise WeightFilesError(f"{folder} holds a quantized model ({quantized.get('quant_method')}); {wanted}, whole")
    return found


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file, those under `model` where it has such an entry.

    Raises:
        WeightFilesError: there is no such file, or it holds more than tensors and plain containers of them.
    """
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no end to what a broken file raises
        raise WeightFilesError(f"{file} cannot be read as a file of tensors: {_why_unreadable(file, error)}") from error
    tensors = loaded.get("model", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightFilesError(f"{file} holds no tensors by name, alone or under 'model'")
    return dict(tensors)


def _why_unreadable(file: Path, error: Exception) -> str:
    """What is wrong with a file that torch does not load; torch's own words advise to run whatever code is in it."""
    if isinstance(error, (OSError, MemoryError)):
        return str(error) or type(error).__name__
    with file.open("rb") as stream:
        begin = stream.read(24)
    if not begin:
        return "it is empty; download it again"
    if not begin.startswith((b"PK", b"\x80")):  # a zip archive or, before torch 1.6, a pickle
        return f"torch has not written it, since it begins with {begin!r}; download it again"
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors and plain containers of them, which is not read, as it may run code"
    return f"it is damaged or cut short; download it again ({type(error).__name__})"


def read_tokenizer(folder: Path) -> Any:
    """The language model's tokenizer with the image token, reading each piece of text between special tokens by itself.

    MiniGPT-4 was trained on such pieces, which begin a word each (`▁</` behind a picture). LLaMA's class calls that
    `legacy`, makes itself anew from it, and forgets it when saved; the plain class is what its file says.

    Raises:
        WeightFilesError: there is none, it cannot be loaded, or lacks the token that begins or ends a text.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise WeightFilesError(f"{folder} holds no tokenizer.json or tokenizer.model")
    try:
        found = AutoTokenizer.from_pretrained(folder, legacy=True)
    except Exception as error:  # there is no end to what a broken file raises
        raise WeightFilesError(
            f"the tokenizer of {folder} cannot be loaded: {error}\n"
            "To read a tokenizer.model without a tokenizer.json: pip install sentencepiece"
        ) from error
    lacking = [name for name in ("bos_token", "eos_token") if not getattr(found, name)]
    if lacking:
        raise WeightFilesError(
            f"the tokenizer of {folder} has no {' and no '.join(lacking)}; MiniGPT-4's prompts begin with the one, its "
            "answers end with the other: name what is missing in tokenizer_config.json (LLaMA's are <s> and </s>)"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=found.backend_tokenizer,
        bos_token=found.bos_token,
        eos_token=found.eos_token,
        unk_token=found.unk_token,
        pad_token=found.pad_token or found.unk_token or found.eos_token,
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=found.model_max_length,
    )


def read_language_model(folder: Path, dtype: torch.dtype) -> Any:
    """The language model, with every tensor from its files: transformers would make up those that are missing.

    Raises:
        WeightFilesError: it cannot be loaded, or tensors are missing, surplus or misshaped; all are listed.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightFilesError(f"{folder} cannot be loaded as a language model: {error}") from error
    model, found = loaded
    # older folders kept the rotary frequencies, which are computed
    surplus = sorted(name for name in found["unexpected_keys"] if not name.endswith("rotary_emb.inv_freq"))
    misshaped = {
        name: f"{name} is {list(shape)}, expected {list(own)}" for name, shape, own in found["mismatched_keys"]
    }
    missing = sorted(found["missing_keys"] - misshaped.keys())
    wrong = {"missing": missing, "surplus": surplus, "misshaped": [misshaped[name] for name in sorted(misshaped)]}
    if any(wrong.values()):
        told = "\n".join(f"{title}: {', '.join(names)}" for title, names in wrong.items() if names)
        raise WeightFilesError(f"{folder} does not hold a whole language model:\n{told}")
    return model


def read_blip2(folder: Path) -> dict[str, Tensor]:
    """Tower, norm, Q-Former and queries of a BLIP-2 folder of transformers; its language model stays where it is.

    Raises:
        WeightFilesError: its weights are not there or cannot be read.
    """
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    try:
        names = (
            sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if index.is_file()
            else ["model.safetensors"]
        )
        tensors = {}
        for name in names:
            with safe_open(folder / Path(name).name, "pt") as stream:
                for key in stream.keys():  # noqa: SIM118  it is no mapping
                    if key.startswith(("vision_model.", "qformer.", "query_tokens")):
                        tensors[key] = stream.get_tensor(key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFilesError(f"{folder} holds no readable safetensors weights of a BLIP-2: {error!r}") from error
    return tensors
