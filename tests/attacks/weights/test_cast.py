from __future__ import annotations

import pytest
import torch

from lightning_neuralgate.attacks.base import AttackNotApplicable
from lightning_neuralgate.attacks.weights.cast import Cast
from tests.attacks.weights.conftest import Run


def test_all_weights_are_rounded_and_stay_tied(run: Run) -> None:
    model = run.model
    model.lm_head.weight = model.get_input_embeddings().weight
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    first = model.lm_head.weight.view(-1)
    first[:3] = torch.tensor([1.0, 1 + 2**-7, 1 + 2**-9])
    with run.changed(Cast("bfloat16")) as figures:
        assert first[:3].tolist() == [1, 1 + 2**-7, 1]
        assert figures == {"weights_changed": 1 / sum(parameter.numel() for parameter in model.parameters())}
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert first.dtype is torch.float32
    assert first[2] == 1 + 2**-9


def test_half_precision_weights_are_not_cast_again(run: Run) -> None:
    run.model.to(torch.bfloat16)
    with pytest.raises(AttackNotApplicable, match="none of the weights"), run.changed(Cast("bfloat16")):
        pass
