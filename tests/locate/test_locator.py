from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_neuralgate.data.datamodule import locate_rows
from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import ModelLayoutError, NeuralGateError, UnsupportedSetupError
from lightning_neuralgate.gate.spans import last_position
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from tests.helpers.reference import plain_locate
from tests.helpers.shifted_positions import shift_cached_positions
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import datamodule, train

STEPS = 6


def fit(locator: PrivacyLocatorModule, splits: RecordSplits, **data: Any) -> PrivacyLocatorModule:
    train(locator, datamodule(splits, **data), max_steps=-1, max_epochs=1)
    return locator


@pytest.mark.parametrize("reuse_prefix", [True, False])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_equals_the_plain_loop(splits: RecordSplits, reuse_prefix: bool, padding_side: str) -> None:
    model = tiny_llava()
    locator = fit(
        PrivacyLocatorModule(model, [0, 1], max_steps=STEPS, reuse_prefix=reuse_prefix),
        splits,
        padding_side=padding_side,
    )
    layout = find_decoder(model)
    collate = datamodule(splits, padding_side=padding_side).collate_training
    modules = {layer: layout.layer(layer) for layer in (0, 1)}
    active: dict[str, dict[int, list[torch.Tensor]]] = {}
    for record in splits.edit:
        expected = plain_locate(model, collate(locate_rows(record)), modules, layout.hidden_size, STEPS)
        for layer, vector in expected.items():
            assert torch.allclose(locator.vectors[record.record_id][layer], vector, atol=1e-3)
            active.setdefault(record.subject, {}).setdefault(layer, []).append(vector < 0)
    assert locator._losses.fast_path.verified is reuse_prefix
    for subject, layers in active.items():
        for layer, booleans in layers.items():
            rates = torch.stack(booleans).float().mean(0)
            assert torch.equal(locator.gate.rates(subject, layer), rates)
            assert 0 < rates.mean() < 1
            for tau in (0.0, 0.3, 0.5):
                assert torch.equal(locator.gate.mask(subject, layer, tau), rates > tau)


def test_defaults_are_the_papers_settings(splits: RecordSplits) -> None:
    settings = PrivacyLocatorModule(tiny_llava(), [1]).hparams
    expected = {"alpha": 1.25, "beta": 1e-3, "lr": 0.5, "eps": 1e-3, "max_steps": 25, "stop_loss": 0.05, "start": 2.0}
    assert {key: settings[key] for key in expected} == expected


def test_the_model_is_unchanged(splits: RecordSplits) -> None:
    model = tiny_llava()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(PrivacyLocatorModule(model, [0], max_steps=1), splits)  # transformers puts hooks of its own on a vision tower
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    fit(PrivacyLocatorModule(model, [1], max_steps=2), splits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def test_vectors_scale_the_subjects_last_token_only(splits: RecordSplits) -> None:
    model = tiny_llava()
    locator = PrivacyLocatorModule(model, [1])
    batch = datamodule(splits).collate_training(locate_rows(splits.edit[0]))
    seen: list[torch.Tensor] = []
    positions = last_position(batch["subject_mask"])
    layer = find_decoder(model).layer(1)
    with torch.no_grad():
        for value in (20.0, 0.5):  # tanh 20 is 1: no change
            locator.v["1"].fill_(value)
            with locator.scaled(positions):
                handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
                batch_nll(model, batch)
                handle.remove()
    unscaled, scaled = seen
    assert torch.equal(unscaled[~positions], scaled[~positions])
    assert torch.allclose(scaled[positions], unscaled[positions] * torch.tensor(0.5).tanh())


def test_a_record_stops_when_its_loss_is_low_enough(splits: RecordSplits) -> None:
    locator = fit(PrivacyLocatorModule(tiny_llava(), [1], stop_loss=1e9), splits)
    for vectors in locator.vectors.values():
        assert torch.allclose(vectors[1], torch.tensor(2.0).tanh())


def test_an_unsupported_model_runs_full_passes(splits: RecordSplits) -> None:
    reference = fit(PrivacyLocatorModule(tiny_llava(), [0], max_steps=3, reuse_prefix=False), splits)
    model = tiny_llava()
    shift_cached_positions(model)
    with pytest.warns(
        UserWarning, match="Prefix reuse in the locator is not supported for LlavaForConditionalGeneration"
    ):
        locator = fit(PrivacyLocatorModule(model, [0], max_steps=3), splits)
    for record, vectors in reference.vectors.items():
        assert torch.allclose(locator.vectors[record][0], vectors[0])


def test_located_records_are_saved_in_checkpoints_and_not_learnt_again(splits: RecordSplits, tmp_path: Path) -> None:
    whole = fit(PrivacyLocatorModule(tiny_llava(), [1], max_steps=STEPS), splits)
    checkpoint: dict[str, Any] = {"state_dict": dict(whole.state_dict())}
    whole.on_save_checkpoint(checkpoint)
    assert not any(name.startswith("model.") for name in checkpoint["state_dict"])
    again = PrivacyLocatorModule(tiny_llava(), [1], max_steps=STEPS)
    again.on_load_checkpoint(checkpoint)
    again._learn = lambda batch: pytest.fail("a finished record was located again")  # type: ignore[method-assign]
    assert fit(again, splits).gate.fingerprint == whole.gate.fingerprint


def test_strategies_with_child_processes_are_refused(splits: RecordSplits) -> None:
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)
    locator = PrivacyLocatorModule(tiny_llava(), [1])
    locator.trainer = trainer
    with pytest.raises(UnsupportedSetupError, match="use strategy='ddp'"):
        locator.on_fit_start()


