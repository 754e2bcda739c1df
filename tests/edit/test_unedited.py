"""An edit run with its unedited weights or a share of it: what KL retention and the dial rest on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_neuralgate.data.records import RecordSplits, RetentionItem
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import Scope, position_rule
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import IGNORED, batch_nll, batch_predictions
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import Gradients, datamodule, random_gate, train
from tests.strategies.runs import detached

LAYER = 1


def _item(splits: RecordSplits) -> RetentionItem:
    return RetentionItem(query="What is shown here?", image=splits.test[0].image, target="It is red here")


def _batch(splits: RecordSplits) -> dict[str, Any]:
    return next(iter(datamodule(splits, retention=[_item(splits)], retention_per_batch=1).pairs_dataloader()))


def _perturb(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_kl_term_is_the_divergence_from_the_unedited_model(splits: RecordSplits, lora_rank: int) -> None:
    model = tiny_llava()
    unedited = copy.deepcopy(model)
    editor = PrivacyEditModule(model, [LAYER], retention_loss="kl", retention_weight=0.5, lora_rank=lora_rank)
    batch = _batch(splits)
    nll = [float(value) for value in batch_nll(unedited, batch)]
    at_start = [float(value) for value in editor._row_losses(batch)()]
    assert at_start[:-1] == pytest.approx(nll[:-1], rel=1e-5)
    assert at_start[-1] == pytest.approx(0, abs=1e-6)

    _perturb(editor.model)
    (base, labels), (edited, _) = batch_predictions(unedited, batch), batch_predictions(model, batch)
    divergences = []
    for column in range(labels.shape[1]):
        if labels[-1, column] != IGNORED:
            p0, p = (F.softmax(logits[-1, column], -1) for logits in (base, edited))
            divergences.append(float((p0 * (p0 / p).log()).sum()))
    assert len(divergences) > 1
    found = editor._row_losses(batch)()
    assert float(found[-1]) == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)
    assert float(found[-1]) > 1e-4

    editor.loss(batch).backward()
    gradients = [p.grad.clone() for p in editor.parameters() if p.requires_grad and p.grad is not None]
    assert any(float(gradient.norm()) for gradient in gradients)


def test_training_with_kl_equals_a_plain_loop_with_and_without_shared_prefixes(splits: RecordSplits) -> None:
    results = []
    for share in (True, False):
        model = tiny_llava()
        editor = PrivacyEditModule(model, [LAYER], retention_loss="kl", lr=1e-2, eps=1e-3, share_prefixes=share)
        data = datamodule(splits, retention=[_item(splits)], retention_per_batch=1, pairs_per_batch=2)
        train(editor, data, max_steps=3)
        results.append(find_decoder(model).output_projection(LAYER).weight.detach().clone())

    model, unedited = tiny_llava(), tiny_llava()
    weight: Any = find_decoder(model).output_projection(LAYER).weight
    before = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=1e-2, eps=1e-3)
    data = datamodule(splits, retention=[_item(splits)], retention_per_batch=1, pairs_per_batch=2)
    for _, batch in zip(range(3), data.pairs_dataloader(), strict=False):
        logits, labels = batch_predictions(model, batch)
        with torch.no_grad():
            reference = batch_predictions(unedited, batch)[0][-1].log_softmax(-1)
        kept = labels[-1] != IGNORED
        kl = F.kl_div(logits[-1].log_softmax(-1), reference, reduction="none", log_target=True).sum(-1)[kept].mean()
        nll = batch_nll(model, batch)
        roles = batch["role"]
        parts = [
            nll[[index for index, other in enumerate(roles) if other == role]].mean()
            for role in ("sensitive", "benign")
        ]
        optimizer.zero_grad()
        (parts[0] + 1.25 * parts[1] + 0.25 * kl).backward()
        optimizer.step()
    change = weight.detach() - before
    for found in results:
        assert float((found - before - change).norm() / change.norm()) < 1e-3


@pytest.mark.parametrize("scope", ["all", "divergence"])
def test_kl_goes_with_a_gate(splits: RecordSplits, scope: Scope) -> None:
    """The gradient is that of a plain loop with detached outputs; retention rows have no subject or twin, so they train."""
    model, unedited, spy = tiny_llava(), tiny_llava(), Gradients()
    editor = PrivacyEditModule(model, [LAYER], retention_loss="kl", retention_weight=0.5, share_prefixes=False)
    _perturb(editor.model)  # the divergence of the unedited model has no gradient
    plain = copy.deepcopy(model)
    gate = random_gate(model)
    data = datamodule(splits, retention=[_item(splits)], retention_per_batch=1, pairs_per_batch=2)
    train(editor, data, NeuralGateCallback(gate, scope, tau=0.5), spy)

    (batch,), (found,) = spy.batches, spy.grads[0].values()
    projection: Any = find_decoder(plain).output_projection(LAYER)
    assert batch["role"][-1] == "retention"
    masks = [gate.mask(s, LAYER, 0.5) if s else torch.ones(32, dtype=torch.bool) for s in batch["subject"]]
    gated, closed = position_rule(scope)(batch["subject_mask"], batch)
    masked = (
        closed[:, :, None].expand(-1, -1, 32) if gated is None else gated[:, :, None] & ~torch.stack(masks)[:, None]
    )  # type: ignore[index]
    assert not masked[-1].any()
    expected = {}
    for weight in (0.5, 0.0):
        plain.zero_grad()
        with detached(projection, "full", masked):
            logits, labels = batch_predictions(plain, batch)
            nll = batch_nll(plain, batch)
        with torch.no_grad():
            reference = batch_predictions(unedited, batch)[0][-1].log_softmax(-1)
        kept = labels[-1] != IGNORED
        kl = F.kl_div(logits[-1].log_softmax(-1), reference, reduction="none", log_target=True).sum(-1)[kept].mean()
        (nll[0:-1:2].mean() + 1.25 * nll[1:-1:2].mean() + weight * kl).backward()
        expected[weight] = projection.weight.grad.clone()
    assert relative_error(found, expected[0.5]) < 1e-4 < relative_error(found, expected[0.0])


def test_autocast_does_not_carry_unedited_weights_into_the_step(splits: RecordSplits) -> None:
    model = tiny_llava()
    editor = PrivacyEditModule(model, [LAYER], retention_loss="kl", share_prefixes=False)
    _perturb(editor.model)
    batch = _batch(splits)
    with torch.autocast("cpu", torch.bfloat16):
        losses = editor._row_losses(batch)()
    with torch.autocast("cpu", torch.bfloat16):
        expected = batch_nll(model, batch)
    assert torch.equal(losses[:-1], expected[:-1])
    assert losses.requires_grad


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_share_of_the_edit_holds_in_the_block_only(splits: RecordSplits, tmp_path: Path, lora_rank: int) -> None:
    model = tiny_llava()
    unedited = copy.deepcopy(model)
    editor = PrivacyEditModule(model, [LAYER], lora_rank=lora_rank)
    _perturb(editor.model)
    batch = _batch(splits)
    nll = {}
    full = batch_nll(model, batch)
    for scale in (0.0, 0.4, 1.0):
        with editor.unedited.scaled(scale):
            nll[scale] = batch_nll(model, batch)
        assert torch.equal(batch_nll(model, batch), full)
    assert torch.allclose(nll[0.0], batch_nll(unedited, batch), atol=1e-6)
    assert torch.equal(nll[1.0], full)
    with pytest.raises(RuntimeError, match="in the block"), editor.unedited.scaled(0.5):
        raise RuntimeError("in the block")
    assert torch.equal(batch_nll(model, batch), full)
    if not lora_rank:
        weight: Any = find_decoder(unedited).output_projection(LAYER).weight
        with torch.no_grad():
            weight += 0.4 * (find_decoder(model).output_projection(LAYER).weight - weight)
        assert torch.allclose(nll[0.4], batch_nll(unedited, batch), atol=1e-6)
