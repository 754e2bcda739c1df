"""The scores of MIP-Editor equal loops over rows, tokens and steps, and only selected columns train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.methods import MethodData
from lightning_neuralgate.methods.data import MethodBatches
from lightning_neuralgate.methods.mip_editor import MIPEditor, batch_scores, best_units, neuron_scores
from tests.helpers.reference import one_row, target_loss
from tests.methods.conftest import LAYER

LAYERS = (0, 1, 2)


def leaks(data: MethodData) -> dict[str, Any]:
    return next(iter(MethodBatches(data, ["leak"], 4).pairs_dataloader()))


def log_probability(model: Any, row: dict[str, Tensor], inputs: dict[int, Tensor]) -> Tensor:
    """Return the mean log-probability of a row's target with the inputs of projections replaced."""
    handles = [
        find_decoder(model)
        .output_projection(layer)
        .register_forward_pre_hook(lambda module, args, layer=layer: (inputs[layer],))
        for layer in inputs
    ]
    found = -target_loss(model, row)
    for handle in handles:
        handle.remove()
    return found


def projection_inputs(model: Any, row: dict[str, Tensor]) -> dict[int, Tensor]:
    seen: dict[int, Tensor] = {}
    handles = [
        find_decoder(model)
        .output_projection(layer)
        .register_forward_pre_hook(lambda module, args, layer=layer: seen.update({layer: args[0].detach()}))
        for layer in LAYERS
    ]
    target_loss(model, row)
    for handle in handles:
        handle.remove()
    return seen


def test_scores_equal_a_loop_over_rows_tokens_and_steps(unedited: Any, data: MethodData) -> None:
    batch, steps = leaks(data), 3
    found = batch_scores(unedited, batch, LAYERS, steps)
    picture = unedited.config.image_token_index
    text, pictures = ({layer: torch.zeros(48) for layer in LAYERS} for _ in range(2))
    for index in range(len(batch["role"])):
        row = one_row(batch, index)
        inputs = projection_inputs(unedited, row)
        ids = row["input_ids"][0].tolist()
        last_picture = max(column for column, token in enumerate(ids) if token == picture)
        for step in (1, 2, 3):
            path = {layer: (a * step / steps).requires_grad_() for layer, a in inputs.items()}
            log_probability(unedited, row, path).backward()
            for layer, a in path.items():
                gradient = a.grad
                assert gradient is not None
                for column, token in enumerate(ids):
                    if token == picture:
                        pictures[layer] += gradient[0, column] ** 2 / steps
                    elif column > last_picture:
                        text[layer] += inputs[layer][0, column] * gradient[0, column] / steps
    for layer in LAYERS:
        torch.testing.assert_close(found.text[layer].float(), text[layer], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.picture[layer].float(), pictures[layer], atol=1e-4, rtol=1e-3)


def test_integrated_gradients_add_up_to_the_change_along_the_path(
    unedited: Any, data: MethodData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tokens counted as text and many steps: F with all units minus F without any."""
    batch = leaks(data)
    monkeypatch.setattr(unedited.config, "image_token_index", -1)
    found = batch_scores(unedited, {**batch, "pixel_values": None}, LAYERS, 400)
    total = sum(float(values.sum()) for values in found.text.values())
    expected = 0.0
    for index in range(len(batch["role"])):
        row = one_row(batch, index)
        del row["pixel_values"]
        inputs = projection_inputs(unedited, row)
        nothing = {layer: torch.zeros_like(a) for layer, a in inputs.items()}
        with torch.no_grad():
            expected -= float(target_loss(unedited, row)) + float(log_probability(unedited, row, nothing))
    assert total == pytest.approx(expected, rel=0.05)
    assert all(float(values.abs().max()) == 0 for values in found.picture.values())


def test_only_selected_columns_change(unedited: nn.Module, data: MethodData) -> None:
    fitted = MIPEditor(neurons=3, epochs=2, lr=1e-2).fit(unedited, data)
    scores = neuron_scores(unedited, data, LAYERS, 4)
    count = 0
    for layer in LAYERS:
        name = f"model.language_model.layers.{layer}.mlp.down_proj.weight"
        chosen = best_units(scores.text[layer], 3) | best_units(scores.picture[layer], 3)
        assert 3 <= int(chosen.sum()) <= 6
        change = fitted.weights[name] - unedited.get_parameter(name).detach()
        assert torch.equal((change != 0).any(0), chosen)
        count += int(chosen.sum())
    assert fitted.report["neurons"] == count


def test_it_can_keep_to_the_layer_of_the_data(unedited: nn.Module, data: MethodData) -> None:
    fitted = MIPEditor(place="data", epochs=1).fit(unedited, data)
    assert list(fitted.weights) == [f"model.language_model.layers.{LAYER}.mlp.down_proj.weight"]
