"""Which files transformers reads from a model folder, and which parameter a tensor in them is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from lightning_neuralgate.errors import WeightFilesError

MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin*",
    "adapter_config.json", "adapter_model*", "processor_config.json", "*preprocessor_config.json", "tokenizer*",
    "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*", "additional_chat_templates/*",
    "custom_generate/*",
)  # fmt: skip
"""Glob patterns of the files that transformers reads from a model folder."""

DELTA_NAME = "edit.safetensors"
"""The edit file in the folder of an edited model, see `EditDelta`."""


def is_model_file(name: Path) -> bool:
    """Return whether a file, given by its path relative to a model folder, is one that transformers reads."""
    return any(fnmatch(name.as_posix(), pattern) for pattern in MODEL_FILES)


def refuse_other_weights(folder: Path) -> None:
    """Refuse a model folder from which transformers would load other weights than those in its safetensors files.

    Raises:
        WeightFilesError: an adapter or a config that names the file of the weights.
    """
    if (folder / "adapter_config.json").exists():
        raise WeightFilesError(
            f"{folder / 'adapter_config.json'}: transformers would load the base model of this adapter instead of the "
            "weights in that folder; merge the adapter, or move the file away"
        )
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        return  # no config to be loaded
    if named is not None:
        raise WeightFilesError(
            f"{folder / 'config.json'} names other weights, '{named}' (transformers_weights); remove that entry"
        )


def common_ending(first: str, second: str) -> int:
    """Count the parts that two tensor names end with. A model's parameters may have a prefix that its files do not have.

    >>> common_ending("model.layers.1.mlp.weight", "language_model.layers.1.mlp.weight")
    4
    """
    pairs = list(zip(first.split(".")[::-1], second.split(".")[::-1], strict=False))
    return next((count for count, (a, b) in enumerate(pairs) if a != b), len(pairs))


def most_alike(name: str, others: Iterable[str]) -> str | None:
    """Return the name whose ending agrees most with a tensor's, or None if there is none or more than one.

    >>> names = ["vision_tower.layers.1.mlp.weight", "model.language_model.layers.1.mlp.weight"]
    >>> most_alike("language_model.model.layers.1.mlp.weight", names[1:])
    'model.language_model.layers.1.mlp.weight'
    >>> most_alike("layers.1.mlp.weight", names) is None
    True
    """
    common = {other: common_ending(name, other) for other in others}
    best = [other for other, count in common.items() if count and count == max(common.values())]
    return best[0] if len(best) == 1 else None
