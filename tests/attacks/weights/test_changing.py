from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_neuralgate.attacks.base import AttackNotApplicable
from lightning_neuralgate.attacks.weights.ablated import Ablated
from lightning_neuralgate.attacks.weights.cast import Cast
from lightning_neuralgate.attacks.weights.changing import changeable_model, linear_layers, matrix, unedited_values
from lightning_neuralgate.attacks.weights.interpolated import Interpolated
from lightning_neuralgate.attacks.weights.relearned import Relearned
from lightning_neuralgate.attacks.weights.rounded import Rounded
from lightning_neuralgate.edit.lora import add_lora
from tests.attacks.weights.conftest import Run
from tests.helpers.tiny_llava import tiny_llava

ATTACKS = (
    Cast("bfloat16"),
    Rounded(4, group=8),
    Interpolated(0.5),
    Relearned("benign", 2),
    Relearned("leaks", 2),
    Ablated(),
)


def fail_inside(attack: Any, run: Run, before: dict[str, bytes]) -> None:
    with run.changed(attack):
        assert run.changed_names(before)
        assert run.model.training
        assert torch.is_grad_enabled()
        raise KeyError


@pytest.mark.parametrize("run", ["llava", "minigpt"], indirect=True)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_model_is_restored_exactly_after_an_error(attack: Any, run: Run) -> None:
    model = run.model.train()
    weights = list(model.parameters())
    weights[0].requires_grad_(False)
    weights[-1].data.view(-1)[0] = -0.0
    before, flags = run.bits(), [parameter.requires_grad for parameter in weights]
    with pytest.raises(KeyError):
        fail_inside(attack, run, before)
    assert run.bits() == before
    assert [parameter.requires_grad for parameter in weights] == flags
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in weights)


def test_quantized_adapted_and_offloaded_weights_are_refused() -> None:
    quantized, adapted = tiny_llava(), tiny_llava()
    quantized.config.quantization_config = SimpleNamespace(load_in_4bit=True)
    with pytest.raises(AttackNotApplicable, match="quantized"):
        changeable_model(quantized)
    add_lora(adapted, [1], 2)
    with pytest.raises(AttackNotApplicable, match="adapter"):
        changeable_model(adapted)
    with pytest.raises(AttackNotApplicable, match="offloaded"):
        changeable_model(tiny_llava().to("meta"))


def test_models_with_other_layers_cannot_be_compared() -> None:
    with pytest.raises(AttackNotApplicable, match=r"model\.language_model\.layers\.2"):
        unedited_values(tiny_llava(), tiny_llava(layers=2))


def test_a_matrix_has_its_outputs_first_and_tied_layers_come_once() -> None:
    config = GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2)
    block = GPT2LMHeadModel(config).transformer.h[0]
    assert [tuple(matrix(layer).shape) for layer in linear_layers([block])] == [(24, 8), (8, 8), (32, 8), (8, 32)]
    pair = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    pair[1].weight = pair[0].weight
    assert list(linear_layers([pair])) == [pair[0]]
