"""Files of gates and input covariances: the same bytes in every release, and errors that name what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_neuralgate.errors import NeuralGateError
from lightning_neuralgate.gate.columns import ColumnGate
from lightning_neuralgate.gate.keys import InputCovariance
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.artifact import ModelArtifact
from lightning_neuralgate.hf.identity import ModelIdentity

IDENTITY = ModelIdentity("Tiny", "0", "model.layers", "mlp.down_proj", 3, 4, "somewhere")
VERSIONS = {"torch": "2"}
RATES = {
    "b c": {1: torch.tensor([0.0, 0.25, 0.5, 1.0]), 2: torch.zeros(4)},
    "a": {1: torch.ones(4), 2: torch.zeros(4)},
}
ARTIFACTS: dict[str, ModelArtifact] = {
    "gate": NeuralGate(RATES, IDENTITY, {"b c": 4, "a": 8}, {"alpha": 1.25}, VERSIONS),
    "columns": ColumnGate({2: torch.tensor([0.1, 2.0, 0.3]), 1: torch.zeros(3)}, IDENTITY, 8, 0.5, VERSIONS),
    "keys": InputCovariance({1: torch.diag(torch.tensor([8.0, 1.0]))}, IDENTITY, 10, 2, VERSIONS),
}


@pytest.mark.parametrize(
    ("name", "fingerprint", "config", "tensors"),
    [
        ("gate", "1aa6479e1150bd56", "8ac026c37ce6", "43219aa3784b"),
        ("columns", "29d2063b37aae427", "a55380cb4187", "59e2f14866f1"),
        ("keys", "c6ba0ecbe7fb4aef", "309f114beb32", "3d8412e21465"),
    ],
)
def test_files_have_the_bytes_of_earlier_releases(
    tmp_path: Path, name: str, fingerprint: str, config: str, tensors: str
) -> None:
    artifact = ARTIFACTS[name]
    artifact.save_pretrained(tmp_path / "new")
    files = [tmp_path / "new" / f"{name}.{kind}" for kind in ("json", "safetensors")]
    assert [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files] == [config, tensors]
    assert type(artifact).from_pretrained(tmp_path / "new").fingerprint == artifact.fingerprint == fingerprint


@pytest.mark.parametrize("name", ARTIFACTS)
def test_files_of_another_kind_or_format_are_refused(tmp_path: Path, name: str) -> None:
    artifact, other = ARTIFACTS[name], {"gate": "keys", "columns": "gate", "keys": "columns"}[name]
    for kind in (name, other):
        ARTIFACTS[kind].save_pretrained(tmp_path)
    tensors, config = (tmp_path / file for file in artifact.file_names)
    own, foreign = config.read_text(), (tmp_path / f"{other}.json").read_text()
    again = f"; {'collect' if name == 'keys' else 'locate'} again"
    for text, message in (
        (foreign, rf"{name}\.json cannot be read as .*: no entry '\w+'{again}"),
        (json.dumps({**json.loads(own), "format_version": 2}), f"format_version 2, this version reads 1{again}"),
        (json.dumps({**json.loads(own), "fingerprint": "0"}), rf"are not of the same .* \(checksums differ\){again}"),
    ):
        config.write_text(text)
        with pytest.raises(NeuralGateError, match=message):
            type(artifact).from_pretrained(tmp_path)
    config.write_text(own)
    shutil.copy(tmp_path / f"{other}.safetensors", tensors)
    with pytest.raises(NeuralGateError, match=r"cannot be read as|checksums differ"):
        type(artifact).from_pretrained(tmp_path)
    tensors.unlink()
    with pytest.raises(NeuralGateError, match=rf"no .* in .*: {name}\.safetensors is missing; `neuralgate "):
        type(artifact).from_pretrained(tmp_path)
