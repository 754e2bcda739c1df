"""Damaged and incomplete model folders are refused with the folder and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lightning_neuralgate.errors import ModelLayoutError
from lightning_neuralgate.models.loading import load_model


def _config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def _cut(name: str, size: int = -100) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if "layers.1.mlp.down_proj" in name)]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights cut short": _cut("model.safetensors"),
    "empty weights": _cut("model.safetensors", 0),
    "config cut short": _cut("config.json"),
    "a list as config": lambda folder: (folder / "config.json").write_text("[]") and None,
    "nested config": lambda folder: (folder / "config.json").write_text("[" * 9000) and None,
    "a width that is text": _config(lambda config: config["text_config"].update(hidden_size="wide")),
    "no width": _config(lambda config: config["text_config"].update(hidden_size=None)),
    "heads that do not divide": _config(lambda config: config["text_config"].update(num_attention_heads=0)),
    "layers that are a list": _config(lambda config: config["text_config"].update(num_hidden_layers=[3])),
    "text_config is a list": _config(lambda config: config.update(text_config=[1])),
    "tokenizer cut short": _cut("tokenizer.json"),
    "a missing tensor": _without_a_tensor,
    "no processor": lambda folder: (
        [(folder / name).unlink(missing_ok=True) for name in ("preprocessor_config.json", "processor_config.json")]
        and None
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    DAMAGES[name](folder)
    with pytest.raises(ModelLayoutError, match=r"(?s)/model' .*(download|add the files)"):
        load_model(folder)


def test_a_file_of_the_folder_is_no_model(checkpoint: Path) -> None:
    with pytest.raises(ModelLayoutError, match=r"config\.json' is a file; give the folder .*tiny-llava"):
        load_model(checkpoint / "config.json")
