from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_neuralgate.errors import GateFormatError, GateMismatchError
from lightning_neuralgate.gate.neural_gate import CONFIG_NAME, WEIGHTS_NAME, NeuralGate
from lightning_neuralgate.hf.identity import ModelIdentity, model_checksum
from tests.helpers.tiny_llava import tiny_llava

IDENTITY = ModelIdentity("Tiny", "abc", "model.layers", "mlp.down_proj", 3, 4)
RATES = torch.tensor([0.0, 0.25, 0.5, 1.0])


def make_gate() -> NeuralGate:
    rates = {"Passport": {1: RATES, 2: RATES.flip(0)}, "student ID": {1: RATES / 2, 2: RATES * 0}}
    return NeuralGate(rates, IDENTITY, {"Passport": 4, "student ID": 8}, {"alpha": 1.25})


def test_masks_classes_and_repr() -> None:
    gate = make_gate()
    assert (gate.subjects, gate.layers) == (["passport", "student id"], [1, 2])
    assert gate.mask("PASSPORT", 1, tau=0.25).tolist() == [False, False, True, True], "tau itself is weakly active"
    assert gate.mask("passport", 1, tau=0.0).tolist() == [False, True, True, True]
    assert gate.shares("passport", 1, tau=0.3) == (0.25, 0.25, 0.5)
    assert gate.shares("student ID", 2) == (1.0, 0.0, 0.0)
    assert "student id (8 records), layer 1: 25.0 % inactive, 50.0 % weakly active, 25.0 % strongly active" in repr(
        gate
    )


def test_returned_rates_are_copies() -> None:
    gate = make_gate()
    gate.rates("passport", 1).zero_()
    assert torch.equal(gate.rates("passport", 1), RATES)


def test_a_saved_gate_loads_unchanged(tmp_path: Path) -> None:
    gate = make_gate()
    gate.save_pretrained(tmp_path / "gate")
    loaded = NeuralGate.from_pretrained(tmp_path / "gate")
    assert sorted(path.name for path in (tmp_path / "gate").iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    assert loaded.fingerprint == gate.fingerprint
    assert (loaded.model, loaded.records, loaded.settings) == (gate.model, gate.records, {"alpha": 1.25})
    assert loaded.versions == gate.versions
    assert {"torch", "transformers", "python"} <= set(loaded.versions)
    for subject in gate.subjects:
        for layer in gate.layers:
            assert torch.equal(loaded.rates(subject, layer), gate.rates(subject, layer))


def test_unknown_subjects_and_layers_are_refused() -> None:
    gate = make_gate()
    with pytest.raises(GateMismatchError, match="no subject 'drone'; it covers passport, student id"):
        gate.mask("drone", 1)
    with pytest.raises(GateMismatchError, match=r"no layer 0; it covers \[1, 2\]"):
        gate.mask("passport", 0)
    with pytest.raises(ValueError, match="tau"):
        gate.mask("passport", 1, tau=-0.1)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"a": {1: torch.zeros(5)}}, r"subject 'a', layer 1: shape \(5,\), expected \(4,\)"),
        ({"a": {1: torch.full((4,), 1.5)}}, "outside"),
        ({"a": {1: torch.full((4,), float("nan"))}}, "outside"),
        ({"a": {3: torch.zeros(4)}}, "the model has layers 0 to 2"),
        ({"a": {1: torch.zeros(4)}, "b": {2: torch.zeros(4)}}, "same layers"),
        ({}, "at least one subject"),
        ({"c": {1: torch.zeros(4)}}, "no number of records"),
    ],
)
def test_invalid_rates_are_refused(rates: dict[str, dict[int, torch.Tensor]], message: str) -> None:
    with pytest.raises(GateFormatError, match=message):
        NeuralGate(rates, IDENTITY, {"a": 1, "b": 1})


def _edit_config(folder: Path, **changes: object) -> None:
    file = folder / CONFIG_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_errors_name_broken_files(tmp_path: Path) -> None:
    def fresh() -> Path:
        make_gate().save_pretrained(tmp_path)
        return tmp_path

    fresh().joinpath(WEIGHTS_NAME).unlink()
    with pytest.raises(GateFormatError, match=r"gate\.safetensors is missing"):
        NeuralGate.from_pretrained(tmp_path)
    fresh().joinpath(WEIGHTS_NAME).write_bytes(b"not tensors")
    with pytest.raises(GateFormatError, match="cannot be read"):
        NeuralGate.from_pretrained(tmp_path)
    fresh().joinpath(CONFIG_NAME).write_text("{")
    with pytest.raises(GateFormatError, match=r"gate\.json, line 1: not JSON"):
        NeuralGate.from_pretrained(tmp_path)
    _edit_config(fresh(), format_version=99)
    with pytest.raises(GateFormatError, match="format_version 99, this version reads 1"):
        NeuralGate.from_pretrained(tmp_path)
    _edit_config(fresh(), model={"architecture": "Tiny"})
    with pytest.raises(
        GateFormatError, match=r"gate\.json cannot be read as gate: .*missing 5 required .*; locate again"
    ):
        NeuralGate.from_pretrained(tmp_path)
    fresh()
    save_file(
        {f"{s}/{layer}": torch.ones(4) for s in ("passport", "student id") for layer in (1, 2)}, tmp_path / WEIGHTS_NAME
    )
    with pytest.raises(GateFormatError, match="not of the same gate"):
        NeuralGate.from_pretrained(tmp_path)


def test_a_missing_folder_or_repository_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(GateFormatError, match="there is no folder"):
        NeuralGate.from_pretrained(tmp_path / "nowhere" / "at" / "all")


def test_fits_only_its_model_at_any_precision_and_after_an_edit() -> None:
    model = tiny_llava()
    identity = ModelIdentity.of(model)
    gate = NeuralGate({"passport": {1: torch.rand(32)}}, identity, {"passport": 1})
    gate.check_fits(model)
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight.add_(1.0)
    gate.check_fits(model)
    gate.check_fits(model.bfloat16())
    with pytest.raises(GateMismatchError, match="num_layers: gate has 3, model has 4"):
        gate.check_fits(tiny_llava(layers=4))
    with pytest.raises(GateMismatchError, match="checksum"):
        gate.check_fits(tiny_llava(seed=5))


def test_model_checksum_sees_an_edited_row() -> None:
    model = tiny_llava()
    before = model_checksum(model)
    assert before == model_checksum(tiny_llava())
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight[3].add_(1e-3)
    assert model_checksum(model) != before


def test_the_right_model_in_another_precision_is_not_called_another_model() -> None:
    model = tiny_llava()
    identity = ModelIdentity.of(model)
    gate = NeuralGate({"passport": {1: torch.zeros(32)}}, identity, {"passport": 1})
    gate.check_fits(tiny_llava().bfloat16())
    with pytest.raises(GateMismatchError, match=r"the model's weights are float16, .*--model\.dtype bfloat16"):
        gate.check_fits(tiny_llava().half())
    with pytest.raises(GateMismatchError, match="located in another model"):
        gate.check_fits(tiny_llava(seed=1))
    quantized = tiny_llava(seed=1)  # quantized weights have other bits
    quantized.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(GateMismatchError, match="the model's weights are 8-bit"):
        gate.check_fits(quantized)
