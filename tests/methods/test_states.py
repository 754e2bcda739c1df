"""States of layers, and the methods whose losses read them, equal loops over single rows without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_neuralgate.data.collator import PrivacyPairCollator
from lightning_neuralgate.edit.lora import remove_lora
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.methods import MethodData
from lightning_neuralgate.methods.circuit_breakers import CircuitBreakers, RerouteModule
from lightning_neuralgate.methods.data import MethodBatches
from lightning_neuralgate.methods.rmu import RMU, random_direction
from lightning_neuralgate.methods.states import layer_states, pooled_states
from tests.helpers.reference import one_row
from tests.methods.conftest import LAYER

CLOSE: dict[str, float] = {"atol": 1e-4, "rtol": 1e-3}
NAMES = {layer: f"model.language_model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)}


def plain_states(model: Any, batch: dict[str, Any], row: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's output for one row, (T, d), and which of its tokens are targets, (T,)."""
    single = one_row(batch, row)
    if batch["role"][row] == "retention" and "pixel_values" in single:
        del single["pixel_values"]  # the ordinary questions of the tests have no picture
    is_target = single.pop("labels")[0] != -100
    del single["subject_mask"]
    seen: list[torch.Tensor] = []
    handle = find_decoder(model).layer(layer).register_forward_hook(lambda m, a, output: seen.append(output))
    model(**single)
    handle.remove()
    return seen[0][0], is_target


def retained_batch(data: MethodData, kinds: Any) -> dict[str, Any]:
    return next(iter(MethodBatches(data, kinds, 2, retention_per_batch=1).pairs_dataloader()))


def test_states_are_those_of_single_rows(unedited: Any, data: MethodData) -> None:
    rows = [data.pairs[0].leak, data.pairs[1].refusal]
    batch = PrivacyPairCollator(data.processor)(rows)
    target = pooled_states(unedited, data.processor, rows, [0, LAYER], "target")
    text = pooled_states(unedited, data.processor, rows, [LAYER], "text")[LAYER]
    last = pooled_states(unedited, data.processor, rows, [LAYER], "last")[LAYER]
    picture = unedited.config.image_token_index
    with torch.no_grad():
        for row in range(2):
            for layer in (0, LAYER):
                states, is_target = plain_states(unedited, batch, row, layer)
                torch.testing.assert_close(target[layer][row].float(), states[is_target].mean(0), **CLOSE)
            prompt = states[~is_target]
            ids = one_row(batch, row)["input_ids"][0][~is_target]
            behind = int((ids == picture).nonzero()[-1, 0]) + 1
            torch.testing.assert_close(text[row].float(), prompt[behind:].mean(0), **CLOSE)
            torch.testing.assert_close(last[row].float(), prompt[-1], **CLOSE)


def test_layers_above_are_not_run(unedited: Any, data: MethodData) -> None:
    batch = PrivacyPairCollator(data.processor)([data.pairs[0].leak])
    ran: list[int] = []
    layers = find_decoder(unedited).layers
    handles = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number)) for number, layer in enumerate(layers)
    ]
    layer_states(unedited, batch, [LAYER])
    for handle in handles:
        handle.remove()
    assert ran == list(range(LAYER + 1))


def test_rmu_equals_the_formula_for_weights_that_have_moved(unedited: Any, data: MethodData) -> None:
    batch = retained_batch(data, RMU.kinds)
    method = RMU(coefficient=3.0, retain_weight=7.0)
    module: Any = method.module(unedited, data)
    control = 3.0 * random_direction(32, data.seed)
    weight = unedited.get_parameter(NAMES[0])
    original = weight.detach().clone()
    retained = [row for row, kind in enumerate(batch["kind"]) if kind != "leak"]
    with torch.no_grad():
        before = {row: plain_states(unedited, batch, row, LAYER)[0] for row in retained}
        try:
            weight.mul_(1.5)
            after = {row: plain_states(unedited, batch, row, LAYER) for row in range(len(batch["kind"]))}
            terms = module.objective(batch, None)
        finally:
            weight.copy_(original)
            unedited.requires_grad_(False)
    forget = [(after[row][0][after[row][1]] - control).square() for row in after if row not in retained]
    kept = [(after[row][0] - before[row])[after[row][1]].square() for row in retained]
    torch.testing.assert_close(terms["forget"], torch.cat(forget).mean(), **CLOSE)
    torch.testing.assert_close(terms["retain"], 7.0 * torch.cat(kept).mean(), **CLOSE)
    assert float(terms["retain"]) > 0


