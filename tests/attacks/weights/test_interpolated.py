from __future__ import annotations

import pytest
import torch

from lightning_neuralgate.attacks.base import AttackNotApplicable
from lightning_neuralgate.attacks.weights.interpolated import Interpolated
from lightning_neuralgate.hf.decoder import find_decoder
from tests.attacks.weights.conftest import Run
from tests.helpers.tiny_llava import tiny_llava


def test_half_of_the_edit_is_kept(run: Run) -> None:
    weight = find_decoder(run.model).output_projection(2).weight
    base = find_decoder(tiny_llava()).output_projection(2).weight
    before = run.bits()
    with run.changed(Interpolated(0.5)):
        assert run.changed_names(before) == {"model.language_model.layers.2.mlp.down_proj.weight"}
        torch.testing.assert_close(weight[::2], base[::2] + 0.05)
        assert torch.equal(weight[1::2], base[1::2])


def test_it_needs_an_edit_and_the_unedited_model(run: Run) -> None:
    with (
        pytest.raises(AttackNotApplicable, match="no unedited model"),
        run.without_unedited().changed(Interpolated(0.5)),
    ):
        pass
    run.model.load_state_dict(tiny_llava().state_dict())
    with pytest.raises(AttackNotApplicable, match="those of the unedited model"), run.changed(Interpolated(0.5)):
        pass


def test_names_and_clauses() -> None:
    assert Interpolated(0.25).name == "interpolated_25"
    assert "25%" in Interpolated(0.25).clause
