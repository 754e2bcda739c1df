"""Steerings that depend on the prompt: CAST and AlphaSteer equal plain formulas, and run prompts whole."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_neuralgate.data.collator import PrivacyPairCollator, QueryRow
from lightning_neuralgate.data.targets import answer_rows
from lightning_neuralgate.errors import ModelLayoutError, SteeringFormatError
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import model_inputs
from lightning_neuralgate.hf.generation import generate_answers
from lightning_neuralgate.hf.hooks import capture_outputs
from lightning_neuralgate.hf.identity import ModelIdentity
from lightning_neuralgate.methods import AlphaSteering, ConditionalSteering, MethodData, Steering
from lightning_neuralgate.methods.alphasteer import AlphaSteer, steering_factor
from lightning_neuralgate.methods.cast import CAST, best_condition, condition_score, paired_component
from lightning_neuralgate.methods.states import pooled_states
from tests.helpers.tiny_llava import tiny_llava
from tests.methods.conftest import LAYER

D = 32


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompts(data: MethodData) -> list[QueryRow]:
    rows = [row for pair in data.pairs for row in (pair.refusal, pair.answer)]
    return [QueryRow(row.query, row.role, row.image) for row in rows]


def outputs(model: Any, inputs: dict[str, Any], layers: list[int]) -> dict[int, Tensor]:
    with torch.no_grad(), capture_outputs(find_decoder(model).layers, layers) as found:
        model(**inputs)
    return dict(found)


def test_the_paired_component_is_that_of_a_covariance() -> None:
    first, second = drawn(7, 5), drawn(7, 5, seed=1)
    centre = (first + second) / 2
    samples = torch.cat([first - centre, second - centre])
    expected = torch.linalg.eigh(samples.T @ samples / len(samples)).eigenvectors[:, -1]
    projected = (first @ expected - second @ expected).mean()
    torch.testing.assert_close(paired_component(first, second), projected * expected)
    torch.testing.assert_close(paired_component(second, first), -projected * expected)


def test_the_score_of_a_condition_equals_its_formula() -> None:
    states, c = drawn(4, 6), drawn(6, seed=1)
    projection = torch.outer(c, c) / (c @ c)
    for h, found in zip(states, condition_score(states, c), strict=True):
        image = torch.tanh(projection @ h)
        assert float(found) == pytest.approx(float(h @ image / (h.norm() * image.norm())))


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_on_a_grid_has_a_larger_f1(seed: int) -> None:
    sensitive, others = drawn(9, seed=seed) + seed / 2 - 1, drawn(14, seed=seed + 10)
    found = best_condition(0, sensitive, others)

    def f1(threshold: float, above: bool) -> float:
        fires = [(s > threshold) == above for s in sensitive.tolist()]
        false = [(s > threshold) == above for s in others.tolist()]
        precision = sum(fires) / max(1, sum(fires) + sum(false))
        recall = sum(fires) / len(fires)
        return 2 * precision * recall / max(1e-9, precision + recall)

    # outside of all scores a condition always or never holds, which is no condition
    low, high = float(torch.cat([sensitive, others]).min()), float(torch.cat([sensitive, others]).max())
    grid = torch.linspace(low, high - 1e-6, 2000).tolist()
    assert found.f1 == pytest.approx(f1(found.threshold, found.above))
    assert found.f1 >= max(f1(t, above) for t in grid for above in (True, False)) - 1e-9


def conditional(model: nn.Module, data: MethodData) -> ConditionalSteering:
    """Return a steering whose condition holds for some of the prompts; its threshold is far from all scores."""
    condition = drawn(D, seed=5).float()
    states = pooled_states(model, data.processor, prompts(data), [0], "text")[0].float()
    scores = condition_score(states, condition).sort().values
    gap = int(scores.diff().argmax())
    return ConditionalSteering(
        method="cast", settings={}, model=ModelIdentity.of(model), condition=condition, condition_layer=0,
        threshold=float(scores[gap : gap + 2].mean()), above=True,
        directions={layer: drawn(D, seed=layer).float() for layer in (1, 2)}, strength=3.0,
    )  # fmt: skip


def alpha(model: nn.Module, data: MethodData) -> AlphaSteering:
    return AlphaSteering(
        method="alphasteer", settings={}, model=ModelIdentity.of(model), strength=0.7,
        factors={layer: drawn(D, seed=layer + 5).float() for layer in (1, 2)},
        directions={layer: drawn(D, seed=layer).float() for layer in (1, 2)},
    )  # fmt: skip


def test_cast_moves_the_layers_of_prompts_for_which_the_condition_holds(unedited: Any, data: MethodData) -> None:
    steering, rows = conditional(unedited, data), prompts(data)
    inputs = model_inputs(PrivacyPairCollator(data.processor)(rows))
    states = pooled_states(unedited, data.processor, rows, [0], "text")[0].float()
    expected = steering.holds(states)
    assert 0 < int(expected.sum()) < len(rows)
    before = outputs(unedited, inputs, [0, 1])
    with steering.applied(unedited):
        after = outputs(unedited, inputs, [0, 1])
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][~expected], before[1][~expected])
    moved = after[1][expected] - before[1][expected]
    torch.testing.assert_close(moved, (3 * steering.directions[1]).expand_as(moved), atol=1e-4, rtol=1e-4)


def test_alphasteer_adds_its_direction_to_the_prompt_alone(unedited: Any, data: MethodData) -> None:
    steering = alpha(unedited, data)
    for row in prompts(data)[:2]:
        inputs = model_inputs(PrivacyPairCollator(data.processor)([row]))
        before = outputs(unedited, inputs, [1])[1][0]
        with steering.applied(unedited):
            after = outputs(unedited, inputs, [1])[1][0]
        expected = 0.7 * (before[-1] @ steering.factors[1]) * steering.directions[1]
        torch.testing.assert_close(after - before, expected.expand_as(before), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        cache = unedited(**inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones(1, 1, dtype=torch.long)], 1)
        step = {"input_ids": torch.tensor([[7]]), "attention_mask": mask}
        plain = outputs(unedited, {**step, "past_key_values": copy.deepcopy(cache)}, [1])[1]
        with steering.applied(unedited):
            steered = outputs(unedited, {**step, "past_key_values": cache}, [1])[1]
    assert torch.equal(steered, plain)


@pytest.mark.parametrize("make", [conditional, alpha])
def test_answers_are_those_of_each_prompt_alone(make: Any, data: MethodData) -> None:
    """Also after shared prefixes have been verified with the unedited model."""
    model, rows = tiny_llava(), prompts(data)
    plain = answer_rows(model, data.processor, rows, 6)
    collate = PrivacyPairCollator(data.processor)
    with make(model, data).applied(model):
        steered = answer_rows(model, data.processor, rows, 6)
        assert steered == [generate_answers(model, collate.tokenizer, collate([row]), 6)[0] for row in rows]
    assert steered != plain
    assert answer_rows(model, data.processor, rows, 6) == plain


@pytest.mark.parametrize("make", [conditional, alpha])
def test_steerings_are_saved_and_loaded(make: Any, unedited: nn.Module, data: MethodData, tmp_path: Path) -> None:
    steering = make(unedited, data)
    steering.save_pretrained(tmp_path)
    found = Steering.from_pretrained(tmp_path)
    assert type(found) is type(steering)
    assert found.content() == steering.content()
    assert found.tensors().keys() == steering.tensors().keys()
    assert all(torch.equal(value, steering.tensors()[name]) for name, value in found.tensors().items())
    file = tmp_path / "steering.json"
    content = json.loads(file.read_text())
    if make is conditional:
        file.write_text(json.dumps({**content, "content": {**content["content"], "condition_layer": 2}}))
        with pytest.raises(SteeringFormatError, match="layer 2 is not below the steered layers"):
            Steering.from_pretrained(tmp_path)


def test_cast_separates_the_queries_that_it_was_fitted_on(unedited: Any, data: MethodData) -> None:
    fitted = CAST().fit(unedited, data)
    assert sorted(fitted.directions) == [LAYER, LAYER + 1]
    assert fitted.condition_layer <= LAYER
    groups = [[pair.refusal for pair in data.pairs], [pair.answer for pair in data.pairs], data.retention_rows]
    holds = [
        fitted.holds(pooled_states(unedited, data.processor, rows, range(3), "text")[fitted.condition_layer])
        for rows in groups
    ]
    hits, false = int(holds[0].sum()), int(holds[1].sum() + holds[2].sum())
    assert fitted.report["f1"] == pytest.approx(2 * hits / (hits + false + len(groups[0])))
    refused, leaked = (
        pooled_states(unedited, data.processor, rows, [LAYER], "target")[LAYER]
        for rows in (groups[0], [pair.leak for pair in data.pairs])
    )
    assert float(((refused - leaked) @ fitted.directions[LAYER].double()).mean()) > 0


def test_the_steering_matrix_equals_its_pseudo_inverse_form() -> None:
    ordinary, sensitive, r = drawn(40, 12), drawn(9, 12, seed=1), drawn(12, seed=2)
    values, vectors = torch.linalg.eigh(ordinary.T @ ordinary)
    q = vectors[:, values.argsort()[:6]]
    p = q @ q.T
    x = sensitive @ p
    inner = torch.linalg.pinv(x.T @ x + 10.0 * p.T @ p, rtol=1e-10)
    expected = p @ (inner @ x.T @ torch.outer(torch.ones(9, dtype=torch.float64), r))
    torch.testing.assert_close(torch.outer(steering_factor(ordinary, sensitive, 0.5, 10.0), r), expected)


def test_in_the_null_space_ordinary_prompts_get_nothing_and_sensitive_ones_the_whole_direction() -> None:
    ordinary, sensitive = drawn(5, 12), drawn(4, 12, seed=1)
    w = steering_factor(ordinary, sensitive, 0.5, 1e-9)
    assert float((ordinary @ w).abs().max()) < 1e-8
    torch.testing.assert_close(sensitive @ w, torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)


def test_alphasteer_reports_its_null_space(unedited: nn.Module, data: MethodData) -> None:
    fitted = AlphaSteer(null_share=0.25, regularization=1e-3).fit(unedited, data)
    states = pooled_states(unedited, data.processor, data.ordinary_prompts(), [LAYER], "last")[LAYER]
    assert fitted.report["ordinary_rank"] == int(torch.linalg.matrix_rank(states))
    assert sorted(fitted.factors) == sorted(fitted.directions) == [LAYER, LAYER + 1]
    with pytest.raises(ValueError, match="null_share must lie in"):
        AlphaSteer(null_share=0.0)


@pytest.mark.parametrize("method", [CAST(), AlphaSteer()])
def test_a_layer_that_the_model_does_not_have_is_named(method: Any, unedited: nn.Module, data: MethodData) -> None:
    with pytest.raises(ModelLayoutError, match="There is no decoder layer 3"):
        method.fit(unedited, replace(data, layer=3))
