"""Forward passes of stage 2 with shared prefixes, compared with full rows."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import SUBJECT_SCOPES, scope_positions
from lightning_neuralgate.gate.subjects import SubjectsInBatch
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.prefix_cache.edit_pass import EditPass
from lightning_neuralgate.prefix_cache.layout import BatchLayout
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava, tiny_processor
from tests.helpers.tiny_models import TINY_FAMILIES, TinySizes
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


def count_tokens(model: Any) -> tuple[list[list[int]], Any]:
    """Return the number of tokens of each pass through each decoder layer, and a function that stops counting."""
    layers = find_decoder(model).layers
    seen: list[list[int]] = [[] for _ in layers]

    def counter(index: int) -> Any:
        return lambda module, args, output: seen[index].append(math.prod(output.shape[:2]))

    handles = [layer.mlp.register_forward_hook(counter(index)) for index, layer in enumerate(layers)]
    return seen, lambda: [handle.remove() for handle in handles]


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shown", [True, False], ids=["picture", "text"])
def test_equals_full_rows(splits: RecordSplits, side: str, attention: str, frozen: int, shown: bool) -> None:
    model = tiny_llava(layers=4)
    model.set_attn_implementation(attention)
    weight, batch = trained(model), batch_of(splits, side, shown)
    assert len(batch["pixel_values"]) == len(batch["role"]) - (not shown)
    layout = BatchLayout(model, batch)
    passes = EditPass(model, layout, frozen)
    assert layout.prefix.length >= 5, "the picture and the tokens before it"
    assert layout.prefix.leaders.tolist() == [0, 4, 8, 12, 16], "four records of two pairs, and the retention row"
    weights = torch.linspace(0.5, 1.5, len(batch["role"]))
    for _ in range(2):
        found, expected = passes.nll(), batch_nll(model, batch)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 1e-3, "equal rows would prove nothing"
        (one,), (other,) = (torch.autograd.grad(weights @ rows, [weight]) for rows in (found, expected))
        assert relative_error(one, other) < 1e-5
        with torch.no_grad():
            weight -= 5 * other
    assert not any("forward" in layer.__dict__ for layer in find_decoder(model).layers)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("side", ["left", "right"])
def test_added_rows_equal_full_rows(splits: RecordSplits, side: str, frozen: int) -> None:
    model = tiny_llava(layers=4)
    weight = trained(model)
    data = datamodule(splits, padding_side=side, recovery_share=1.0, indirect_share=1.0)
    batch = next(iter(data.pairs_dataloader()))
    layout = BatchLayout(model, batch)
    assert sum(batch["added"]) == 4 * 8
    assert layout.prefix.length >= 5
    unnamed = batch["subject"].count("")
    assert 0 < unnamed < 16
    assert len(layout.prefix.leaders) == 4 + unnamed, "a row without a subject is run alone"
    found, expected = EditPass(model, layout, frozen).nll(), batch_nll(model, batch)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    (one,), (other,) = (torch.autograd.grad(rows.sum(), [weight]) for rows in (found, expected))
    assert relative_error(one, other) < 1e-5


def test_prefixes_run_once_per_record_and_frozen_layers_once_per_batch(splits: RecordSplits) -> None:
    model = tiny_llava(layers=4)
    trained(model)
    batch = batch_of(splits)
    rows = len(batch["role"])
    seen, stop = count_tokens(model)
    layout = BatchLayout(model, batch)
    passes = EditPass(model, layout, 1)
    for _ in range(3):
        passes.nll()
    stop()
    length = layout.prefix.length
    shared, rest = 5 * length, rows * (batch["input_ids"].shape[1] - length)
    assert seen[0] == [shared, rest]
    # the first of these passes computes the frozen layers' output, and runs through the full model
    assert seen[LAYER] == [shared, rest] * 4
    assert shared + rest < 0.85 * batch["input_ids"].numel()


@pytest.mark.parametrize("scope", SUBJECT_SCOPES)
@pytest.mark.parametrize("soft", [False, True])
def test_the_gate_applies_to_both_passes(splits: RecordSplits, scope: Any, soft: bool) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    data = datamodule(splits, pairs_per_batch=3)
    (batch, *_) = list(data.pairs_dataloader())
    editor = PrivacyEditModule(model, [LAYER])
    kept = Gradients()
    train(editor, data, NeuralGateCallback(gate, scope, tau=0.5, soft=soft), kept)
    assert editor._losses.fast_path.verified
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
def test_gate_logs_are_those_of_the_full_batch(splits: RecordSplits, tmp_path: Path, scope: Any) -> None:
    logged = {}
    for share in (True, False):
        model = tiny_llava()
        editor = PrivacyEditModule(model, [LAYER], share_prefixes=share, schedule="paper", steps_per_pair=2)
        logger = CSVLogger(tmp_path, name=str(share))
        gate = NeuralGateCallback(random_gate(model), scope, tau=0.5)
        data = datamodule(splits, pairs_per_batch=1)
        trainer = train(editor, data, gate, logger=logger, log_every_n_steps=1, max_steps=4)
        assert editor._losses.fast_path.verified is share
        logged[share] = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith("gate/")}
    assert logged[True].keys() == logged[False].keys() >= {f"gate/layer_{LAYER}/passed", f"gate/layer_{LAYER}/blocked"}
    assert logged[True][f"gate/layer_{LAYER}/blocked"] > 0
    for name, value in logged[False].items():
        assert logged[True][name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("schedule", ["minibatch", "paper"])
def test_an_edit_ends_with_the_same_weights(splits: RecordSplits, schedule: Any) -> None:
    after, tokens = {}, {}
    for share in (True, False):
        model = tiny_llava()
        editor = PrivacyEditModule(model, [LAYER], schedule=schedule, lr=1e-2, eps=1e-3, share_prefixes=share)
        editor._losses.fast_path.restore(share)  # verifying it would run more passes
        seen, stop = count_tokens(model)
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
def test_full_rows_are_run_for_a_gate_that_finds_subjects_itself(splits: RecordSplits, options: dict[str, Any]) -> None:
    model = tiny_llava()
    gate = NeuralGateCallback(random_gate(model), "all", **options)
    data = datamodule(splits)
    collate = data.collate_training
    data.collate_training = lambda rows: (lambda batch: {**batch, "mask": batch["subject_mask"]})(collate(rows))  # type: ignore[assignment]
    editor = PrivacyEditModule(model, [LAYER])
    seen, stop = count_tokens(model)
    train(editor, data, gate)
    stop()
    batch = next(iter(data.pairs_dataloader()))
    assert not editor._losses.fast_path.verified
    assert seen[LAYER] == [batch["input_ids"].numel()]


def test_an_unsupported_model_runs_full_rows_with_one_warning(
    splits: RecordSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llava()
    right = EditPass.predictions

    def wrong(self: EditPass) -> Any:
        logits, labels = right(self)
        return 3 * logits, labels

    monkeypatch.setattr(EditPass, "predictions", wrong)
    editor = PrivacyEditModule(model, [LAYER])
    with pytest.warns(
        UserWarning, match=r"not supported for LlavaForConditionalGeneration \(losses differ by"
    ) as logged:
        train(editor, datamodule(splits, pairs_per_batch=2), max_steps=2)
    assert len([w for w in logged if "not supported" in str(w.message)]) == 1
    assert not editor._losses.fast_path.enabled


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "gemma3"])
def test_other_models(family: str, frozen: int) -> None:
    model = TINY_FAMILIES[family].build(TinySizes(text_layers=4)).eval().requires_grad_(False)
    weight, batch = trained(model), {**words_batch(), "subject": ["passport"] * 5}
    layout = BatchLayout(model, batch)
    passes = EditPass(model, layout, frozen)
    assert layout.prefix.length == 5
    found, expected = passes.nll(), batch_nll(model, batch)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    (one,), (other,) = (torch.autograd.grad(rows.sum(), [weight]) for rows in (found, expected))
    assert relative_error(one, other) < 1e-5


def test_bf16_mixed_is_no_false_alarm_in_the_papers_schedule(splits: RecordSplits) -> None:
    model = tiny_llava(layers=4)
    editor = PrivacyEditModule(model, [2], schedule="paper", steps_per_pair=2)
    with warnings.catch_warnings(record=True) as caught:
        train(editor, datamodule(splits, pairs_per_batch=1), precision="bf16-mixed", max_steps=4)
    assert not [warning for warning in caught if "not supported" in str(warning.message)]
    assert editor._losses.fast_path.verified


def test_the_layout_tells_which_tokens_a_pass_runs(splits: RecordSplits) -> None:
    model, batch = tiny_llava(), batch_of(splits)
    layout = BatchLayout(model, batch)
    with layout.running_prefix():
        assert layout.segment is not None
        assert layout.segment.is_first
        assert not layout.segment.select(batch["subject_mask"]).any(), "no subject lies in a shared prefix"
    with layout.running_own():
        assert layout.segment is not None
        assert int(layout.segment.select(batch["subject_mask"]).sum()) == int(batch["subject_mask"].sum())
    assert layout.segment is None
