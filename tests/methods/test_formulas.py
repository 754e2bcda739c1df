"""Losses, projections and bounds equal plain formulas, and each method has the property that its owner defines."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lightning_neuralgate.data.datamodule import PrivacyPairDataModule
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.methods import METHODS, MethodData
from lightning_neuralgate.methods.data import KIND, RETENTION, MethodBatches
from lightning_neuralgate.methods.dinm import response_distances
from lightning_neuralgate.methods.dpo import DPO, dpo_loss
from lightning_neuralgate.methods.gru import GRU, without_conflict
from lightning_neuralgate.methods.keys import token_states
from lightning_neuralgate.methods.neural_gate import Ungated
from lightning_neuralgate.methods.values import ValueSearch
from tests.helpers.reference import one_row, target_loss
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import train
from tests.methods.conftest import LAYER

NAME = f"model.language_model.layers.{LAYER}.mlp.down_proj.weight"


def test_rows_of_a_batch_are_those_of_its_pairs(data: MethodData) -> None:
    kinds = ("refusal", "leak", "other_leak", "answer", "over_refusal")
    batch = next(iter(MethodBatches(data, kinds, 2, retention_per_batch=1).pairs_dataloader()))
    assert batch[KIND] == [*kinds, *kinds, RETENTION]
    assert batch["twin"] == [3, 3, 3, 0, 0, 8, 8, 8, 5, 5, None]
    assert batch["role"][:5] == ["sensitive"] * 3 + ["benign"] * 2
    first = data.pairs[0]
    assert first.leak.target == "The number is 12345."
    assert first.over_refusal.query == first.pair.benign
    assert first.over_refusal.target == first.pair.refusal
    assert {row.target for row in first.other_leaks} == {"The owner is 12345."}


def test_a_leak_without_a_true_value_is_the_unedited_models_answer(
    unedited: nn.Module, data: MethodData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(model: Any, processor: Any, rows: list[Any], *options: Any) -> list[str]:
        assert all(row.target is None for row in rows)
        return [f"It is {number}." for number in range(len(rows))]

    monkeypatch.setattr("lightning_neuralgate.methods.data.answer_rows", answer)
    unknown = [pair.model_copy(update={"sensitive_truth": None}) for pair in data.records[0].pairs]
    records = [data.records[0].model_copy(update={"pairs": tuple(unknown)}), data.records[1]]
    found = MethodData.prepare(unedited, data.processor, records, data.retention, LAYER)
    leaks = [pair.leak.target for pair in found.pairs]
    assert leaks == ["It is 0.", "It is 1.", "The number is 12345.", "The owner is 12345."]


def test_ungated_is_stage_2(data: MethodData) -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "alpha": 0.5, "retention_weight": 2.0}
    found = Ungated(epochs=2, pairs_per_batch=3, **settings).fit(tiny_llava(), data).weights
    model = tiny_llava()
    splits = RecordSplits(list(data.records), [], [], [])
    batches = PrivacyPairDataModule(splits, data.processor, data.retention, 3, 1, seed=data.seed)
    train(PrivacyEditModule(model, [LAYER], **settings), batches, max_steps=-1, max_epochs=2)
    assert torch.equal(found[NAME], model.get_parameter(NAME))
    assert list(found) == [NAME]


def test_dpo_loss_equals_the_formula() -> None:
    chosen, rejected, beta = [0.3, -1.0], [-0.2, 0.5], 0.4
    terms = [-2 / beta * math.log(1 / (1 + math.exp(-beta * (c - r)))) for c, r in zip(chosen, rejected, strict=True)]
    assert float(dpo_loss(torch.tensor(chosen), torch.tensor(rejected), beta)) == pytest.approx(sum(terms) / 2)


def test_dpo_compares_with_the_unedited_model_row_by_row(unedited: Any, data: MethodData) -> None:
    """The terms equal those of a loop over rows, for weights that have moved."""
    batch = next(iter(MethodBatches(data, DPO.kinds, 2, retention_per_batch=1).pairs_dataloader()))
    module = DPO(beta=0.5).module(unedited, data)

    def losses() -> torch.Tensor:
        rows = [one_row(batch, row) for row in range(9)]
        del rows[8]["pixel_values"]  # an ordinary question without a picture
        return torch.tensor([float(target_loss(unedited, row).detach()) for row in rows])

    before = losses()
    weight = unedited.get_parameter(NAME)
    original = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        after = losses()
        terms = module.objective(batch, module._losses.prepare(batch))  # type: ignore[operator]
    finally:
        with torch.no_grad():
            weight.copy_(original)
        unedited.requires_grad_(False)
    gain = before - after
    assert float(terms["sensitive"]) == pytest.approx(float(dpo_loss(gain[[0, 4]], gain[[1, 5]], 0.5)), rel=1e-4)
    assert float(terms["benign"]) == pytest.approx(float(dpo_loss(gain[[2, 6]], gain[[3, 7]], 0.5)), rel=1e-4)
    assert float(terms["retention"]) == pytest.approx(float(after[8]), rel=1e-4)


@pytest.mark.parametrize("unit", ["tensor", "row"])
def test_gru_removes_what_opposes_and_nothing_else(unit: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    step, gradient = (torch.randn(6, 4, generator=generator) for _ in range(2))
    step[0], gradient[0] = gradient[0], gradient[0]  # a row that agrees
    found, share = without_conflict(step, gradient - 3 * step if unit == "tensor" else gradient, unit)
    units = [slice(None)] if unit == "tensor" else list(range(6))
    opposed = 0
    for part in units:
        u, g = step[part].flatten(), (gradient - 3 * step if unit == "tensor" else gradient)[part].flatten()
        if u @ g < 0:
            opposed += 1
            torch.testing.assert_close(found[part].flatten(), u - (u @ g) / (g @ g) * g)
        else:
            assert torch.equal(found[part].flatten(), u)
    assert share == pytest.approx(opposed / len(units))
    assert opposed > 0


def test_gru_with_an_open_retain_loss_is_the_ungated_edit(unedited: nn.Module, data: MethodData) -> None:
    """Without retained terms there is no conflict, and with them the steps differ."""
    settings: dict[str, Any] = {"epochs": 1, "lr": 1e-2, "retention_weight": 0.0}
    plain, same = (method(alpha=0.0, **settings).fit(unedited, data).weights[NAME] for method in (Ungated, GRU))
    torch.testing.assert_close(same, plain, atol=1e-6, rtol=1e-5)
    plain, other = (method(alpha=0.05, **settings).fit(unedited, data).weights[NAME] for method in (Ungated, GRU))
    assert not torch.allclose(other, plain, atol=1e-5)


def test_ft_l_stays_in_its_box_and_reaches_its_walls(unedited: nn.Module, data: MethodData) -> None:
    base = unedited.get_parameter(NAME).detach().clone()
    weights = METHODS["ft_l"](bound=1e-3, lr=5e-3, epochs=2).fit(unedited, data).weights
    change = (weights[NAME] - base).abs()
    assert float(change.max()) == pytest.approx(1e-3, rel=1e-3)
    assert float((change > 0.99e-3).float().mean()) > 0.3
    free = METHODS["ft"](lr=5e-3, epochs=2).fit(unedited, data).weights[NAME]
    assert float((free - base).abs().max()) > 5e-3


def test_sku_flips_the_sign_of_its_task_vector(unedited: nn.Module, data: MethodData) -> None:
    base = unedited.get_parameter(NAME).detach().clone()
    settings: dict[str, Any] = {"epochs": 1, "lr": 1e-3}
    bad, negated = (METHODS["sku"](scale=c, **settings).fit(unedited, data).weights[NAME] for c in (-1.0, 1.0))
    assert float((bad - base).norm()) > 1e-2
    torch.testing.assert_close(negated - base, base - bad)


def test_dinm_compares_whole_responses_over_their_common_tokens(unedited: Any, data: MethodData) -> None:
    found = response_distances(unedited, data.tokenizer, "I cannot", "The number is 12345.")
    ids = [data.tokenizer(text, return_tensors="pt")["input_ids"] for text in ("I cannot", "The number is 12345.")]
    seen: list[torch.Tensor] = []
    handle = find_decoder(unedited).layer(1).register_forward_hook(lambda m, a, o: seen.append(o))
    with torch.no_grad():
        for text in ids:
            unedited(input_ids=text)
    handle.remove()
    count = min(text.shape[1] for text in ids)
    assert float(found[1]) == pytest.approx(float((seen[0][0, :count] - seen[1][0, :count]).norm()), rel=1e-4)


@pytest.mark.parametrize("position", ["subject", "last"])
def test_keys_are_the_inputs_at_one_token(unedited: Any, data: MethodData, position: Any) -> None:
    rows = [pair.refusal for pair in data.pairs]
    found = token_states(unedited, data.processor, rows, [0, LAYER], position)
    batch = MethodBatches(data, ["refusal"], 1).collate_training(rows[:1])
    where = batch["subject_mask"][0] if position == "subject" else (batch["labels"][0] == -100)
    column = int(where.nonzero()[-1, 0])
    seen: list[torch.Tensor] = []
    handle = find_decoder(unedited).output_projection(LAYER).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    single = one_row(batch, 0)
    with torch.no_grad():
        unedited(**{name: value for name, value in single.items() if name not in ("labels", "subject_mask")})
    handle.remove()
    torch.testing.assert_close(found.keys[LAYER][0].float(), seen[0][0, column], atol=1e-5, rtol=1e-4)
    assert found.outputs.shape == (len(rows), 32)


def test_a_learnt_value_makes_a_refusal_likelier_within_its_bound(unedited: Any, data: MethodData) -> None:
    search = ValueSearch(contexts=1, steps=6, lr=0.1, clamp=0.75, decay=0.0, kl_factor=0.0)
    values = search.learn(unedited, data, LAYER, "subject")
    start = ValueSearch(contexts=1, steps=1, decay=0.0, kl_factor=0.0).learn(unedited, data, LAYER, "subject")
    h = values.targets - values.deltas
    assert (values.losses < start.losses).all()
    assert (values.deltas.norm(dim=1) <= 0.75 * h.norm(dim=1) + 1e-5).all()
    outputs = token_states(unedited, data.processor, [pair.refusal for pair in data.pairs], [LAYER], "subject").outputs
    torch.testing.assert_close(h, outputs, atol=1e-4, rtol=1e-3)


def test_memit_in_one_layer_moves_the_output_to_the_value(unedited: Any, data: MethodData) -> None:
    settings: dict[str, Any] = {"span": 1, "contexts": 1, "steps": 3, "preserve": 0.0}
    strong = METHODS["memit"](strength=1e-6, **settings).fit(unedited, data)
    weak = METHODS["memit"](strength=1e6, **settings).fit(unedited, data)
    assert float(strong.report["missed"]) < 0.05
    assert float(weak.report["missed"]) > 0.9
    assert strong.report[f"layer_{LAYER}_key_rank"] == len(data.pairs)


def test_alphaedit_leaves_preserved_inputs(unedited: Any, data: MethodData) -> None:
    """Directions of ordinary inputs get no change, and their number is reported."""
    edit = METHODS["alphaedit"](span=1, contexts=1, steps=2, share=0.9).fit(unedited, data)
    change = edit.weights[NAME] - unedited.get_parameter(NAME).detach()
    covariance = data.input_covariance(unedited, [LAYER])
    removed = covariance.projector(LAYER, 0.9)
    assert float((change @ removed.directions).norm() / change.norm()) < 1e-4
    assert edit.report[f"layer_{LAYER}_null_rank"] == removed.size - removed.removed
    assert float(change.norm()) > 0