def test_rmu_moves_leaks_towards_its_direction_with_three_projections(unedited: nn.Module, data: MethodData) -> None:
    fitted = RMU(epochs=20, lr=1e-2, coefficient=2.0, unit="norm", retain_weight=0.0).fit(unedited, data)
    assert sorted(fitted.weights) == [NAMES[0], NAMES[1]]
    assert fitted.report["relative_coefficient"] == pytest.approx(2.0)
    rows = [pair.leak for pair in data.pairs]
    direction = random_direction(32, data.seed).double()
    before = pooled_states(unedited, data.processor, rows, [LAYER], "target")[LAYER]
    with fitted.applied(unedited):
        after = pooled_states(unedited, data.processor, rows, [LAYER], "target")[LAYER]
    cosines = [torch.cosine_similarity(states, direction[None]).mean() for states in (before, after)]
    assert cosines[1] > 0.8 > cosines[0]


def test_rmu_keeps_what_is_retained_with_more_weight(unedited: nn.Module, data: MethodData) -> None:
    settings: dict[str, Any] = {"epochs": 10, "lr": 1e-2, "coefficient": 2.0, "unit": "norm"}
    rows = [pair.answer for pair in data.pairs]
    before = pooled_states(unedited, data.processor, rows, [LAYER], "target")[LAYER]
    moved = []
    for weight in (0.0, 100.0):
        with RMU(retain_weight=weight, **settings).fit(unedited, data).applied(unedited):
            moved.append(pooled_states(unedited, data.processor, rows, [LAYER], "target")[LAYER] - before)
    assert moved[1].norm() < 0.5 * moved[0].norm()


def test_rerouting_equals_the_formula_for_weights_that_have_moved(unedited: Any, data: MethodData) -> None:
    batch = retained_batch(data, CircuitBreakers.kinds)
    module: Any = CircuitBreakers(coefficient=8.0, rank=2).module(unedited, data)
    module.progress = 0.25
    rows = range(len(batch["kind"]))
    layers = (0, 1, 2)
    try:
        with torch.no_grad():
            before = {(row, layer): plain_states(unedited, batch, row, layer)[0] for row in rows for layer in layers}
            for number, (name, factor) in enumerate(unedited.named_parameters()):
                if ".lora_B." in name:
                    factor.normal_(generator=torch.Generator().manual_seed(number))
            after = {(row, layer): plain_states(unedited, batch, row, layer) for row in rows for layer in layers}
            terms = module.objective(batch, None)
    finally:
        remove_lora(unedited)
        unedited.requires_grad_(False)
    leaks = [row for row in rows if batch["kind"][row] == "leak"]
    cosines = []
    for layer in (1, 2):  # the data's layer and twice that
        for row in leaks:
            states, is_target = after[row, layer]
            cosines += [
                max(0.0, float(h @ h0 / (h.norm() * h0.norm())))
                for h, h0 in zip(states[is_target], before[row, layer][is_target], strict=True)
            ]
    distances = [
        (after[row, layer][0] - before[row, layer]).norm(dim=1) for layer in layers for row in rows if row not in leaks
    ]
    torch.testing.assert_close(float(terms["reroute"]), 8.0 * 0.75 * sum(cosines) / len(cosines), **CLOSE)
    torch.testing.assert_close(terms["retain"], 8.0 * 0.25 * torch.cat(distances).mean(), **CLOSE)


def test_the_schedule_moves_half_of_the_weight_from_rerouting_to_retaining(
    unedited: nn.Module, data: MethodData
) -> None:
    shares: list[float] = []

    class Noted(CircuitBreakers):
        def module(self, model: nn.Module, data: MethodData) -> Any:
            module = super().module(model, data)
            assert isinstance(module, RerouteModule)
            forward = module.objective

            def objective(batch: dict[str, Any], predict: Any) -> dict[str, torch.Tensor]:
                shares.append(module.progress)
                return forward(batch, predict)

            module.objective = objective  # type: ignore[method-assign]
            return module

    Noted(epochs=5, pairs_per_batch=2, rank=2).fit(unedited, data)
    assert shares == pytest.approx([step / 20 for step in range(10)])


def test_rerouting_turns_the_states_of_leaks_away_from_where_they_were(unedited: nn.Module, data: MethodData) -> None:
    fitted = CircuitBreakers(epochs=60, lr=3e-2, rank=8).fit(unedited, data)
    rows = {"leak": [pair.leak for pair in data.pairs], "answer": [pair.answer for pair in data.pairs]}
    cosines = {}
    before = {name: pooled_states(unedited, data.processor, of, [LAYER], "target")[LAYER] for name, of in rows.items()}
    with fitted.applied(unedited):
        for name, of in rows.items():
            after = pooled_states(unedited, data.processor, of, [LAYER], "target")[LAYER]
            cosines[name] = float(torch.cosine_similarity(after, before[name]).mean())
    assert cosines["leak"] < 0.5 < cosines["answer"]
    assert {name.split(".")[3] for name in fitted.weights} == {"0", "1", "2"}, "all layers up to the last target"
