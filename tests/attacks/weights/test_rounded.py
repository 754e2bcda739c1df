from __future__ import annotations

import pytest
import torch

from lightning_neuralgate.attacks.weights.rounded import Rounded, round_to_nearest
from lightning_neuralgate.hf.decoder import find_decoder
from tests.attacks.weights.conftest import Run


def test_codes_and_values_by_hand() -> None:
    # scales 0.1, 0.2 and, for the group of one, 0.3 / 7; the second row has a group of zeros
    values = torch.tensor([[0.7, -0.31, 1.4, 0.29, 0.3], [0.0, 0.0, -0.7, 0.26, 0.0]])
    rounded, codes = round_to_nearest(values, bits=4, group=2)
    assert codes.tolist() == [[7, -3, 7, 1, 7], [0, 0, -7, 3, 0]]
    expected = torch.tensor([[0.7, -0.3, 1.4, 0.2, 0.3], [0.0, 0.0, -0.7, 0.3, 0.0]])
    torch.testing.assert_close(rounded, expected)
    assert round_to_nearest(values, bits=8, group=5)[1][0].tolist() == [64, -28, 127, 26, 27]


def test_linear_layers_of_the_decoder_are_rounded_and_nothing_else(run: Run) -> None:
    before = run.bits()
    with run.changed(Rounded(4, group=8)):
        changed = run.changed_names(before)
        weight = run.model.model.language_model.layers[0].self_attn.q_proj.weight
        assert all(len(group.unique()) <= 15 for group in weight.view(-1, 8))
    assert all(".language_model.layers." in name and "_proj" in name for name in changed)
    assert len(changed) == 3 * 7


def test_the_share_of_edited_weights_with_another_code(run: Run) -> None:
    layout = find_decoder(run.model)
    weight, base = (
        find_decoder(model).output_projection(2).weight.data for model in (run.model, run.context.load_unedited())
    )
    weight.copy_(base)
    weight[0, 0] += base[0].abs().max()  # many steps
    weight[1, 0] += 1e-6  # a fraction of one
    with run.changed(Rounded(4)) as figures:
        assert figures == {"edited_codes_changed": pytest.approx(0.5)}
    with run.without_unedited().changed(Rounded(4)) as figures:
        assert figures == {}
    assert layout.output_projection(2).weight[1, 0] == base[1, 0] + 1e-6
