"""Checkpoints of an edit are loaded only where they belong; what the Trainer changes is checked when training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import PrivacyEditModule
from lightning_neuralgate.errors import ResumeError, UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.locate.locator import PrivacyLocatorModule
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import QUIET, UserModule, datamodule, random_gate, train


def weight(model: Any, layer: int = 1) -> torch.Tensor:
    return find_decoder(model).output_projection(layer).weight.detach().clone()  # type: ignore[no-any-return, operator]


def saved(splits: RecordSplits, file: Path, module: LightningModule) -> Path:
    train(module, datamodule(splits)).save_checkpoint(file)
    return file


def resume(splits: RecordSplits, file: Path, module: LightningModule, *callbacks: Any, max_steps: int = 2) -> None:
    trainer = Trainer(**QUIET, max_steps=max_steps, limit_val_batches=0, callbacks=list(callbacks))
    trainer.fit(module, datamodule=datamodule(splits), ckpt_path=file, weights_only=False)


@pytest.mark.parametrize(
    ("source", "target", "match"),
    [
        (
            lambda: PrivacyEditModule(tiny_llava(), [1], lora_rank=2),
            lambda: PrivacyEditModule(tiny_llava(), [1]),
            r"another edit: there .*lora_A.* trained, here .*layers.1.mlp.down_proj.weight does",
        ),
        (
            lambda: PrivacyEditModule(tiny_llava(), [1]),
            lambda: PrivacyEditModule(tiny_llava(), [2]),
            r"another edit: there .*layers.1.*here .*layers.2",
        ),
        (
            lambda: PrivacyEditModule(tiny_llava(), [1]),
            lambda: PrivacyEditModule(tiny_llava(seed=9), [1]),
            r"another base model \(base: \w{16} there, \w{16} here\)",
        ),
        (
            lambda: UserModule(tiny_llava()),
            lambda: PrivacyEditModule(tiny_llava(), [1]),
            r"not one of this edit: it holds network\.",
        ),
    ],
    ids=["lora", "layer", "base", "module"],
)
def test_a_checkpoint_of_something_else_is_refused(
    splits: RecordSplits, tmp_path: Path, source: Any, target: Any, match: str
) -> None:
    file = saved(splits, tmp_path / "other.ckpt", source())
    with pytest.raises(ResumeError, match=match):
        resume(splits, file, target())


def test_load_from_checkpoint_is_checked_too(splits: RecordSplits, tmp_path: Path) -> None:
    file = saved(splits, tmp_path / "one.ckpt", PrivacyEditModule(tiny_llava(), [1], lr=0.1))
    model = tiny_llava()
    with pytest.raises(ResumeError, match="another edit"):
        PrivacyEditModule.load_from_checkpoint(file, model=model, layers=[2], weights_only=False)
    PrivacyEditModule.load_from_checkpoint(file, model=model, layers=[1], weights_only=False)
    assert not torch.equal(weight(model), weight(tiny_llava()))


def test_a_checkpoint_of_an_earlier_version_loads(splits: RecordSplits, tmp_path: Path) -> None:
    file = saved(splits, tmp_path / "one.ckpt", PrivacyEditModule(tiny_llava(), [1], lr=0.1))
    content = torch.load(file, weights_only=True)
    del content["neuralgate_edit"]
    torch.save(content, file)
    resume(splits, file, PrivacyEditModule(tiny_llava(), [1]))
    with pytest.raises(ResumeError, match="not one of this edit"):
        resume(splits, file, PrivacyEditModule(tiny_llava(), [2]))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_precision_that_converts_the_weights_is_refused(splits: RecordSplits, precision: Any, lora_rank: int) -> None:
    module = PrivacyEditModule(tiny_llava(), [1], lora_rank=lora_rank)
    with pytest.raises(UnsupportedSetupError, match=rf"has become b?float16 .*'{precision}'.*bf16-mixed"):
        train(module, datamodule(splits), precision=precision)


def test_weights_converted_after_construction_are_refused(splits: RecordSplits) -> None:
    module = PrivacyEditModule(tiny_llava(), [1])
    with pytest.raises(UnsupportedSetupError, match="has become bfloat16"):
        train(module.bfloat16(), datamodule(splits))


@pytest.mark.parametrize("averaging", [EMAWeightAveraging, lambda: StochasticWeightAveraging(1e-2, 1), WeightAveraging])
def test_averaging_with_scope_all_is_refused(splits: RecordSplits, averaging: Any) -> None:
    model = tiny_llava()
    with pytest.raises(UnsupportedSetupError, match="Averaging replaces the weights by averages"):
        train(UserModule(model), datamodule(splits), NeuralGateCallback(random_gate(model), "all"), averaging())


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_an_edit_with_averaged_weights_resumes(splits: RecordSplits, tmp_path: Path) -> None:
    def module() -> PrivacyEditModule:
        return PrivacyEditModule(tiny_llava(), [1], lr=0.01)

    class Save(NeuralGateCallback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, *args)
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    whole, data = module(), datamodule(splits)
    train(whole, data, EMAWeightAveraging(decay=0.5), Save(random_gate(tiny_llava())), max_steps=4)
    assert len(torch.load(tmp_path / "two.ckpt", weights_only=True)["current_model_state"]) == 1
    resumed = module()
    callbacks = EMAWeightAveraging(decay=0.5), NeuralGateCallback(random_gate(tiny_llava()))
    resume(splits, tmp_path / "two.ckpt", resumed, *callbacks, max_steps=4)
    assert torch.equal(weight(resumed.model), weight(whole.model))


def test_a_locators_checkpoint_is_refused_by_another(splits: RecordSplits, tmp_path: Path) -> None:
    locator = PrivacyLocatorModule(tiny_llava(), [1], max_steps=1)
    content: dict[str, Any] = {"state_dict": {}}
    locator.on_save_checkpoint(content)
    PrivacyLocatorModule(tiny_llava(), [1]).on_load_checkpoint(content)
    with pytest.raises(ResumeError, match="a different value of model than"):
        PrivacyLocatorModule(tiny_llava(seed=9), [1]).on_load_checkpoint(content)
    with pytest.raises(ResumeError, match="a different value of layers than"):
        PrivacyLocatorModule(tiny_llava(), [2]).on_load_checkpoint(content)
    with pytest.raises(ResumeError, match="holds no located records"):
        locator.on_load_checkpoint({"state_dict": {}})
