"""One loaded model that answers as two."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lightning_neuralgate.data.collator import QueryRow
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError, WeightFilesError
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.models.loading import load_model
from lightning_neuralgate.play.models import LoadedModel
from lightning_neuralgate.play.page import Playground
from lightning_neuralgate.play.pictures import draw_picture


def test_both_versions_answer_as_the_models_that_are_loaded_one_by_one(pair: Path) -> None:
    rows = [
        QueryRow(text, "benign", draw_picture("passport", 1).png) for text in ("What is it?", "Tell me the number.")
    ]
    loaded = LoadedModel.load(str(pair / "edited"), beside=str(pair / "base"))
    assert [version.role for version in loaded.versions] == ["unedited", "edited"]
    assert [version.name for version in loaded.versions] == [str(pair / "base"), str(pair / "edited")]
    expected = [answer_rows(*load_model(pair / name), rows, 6) for name in ("base", "edited")]
    assert expected[0] != expected[1]
    for _ in range(2):  # swapping leaves no trace
        assert [loaded.answers(version, rows, 6) for version in loaded.versions] == expected


def test_the_edit_file_in_the_folder_takes_the_place_of_the_unedited_model(pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(pair / "edited", folder)
    with pytest.raises(UnsupportedSetupError, match=r"has no edit\.safetensors.*--beside"):
        LoadedModel.load(str(folder), both=True)
    with pytest.raises(UnsupportedSetupError, match="has the weights of the unedited model"):
        LoadedModel.load(str(folder), beside=str(pair / "edited"))
    EditDelta.between(pair / "base", folder, {"scope": "subject"}).save(folder / "edit.safetensors")
    loaded = LoadedModel.load(str(folder), both=True)
    assert loaded.scope == "subject"
    assert [version.label for version in loaded.versions] == [
        f"unedited ({folder} without its edit)",
        f"edited ({folder})",
    ]
    EditDelta.between(folder, pair / "base").save(folder / "edit.safetensors")
    with pytest.raises(WeightFilesError, match="there is nothing to be done"):
        LoadedModel.load(str(folder), both=True)


def test_a_model_alone_has_no_role(pair: Path) -> None:
    (version,) = LoadedModel.load(str(pair / "base")).versions
    assert version.label == str(pair / "base")


def test_the_gate_has_to_be_one_of_the_same_model(pair: Path) -> None:
    loaded = LoadedModel.load(str(pair / "edited"), beside=str(pair / "base"))
    gate = NeuralGate.uniform(loaded.model, [1], ["passport"])
    assert Playground(loaded, gate).gate is gate
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[0] += 1
    with pytest.raises(GateMismatchError, match="located in another model"):
        Playground(loaded, gate)