def test_invalid_layers_and_early_access_are_refused(splits: RecordSplits) -> None:
    with pytest.raises(ModelLayoutError, match="7"):
        PrivacyLocatorModule(tiny_llava(), [7])
    with pytest.raises(ValueError, match="distinct"):
        PrivacyLocatorModule(tiny_llava(), [1, 1])
    with pytest.raises(NeuralGateError, match="no gate yet"):
        _ = PrivacyLocatorModule(tiny_llava(), [1]).gate


def test_layers_learnt_separately(splits: RecordSplits) -> None:
    together = fit(PrivacyLocatorModule(tiny_llava(), [0, 1], max_steps=STEPS, jointly=False), splits)
    plain = fit(PrivacyLocatorModule(tiny_llava(), [0, 1], max_steps=STEPS, jointly=False, reuse_prefix=False), splits)
    joint = fit(PrivacyLocatorModule(tiny_llava(), [0, 1], max_steps=STEPS), splits)
    for layer in (0, 1):
        alone = fit(PrivacyLocatorModule(tiny_llava(), [layer], max_steps=STEPS), splits)
        for record, vectors in alone.vectors.items():
            assert torch.allclose(together.vectors[record][layer], vectors[layer], atol=1e-4)
            assert torch.allclose(plain.vectors[record][layer], vectors[layer], atol=1e-4)
            assert not torch.allclose(joint.vectors[record][layer], vectors[layer], atol=1e-2)


@pytest.mark.parametrize("reuse_prefix", [True, False])
def test_records_in_one_batch_are_learnt_as_alone(splits: RecordSplits, reuse_prefix: bool) -> None:
    options: dict[str, Any] = {"max_steps": 12, "stop_loss": 2.0, "reuse_prefix": reuse_prefix}
    alone, together = (
        fit(PrivacyLocatorModule(tiny_llava(), [0, 1], **options), splits, records_per_batch=count) for count in (1, 3)
    )
    assert alone.vectors.keys() == together.vectors.keys()
    for record, vectors in alone.vectors.items():
        for layer, vector in vectors.items():
            assert torch.allclose(together.vectors[record][layer], vector, atol=1e-4)
    assert together.gate.fingerprint == alone.gate.fingerprint


def test_a_finished_record_keeps_its_vectors_while_others_continue(splits: RecordSplits) -> None:
    batch = datamodule(splits).collate_training([row for record in splits.edit[:3] for row in locate_rows(record)])
    probe = PrivacyLocatorModule(tiny_llava(), [1], max_steps=1)
    losses = sorted(
        probe._learn(datamodule(splits).collate_training(locate_rows(record)))[1] for record in splits.edit[:3]
    )
    stop = (losses[0] + losses[1]) / 2  # one record is done before its first step
    locator = PrivacyLocatorModule(tiny_llava(), [1], max_steps=4, stop_loss=stop)
    vectors, _, _ = locator._learn(batch)
    still = [record for record, layers in vectors.items() if torch.allclose(layers[1], torch.tensor(2.0).tanh())]
    assert len(still) == 1
