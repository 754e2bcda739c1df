"""Passes of stage 2 that share what rows begin with, against whole rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.autograd import SCOPES, scope_positions
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.subjects import SubjectsInBatch
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.prefix_cache.edit_pass import EditPass
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.tiny_models import TINY_FAMILIES, Geometry
from tests.helpers.training import Gradients, datamodule, random_gate, train
from tests.prefix_cache.test_locate_pass import words_batch

LAYER = 1


def trained(model: Any) -> Tensor:
    weight = find_decoder(model).output_projection(LAYER).weight
    assert isinstance(weight, Tensor)
    return weight.requires_grad_(True)


def batch_of(splits: RecordSplits, side: str = "left", shown: bool = True) -> dict[str, Any]:
    image = splits.test[0].image if shown else None
    retention = [RetentionItem(query="What do bees make?", target="Bees make honey.", image=image)]
    data = datamodule(splits, retention=retention, retention_per_batch=1, padding_side=side)
    return next(iter(data.pairs_dataloader()))


def runs(model: Any) -> tuple[list[list[int]], Any]:
    """For each decoder layer the tokens (rows x columns) of each of its passes, and how to stop counting."""
    layers = find_decoder(model).layers
    seen: list[list[int]] = [[] for _ in layers]

    def counter(index: int) -> Any:
        return lambda module, args, output: seen[index].append(math.prod(output.shape[:2]))

    handles = [layer.mlp.register_forward_hook(counter(index)) for index, layer in enumerate(layers)]
    return seen, lambda: [handle.remove() for handle in handles]


@pytest.mark.parametrize("below", [0, 1])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shown", [True, False], ids=["picture", "text"])
def test_equals_whole_rows(splits: RecordSplits, side: str, attention: str, below: int, shown: bool) -> None:
    model = tiny_llava(layers=4)
    model.set_attn_implementation(attention)
    weight, batch = trained(model), batch_of(splits, side, shown)
    assert len(batch["pixel_values"]) == len(batch["role"]) - (not shown)
    parts = EditPass(model, batch)
    parts.run_below(model, below)
    assert parts.shared >= 5, "the picture and what stands before it"
    assert parts.leading.tolist() == [0, 4, 8, 12, 16], "four records of two pairs, and the retention row"
    weights = torch.linspace(0.5, 1.5, len(batch["role"]))
    for _ in range(2):
        found, expected = parts.nll(model), batch_nll(model, batch)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 1e-3, "rows that are all alike show nothing"
        (one,), (other,) = (torch.autograd.grad(weights @ rows, [weight]) for rows in (found, expected))
        assert relative_error(one, other) < 1e-5
        with torch.no_grad():
            weight -= 5 * other
    assert not any("forward" in layer.__dict__ for layer in find_decoder(model).layers)


def test_what_rows_begin_with_is_run_once_and_what_lies_below_once_a_batch(splits: RecordSplits) -> None:
    model = tiny_llava(layers=4)
    trained(model)
    batch = batch_of(splits)
    rows = len(batch["role"])
    seen, stop = runs(model)
    parts = EditPass(model, batch)
    parts.run_below(model, 1)
    for _ in range(3):
        parts.nll(model)
    stop()
    shared, rest = 5 * parts.shared, rows * (batch["input_ids"].shape[1] - parts.shared)
    assert seen[0] == [shared, rest]
    # the first of these passes finds what the layers are given; it has to go through the whole model
    assert seen[LAYER] == [shared, rest] * 4
    assert shared + rest < 0.85 * batch["input_ids"].numel()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("soft", [False, True])
def test_the_gate_meets_every_part(splits: RecordSplits, scope: Any, soft: bool) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    data = datamodule(splits, pairs_per_batch=3)
    (batch, *_) = list(data.pairs_dataloader())
    editor = PrivacyEditModule(model, [LAYER])
    kept = Gradients()
    train(editor, data, NeuralGateCallback(gate, scope, tau=0.5, soft=soft), kept)
    assert editor._shares is True
    rates = [gate.rates(s, LAYER) if soft else gate.mask(s, LAYER, 0.5) for s in batch["subject"]]
    fresh = tiny_llava()
    projection = find_decoder(fresh).output_projection(LAYER)
    assert isinstance(projection, torch.nn.Linear)
    projection.weight.requires_grad_(True)
    (expected,) = plain_gated_gradient(
        fresh, batch, [projection], scope_positions(scope, batch["subject_mask"]), [rates]
    )
    (found,) = kept.grads[0].values()
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("scope", ["subject_last", "all"])
def test_what_is_logged_of_the_gate_is_that_of_the_whole_batch(
    splits: RecordSplits, tmp_path: Path, scope: Any
) -> None:
    told = {}
    for share in (True, False):
        model = tiny_llava()
        editor = PrivacyEditModule(model, [LAYER], share_prefixes=share, schedule="paper", steps_per_pair=2)
        logger = CSVLogger(tmp_path, name=str(share))
        gate = NeuralGateCallback(random_gate(model), scope, tau=0.5)
        data = datamodule(splits, pairs_per_batch=1)
        trainer = train(editor, data, gate, logger=logger, log_every_n_steps=1, max_steps=4)
        assert editor._shares is share
        told[share] = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith("gate/")}
    assert told[True].keys() == told[False].keys() >= {f"gate/layer_{LAYER}/passed", f"gate/layer_{LAYER}/blocked"}
    assert told[True][f"gate/layer_{LAYER}/blocked"] > 0
    for name, value in told[False].items():
        assert told[True][name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("schedule", ["minibatch", "paper"])
def test_an_edit_ends_with_the_same_weights(splits: RecordSplits, schedule: Any) -> None:
    after, tokens = {}, {}
    for share in (True, False):
        model = tiny_llava()
        editor = PrivacyEditModule(model, [LAYER], schedule=schedule, lr=1e-2, eps=1e-3, share_prefixes=share)
        editor._shares = share  # whether it holds is found out with passes of their own
        seen, stop = runs(model)
        data = datamodule(splits, pairs_per_batch=1 if schedule == "paper" else 4, shuffle=True)
        train(editor, data, NeuralGateCallback(random_gate(model)), max_steps=-1, max_epochs=2)
        stop()
        after[share], tokens[share] = trained(model).detach(), sum(seen[-1])
    assert relative_error(after[True], after[False]) < 1e-5
    assert relative_error(trained(tiny_llava()).detach(), after[False]) > 1e-2
    assert tokens[True] < tokens[False]


def custom(batch: Any) -> Any:
    return batch["subject_mask"], batch["subject"]


@pytest.mark.parametrize(
    "options",
    [{"find_subjects": custom}, {"tokenizer": tiny_processor()}, {"find_subjects": SubjectsInBatch("mask", "subject")}],
    ids=["finder", "tokenizer", "keys"],
)
def test_a_gate_that_looks_for_itself_is_shown_whole_rows(splits: RecordSplits, options: dict[str, Any]) -> None:
    model = tiny_llava()
    gate = NeuralGateCallback(random_gate(model), "all", **options)
    data = datamodule(splits)
    collate = data.collate_training
    data.collate_training = lambda rows: (lambda made: {**made, "mask": made["subject_mask"]})(collate(rows))  # type: ignore[assignment]
    editor = PrivacyEditModule(model, [LAYER])
    seen, stop = runs(model)
    train(editor, data, gate)
    stop()
    batch = next(iter(data.pairs_dataloader()))
    assert editor._shares is None
    assert seen[LAYER] == [batch["input_ids"].numel()]


def test_a_model_that_does_not_allow_it_is_run_whole_with_one_warning(
    splits: RecordSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llava()
    right = EditPass.nll
    monkeypatch.setattr(EditPass, "nll", lambda self, model: right(self, model) * 1.01)
    editor = PrivacyEditModule(model, [LAYER])
    with pytest.warns(
        UserWarning, match=r"LlavaForConditionalGeneration cannot share .* losses differ by 0.01"
    ) as told:
        train(editor, datamodule(splits, pairs_per_batch=2), max_steps=2)
    assert len([w for w in told if "cannot share" in str(w.message)]) == 1
    assert editor._shares is False


@pytest.mark.parametrize("below", [0, 1])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "smolvlm", "idefics3", "gemma3"])
def test_other_models(family: str, below: int) -> None:
    model = TINY_FAMILIES[family].build(Geometry(text_layers=4)).eval().requires_grad_(False)
    weight, batch = trained(model), {**words_batch(), "subject": ["passport"] * 5}
    parts = EditPass(model, batch)
    parts.run_below(model, below)
    assert parts.shared == 5
    found, expected = parts.nll(model), batch_nll(model, batch)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    (one,), (other,) = (torch.autograd.grad(rows.sum(), [weight]) for rows in (found, expected))
    assert relative_error(one, other) < 1e-5
