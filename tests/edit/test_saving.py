"""Saved models: what a later load reads is the edit, or an error says so and nothing has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit import saving
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import DataFormatError, DeltaFormatError, UnsupportedSetupError, WeightFilesError
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import save_tiny_llava, tiny_llava, tiny_processor
from tests.helpers.training import datamodule, train

WEIGHT = "model.language_model.layers.1.mlp.down_proj.weight"


def editor(model: Any = None, **options: Any) -> PrivacyEditModule:
    """A module whose edit is done: one element of the weight has changed."""
    module = PrivacyEditModule(tiny_llava() if model is None else model, [1], tiny_processor(), **options)
    with torch.no_grad():
        find_decoder(module.model).output_projection(1).weight[0, 0] += 1.0  # type: ignore[index, operator]
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["", "..", "inside", "link"])
def test_the_base_model_is_not_overwritten(tmp_path: Path, place: str) -> None:
    base = tmp_path / "models" / "base"
    save_tiny_llava(base)
    (base.parent / "link").symlink_to(base, target_is_directory=True)
    before = contents(base)
    module = editor(LlavaForConditionalGeneration.from_pretrained(base))
    out = base.parent / "link" if place == "link" else base / place
    with pytest.raises(DataFormatError, match=r"the folder of the base model .* would be overwritten"):
        module.save_pretrained(out)
    assert contents(base) == before


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "adapter_config.json", "model.safetensors.index.json", "chat_template.jinja"],
)
def test_a_model_of_someone_else_is_not_overwritten(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(DataFormatError, match=rf"{name} would be replaced, but was not written by an earlier run"):
        saving.check_model_output(out)
    if name in ("adapter_config.json", "model.safetensors", "config.json"):
        with pytest.raises((DataFormatError, WeightFilesError), match=name):
            editor().save_pretrained(out)
        assert contents(out) == {name: b"{}"}


def test_an_earlier_edit_in_other_shards_does_not_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, save = tmp_path / "out", LlavaForConditionalGeneration.save_pretrained
    for size in (None, "40KB", None):
        with monkeypatch.context() as patch:
            if size:
                patch.setattr(
                    LlavaForConditionalGeneration,
                    "save_pretrained",
                    lambda self, folder, **more: save(self, folder, max_shard_size="40KB", **more),
                )
            module = editor()
            with torch.no_grad():
                find_decoder(module.model).output_projection(1).weight[1] = float(size is None)  # type: ignore[index]
            module.save_pretrained(out)
        assert (out / "model.safetensors").exists() == (size is None)
        assert (out / "model.safetensors.index.json").exists() == (size is not None)
        loaded = LlavaForConditionalGeneration.from_pretrained(out)
        assert loaded.state_dict()[WEIGHT][1, 0] == float(size is None)


def rename(state: dict[str, Any]) -> None:
    name = next(name for name in state if name.endswith("layers.1.mlp.down_proj.weight"))
    state[name.replace(".weight", ".base_layer.weight")] = state.pop(name)


def old_value(state: dict[str, Any]) -> None:
    name = next(name for name in state if name.endswith("layers.1.mlp.down_proj.weight"))
    state[name] = tiny_llava().state_dict()[WEIGHT]


def lost(state: dict[str, Any]) -> None:
    state.pop(next(name for name in state if "vision_tower" in name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "would not load as it was .*missing_keys: .*down_proj"), (lost, "missing_keys"),
        (old_value, "do not hold the edited values of 'model.language_model.layers.1.mlp.down_proj.weight'"),
        (None, "cannot be loaded"), ("adapter", "merge the adapter"), ("named", "names other weights"),
    ],
)  # fmt: skip
def test_what_would_not_load_as_the_edit_is_not_told_as_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    out, save = tmp_path / "out", LlavaForConditionalGeneration.save_pretrained
    editor().save_pretrained(out)
    before = contents(out)

    def saved(self: Any, folder: Path, **more: Any) -> None:
        save(self, folder, **more)
        file = folder / "model.safetensors"
        if change is None:
            file.write_bytes(file.read_bytes()[:-1000])
        elif change == "adapter":
            (folder / "adapter_config.json").write_text("{}")
        elif change == "named":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "old.safetensors"}))
        else:
            state = load_file(file)
            change(state)
            save_file(state, file, {"format": "pt"})

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", saved)
    with pytest.raises(WeightFilesError, match=message):
        editor().save_pretrained(out)
    assert contents(out) == before


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_precision_that_rounds_the_steps_away_is_refused(
    splits: RecordSplits, precision: str, lora_rank: int
) -> None:
    module = PrivacyEditModule(tiny_llava(), [1], tiny_processor(), lora_rank=lora_rank)
    with pytest.raises(UnsupportedSetupError, match=r"small steps are rounded away.*precision='bf16-mixed'"):
        train(module, datamodule(splits), precision=precision)


def test_an_edit_file_replaces_no_other_file(tmp_path: Path) -> None:
    for name in ("base", "edited"):
        save_tiny_llava(tmp_path / name)
    delta = EditDelta.between(tmp_path / "base", tmp_path / "edited")
    checksum = WeightFiles(tmp_path / "base").checksum
    with pytest.raises(DeltaFormatError, match=r"model\.safetensors would be replaced, but is not an edit delta"):
        delta.save(tmp_path / "base" / "model.safetensors")
    assert WeightFiles(tmp_path / "base").checksum == checksum
    for _ in range(2):
        delta.save(tmp_path / "edit.safetensors")
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    for use in (
        lambda: EditDelta.between(tmp_path / "base", tmp_path / "edited"),
        lambda: delta.apply(tmp_path / "base", tmp_path / "new"),
    ):
        with pytest.raises(WeightFilesError, match="merge the adapter, or move the file away"):
            use()
    shutil.rmtree(tmp_path / "base")
