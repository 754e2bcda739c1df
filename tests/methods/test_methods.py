"""Every method of the registry fits a tiny model, leaves it as it was, and changes its answers when applied."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from lightning_neuralgate.edit.delta import DELTA_NAME, EditDelta
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import GateMismatchError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import model_checksum
from lightning_neuralgate.methods import METHODS, Method, MethodData, Steering, WeightEdit
from lightning_neuralgate.methods.base import MOST_TRIES, Tier
from tests.helpers.tiny_llava import tiny_llava, tiny_processor

SHORT: dict[str, dict[str, Any]] = {
    "ft": {"epochs": 1}, "ft_l": {"epochs": 1}, "lora": {"epochs": 1, "rank": 2}, "lora_all": {"epochs": 1, "rank": 2},
    "ungated": {"epochs": 1}, "neural_gate": {"epochs": 1}, "shuffled_mask": {"epochs": 1}, "random_mask": {"epochs": 1},
    "gru": {"epochs": 1}, "dpo": {"epochs": 1}, "dinm": {"epochs": 1}, "npo": {"epochs": 1},
    "simnpo": {"epochs": 1}, "sku": {"epochs": 1},
    "memflex": {"epochs": 1, "cosine": 1.1}, "memflex_refusal": {"epochs": 1},
    "mip_editor": {"epochs": 1}, "rmu": {"epochs": 1}, "circuit_breakers": {"epochs": 1, "rank": 2},
    "memit": {"steps": 2, "contexts": 2, "span": 2}, "alphaedit": {"steps": 2, "contexts": 2, "span": 2},
}  # fmt: skip
"""Settings that make a fit short, for methods that take more than a moment."""


@pytest.mark.parametrize("name", METHODS)
def test_fits_and_leaves_the_model_as_it_was(name: str, unedited: nn.Module, data: MethodData) -> None:
    before = model_checksum(unedited)
    names = set(dict(unedited.named_parameters()))
    fitted = METHODS[name](**SHORT.get(name, {})).fit(unedited, data)
    assert isinstance(fitted, (WeightEdit, Steering))
    assert model_checksum(unedited) == before
    assert set(dict(unedited.named_parameters())) == names
    assert not any(parameter.requires_grad for parameter in unedited.parameters()) or isinstance(fitted, Steering)
    json.dumps([dict(fitted.settings), dict(fitted.report)])
    if isinstance(fitted, WeightEdit):
        weights = {key: value.clone() for key, value in unedited.named_parameters()}
        with fitted.applied(unedited):
            changed = [key for key, value in unedited.named_parameters() if not torch.equal(value, weights[key])]
        assert sorted(changed) == sorted(fitted.weights)
        assert model_checksum(unedited) == before


def test_every_method_has_tries_that_it_accepts() -> None:
    for name, method in METHODS.items():
        variants = method().variants()
        assert 1 <= len(variants) <= MOST_TRIES
        assert len({json.dumps(variant.settings()) for variant in variants}) == len(variants), name
        assert method.name == name
        assert "Owner" in str(method.__doc__), name


@dataclass(frozen=True)
class Scaled(Method):
    """A toy method in one file: scale a projection."""

    name: ClassVar[str] = "scaled"
    tier: ClassVar[Tier] = 3

    factor: float = 0.5

    def fit(self, model: nn.Module, data: MethodData) -> WeightEdit:
        name = f"{find_decoder(model).projection_path(data.layer)}.weight"
        weights = {name: self.factor * model.get_parameter(name).detach()}
        return WeightEdit(method=self.name, settings=self.settings(), weights=weights, base=model_checksum(model))


def test_a_toy_method_ends_in_an_edit_file_that_is_undone(
    unedited: nn.Module, data: MethodData, checkpoint: Path, tmp_path: Path
) -> None:
    edit = Scaled().fit(unedited, data)
    delta = edit.save_pretrained(tmp_path / "edited", unedited, tiny_processor(), checkpoint)
    (name,) = delta.tensors
    assert name.endswith("layers.1.mlp.down_proj.weight")
    assert delta.provenance["method"] == "scaled"
    assert json.loads(delta.provenance["settings"]) == {"factor": 0.5}
    stored = EditDelta.load(tmp_path / "edited" / DELTA_NAME)
    stored.apply(checkpoint, tmp_path / "applied")
    assert WeightFiles(tmp_path / "applied").checksum == WeightFiles(tmp_path / "edited").checksum
    stored.revert(tmp_path / "edited", tmp_path / "reverted")
    assert WeightFiles(tmp_path / "reverted").checksum == WeightFiles(checkpoint).checksum


def test_an_edit_refuses_another_model(unedited: nn.Module, data: MethodData) -> None:
    edit = Scaled().fit(unedited, data)
    with pytest.raises(GateMismatchError, match="fitted to a model with checksum"), edit.applied(tiny_llava(seed=1)):
        pass


def test_wrong_tries_are_named() -> None:
    class Wrong(Scaled):
        tries = ({"speed": 1},)

    with pytest.raises(ValueError, match="no setting 'speed', only factor"):
        Wrong().variants()
