from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from lightning_neuralgate.errors import GateFormatError, JudgeError, ModelLayoutError
from lightning_neuralgate.hf.hub import local_folder
from lightning_neuralgate.judges.chat import LocalChat
from lightning_neuralgate.models.loading import load_model


@pytest.fixture
def requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Repositories that were requested from the hub, in a folder with a folder `runs`."""
    requested: list[str] = []

    def download(name: str, **options: Any) -> str:
        requested.append(name)
        return str(tmp_path)

    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return requested


@pytest.mark.parametrize(
    "source", ["runs/gaet", "./gate", "../gate", "a/b/gate", "/nowhere/gate", "gate/", "~/gaet", "gaet"]
)
def test_a_mistyped_path_is_not_looked_up_on_the_hub(source: str, requested: list[str]) -> None:
    with pytest.raises(GateFormatError, match=f"there is no folder '{source}' in "):
        local_folder(source, GateFormatError)
    assert requested == []


def test_a_repository_is_announced(requested: list[str]) -> None:
    with pytest.warns(UserWarning, match="no folder 'owner/gate' in .*: loading the hub repository of that name"):
        local_folder("owner/gate", GateFormatError)
    assert requested == ["owner/gate"]


def test_models_and_judges_have_the_same_rule(requested: list[str]) -> None:
    with pytest.raises(
        ModelLayoutError, match=r"there is no folder 'runs/modle' in .* although there is a folder 'runs'"
    ):
        load_model("runs/modle")
    with pytest.raises(JudgeError, match=r"there is no folder '\./judge'"):
        LocalChat.load("./judge")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "gate").mkdir()
    assert local_folder("~/gate", GateFormatError) == tmp_path / "gate"
