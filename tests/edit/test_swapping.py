"""The edited model with its unedited weights, by swapping rows in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_neuralgate.edit.delta import EditDelta
from lightning_neuralgate.edit.swapping import SwappableEdit
from lightning_neuralgate.edit.weight_files import WeightFiles
from lightning_neuralgate.errors import UnsupportedSetupError
from tests.helpers.tiny_llava import tiny_llava


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and `edited` with changes in a matrix and a vector."""
    folder = tmp_path_factory.mktemp("swap")
    model = tiny_llava()
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        layer = model.model.language_model.layers[1]
        layer.mlp.down_proj.weight[[1, 5]] += 0.1
        layer.input_layernorm.weight[3] = 7
    model.save_pretrained(folder / "edited")
    return folder


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_unedited_weights_are_exact_in_the_block_and_the_edited_ones_after_it(
    folders: Path, dtype: torch.dtype
) -> None:
    kind = type(tiny_llava())
    base, model = (kind.from_pretrained(folders / name, dtype=dtype) for name in ("base", "edited"))
    edited = state(model)
    assert not same(edited, state(base))
    delta = EditDelta.between(folders / "base", folders / "edited")
    assert len(delta.tensors) == 2
    swap = SwappableEdit(model, WeightFiles(folders / "edited"), delta)
    for _ in range(2):
        with swap.unedited():
            assert same(state(model), state(base))
        assert same(state(model), edited)
    with pytest.raises(KeyError), swap.unedited():
        raise KeyError
    assert same(state(model), edited)


def test_a_model_that_does_not_hold_the_edit_is_refused(folders: Path) -> None:
    delta = EditDelta.between(folders / "base", folders / "edited")
    with pytest.raises(UnsupportedSetupError, match=r"holds the edited rows of '.*weight'.*neuralgate revert"):
        SwappableEdit(tiny_llava(), WeightFiles(folders / "edited"), delta)
