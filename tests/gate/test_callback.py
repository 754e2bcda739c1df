from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import GateMismatchError, ModelLayoutError, UnsupportedSetupError
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.subjects import SubjectsInText
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import UserModule, datamodule, random_gate, train


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in find_decoder(model).layers.modules())


def test_hooks_are_removed_after_fit_and_after_an_exception(splits: RecordSplits) -> None:
    model = tiny_llava()
    seen: list[int] = []

    class Count(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            seen.append(count_hooks(model))

    callback = NeuralGateCallback(random_gate(model))
    train(UserModule(model), datamodule(splits), callback, Count())
    assert (seen, count_hooks(model)) == ([1], 0)

    class Fails(UserModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        train(Fails(model), datamodule(splits), callback)
    assert count_hooks(model) == 0
    assert callback.batch is None


def test_bad_arguments_are_refused() -> None:
    gate = random_gate(tiny_llava())
    with pytest.raises(
        ValueError,
        match=r"scope must be one of subject_last, .*, all, divergence, tail, or a PositionRule; got 'everywhere'",
    ):
        NeuralGateCallback(gate, scope="everywhere")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tau"):
        NeuralGateCallback(gate, tau=1.5)
    with pytest.raises(GateMismatchError, match=r"no layers \[2\]; it covers \[1\]"):
        NeuralGateCallback(gate, layers=[2])


def test_a_gate_of_another_model_is_refused(splits: RecordSplits) -> None:
    other = tiny_llava(seed=1)
    with pytest.raises(GateMismatchError, match=r"located in another model .*checksum"):
        train(UserModule(tiny_llava()), datamodule(splits), NeuralGateCallback(random_gate(other)))


def test_a_subject_without_a_gate_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    with pytest.raises(GateMismatchError, match="'receipt', the gate covers passport"):
        train(UserModule(model), datamodule(splits), NeuralGateCallback(random_gate(model, subjects=("passport",))))


def test_a_layer_that_does_not_train_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    with pytest.raises(UnsupportedSetupError, match=r"nothing at model.language_model.layers.1.mlp.down_proj trains"):
        train(UserModule(model, layers=(0,)), datamodule(splits), NeuralGateCallback(random_gate(model)))


def test_two_gates_on_a_layer_are_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    with pytest.raises(UnsupportedSetupError, match="is gated by another NeuralGateCallback already"):
        train(
            UserModule(model),
            datamodule(splits),
            NeuralGateCallback(gate),
            NeuralGateCallback(gate, "all", tau=0.5),
        )
    assert count_hooks(model) == 0


def test_a_batch_without_subject_positions_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    with pytest.raises(UnsupportedSetupError, match=r"needs 'where' in the training batch, found .*subject_mask"):
        train(UserModule(model), datamodule(splits), NeuralGateCallback(random_gate(model), subject_mask_key="where"))


def test_a_mask_of_another_length_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()

    class Shorter(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batch["subject_mask"] = batch["subject_mask"][:, 1:]

    with pytest.raises(UnsupportedSetupError, match="give the mask for the image-expanded sequence"):
        train(UserModule(model), datamodule(splits), Shorter(), NeuralGateCallback(random_gate(model)))


@pytest.mark.parametrize("step", [0, 1])
def test_a_projection_that_is_bypassed_in_any_step_is_refused(splits: RecordSplits, step: int) -> None:
    model = tiny_llava()
    mlp = find_decoder(model).layer(1).mlp

    class Patched(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == step:
                mlp.forward = lambda x: nn.functional.linear(
                    mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight
                )

    data = datamodule(splits, pairs_per_batch=1)
    with pytest.raises(UnsupportedSetupError, match="its forward hook never ran, so the gate was not applied"):
        train(UserModule(model), data, NeuralGateCallback(random_gate(model)), Patched(), max_steps=3)


def fully_trained() -> UserModule:
    """A module in which all weights train, also those that identify the model."""
    module = UserModule(tiny_llava())
    module.network.requires_grad_(True)
    return module


def save_checkpoint(splits: RecordSplits, file: Path, callback: NeuralGateCallback) -> nn.Module:
    """Train for one step, save a checkpoint and return the trained model."""
    module = fully_trained()
    train(module, datamodule(splits), callback).save_checkpoint(file)
    return module.network


def resume(splits: RecordSplits, file: Path, callback: NeuralGateCallback) -> int:
    """Train for one more step and return the number of steps."""
    trainer = Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback])
    trainer.fit(fully_trained(), datamodule=datamodule(splits), ckpt_path=file, weights_only=False)
    return trainer.global_step


def inverted(gate: NeuralGate) -> NeuralGate:
    """Another gate of the same model."""
    rates = {subject: {1: 1 - gate.rates(subject, 1)} for subject in gate.subjects}
    return NeuralGate(rates, gate.model, gate.records)


@pytest.mark.parametrize("settings", [{}, {"tau": 0.4}, {"scope": "all"}, {"soft": True}])
def test_training_resumes_with_the_same_gate_only(
    splits: RecordSplits, tmp_path: Path, settings: dict[str, Any]
) -> None:
    gate, file = random_gate(tiny_llava()), tmp_path / "first.ckpt"
    trained = save_checkpoint(splits, file, NeuralGateCallback(gate))
    with pytest.raises(GateMismatchError):
        gate.check_fits(trained)
    assert resume(splits, file, NeuralGateCallback(gate, **settings)) == 2
    with pytest.raises(GateMismatchError, match=gate.fingerprint):
        resume(splits, file, NeuralGateCallback(inverted(gate), **settings))


@pytest.mark.parametrize("tau", [0.3, 0.4])
def test_checkpoints_of_earlier_versions_resume(splits: RecordSplits, tmp_path: Path, tau: float) -> None:
    """Their additional state, a fingerprint of each row, is ignored."""
    gate, file = random_gate(tiny_llava()), tmp_path / "first.ckpt"
    save_checkpoint(splits, file, NeuralGateCallback(gate))
    checkpoint = torch.load(file, weights_only=True)
    (state,) = checkpoint["callbacks"].values()
    state["rows"] = {"gate/layer_1": torch.zeros(32, dtype=torch.int64)}
    torch.save(checkpoint, file)
    assert resume(splits, file, NeuralGateCallback(gate, tau=tau)) == 2


def test_a_callback_checks_its_next_model_after_a_resumed_run(splits: RecordSplits, tmp_path: Path) -> None:
    callback = NeuralGateCallback(random_gate(tiny_llava()))
    save_checkpoint(splits, tmp_path / "first.ckpt", callback)
    resume(splits, tmp_path / "first.ckpt", callback)
    with pytest.raises(GateMismatchError, match="located in another model"):
        train(UserModule(tiny_llava(seed=1)), datamodule(splits), callback)


def test_the_tokenizer_may_be_given_as_a_folder(checkpoint: Path) -> None:
    callback = NeuralGateCallback(random_gate(tiny_llava()), tokenizer=str(checkpoint))
    assert isinstance(callback.find_subjects, SubjectsInText)
    assert callback.find_subjects.tokenizer.decode([1])
    with pytest.raises(ModelLayoutError, match="there is no folder"):
        NeuralGateCallback(random_gate(tiny_llava()), tokenizer=checkpoint / "nothing")
