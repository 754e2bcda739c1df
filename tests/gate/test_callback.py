from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.edit.editor import mean_by_role
from lightning_neuralgate.errors import GateMismatchError, UnsupportedSetupError
from lightning_neuralgate.gate.autograd import SCOPES, Scope, gated_gradient, scope_positions
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.forward import batch_nll
from lightning_neuralgate.hf.identity import ModelIdentity
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import (
    SUBJECTS,
    Gradients,
    SomebodysModule,
    datamodule,
    enable_checkpointing,
    random_gate,
    train,
)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in find_decoder(model).layers.modules())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("padding_side", "layers"), [("left", (1,)), ("right", (1,)), ("left", (0, 1))])
def test_gradient_equals_the_plain_one(
    splits: RecordSplits, scope: Scope, padding_side: str, layers: tuple[int, ...]
) -> None:
    model = tiny_llava()
    gate = random_gate(model, layers)
    spy = Gradients()
    train(
        SomebodysModule(model, layers, lr=0.0), datamodule(splits, padding_side=padding_side),
        NeuralGateCallback(gate, scope, tau=0.5), spy,
    )  # fmt: skip
    batch = spy.batches[0]
    assert set(batch["subject"]) == set(SUBJECTS), "a batch of mixed subjects is the case to test"
    layout = find_decoder(model)
    masks = [[gate.mask(subject, layer, 0.5) for subject in batch["subject"]] for layer in layers]
    expected = plain_gated_gradient(
        model, batch, [layout.output_projection(layer) for layer in layers],
        scope_positions(scope, batch["subject_mask"]), masks,
    )  # fmt: skip
    ungated = Gradients()
    train(SomebodysModule(model, layers, lr=0.0), datamodule(splits, padding_side=padding_side), ungated)
    for layer, gradient in zip(layers, expected, strict=True):
        name = f"network.{layout.projection_path(layer)}.weight"
        assert relative_error(spy.grads[0][name], gradient) < 1e-5
        assert relative_error(ungated.grads[0][name], gradient) > 1e-2


def test_a_gate_that_is_open_everywhere_changes_nothing(splits: RecordSplits) -> None:
    model = tiny_llava()
    identity = ModelIdentity.of(model)
    gate = NeuralGate({s: {1: torch.ones(32)} for s in SUBJECTS}, identity, dict.fromkeys(SUBJECTS, 1))
    with_gate, without = Gradients(), Gradients()
    train(SomebodysModule(model, lr=0.0), datamodule(splits), NeuralGateCallback(gate, "all"), with_gate)
    train(SomebodysModule(model, lr=0.0), datamodule(splits), without)
    for name, gradient in without.grads[0].items():
        assert relative_error(with_gate.grads[0][name], gradient) < 1e-6


def test_forward_values_never_change(splits: RecordSplits) -> None:
    model = tiny_llava()
    data = datamodule(splits)
    batch = next(iter(data.pairs_dataloader()))
    expected = batch_nll(model, batch).detach()

    class Compare(Callback):
        seen: Tensor

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.seen = outputs["loss"]

    compare = Compare()
    train(SomebodysModule(model, lr=0.0), data, NeuralGateCallback(random_gate(model), "all"), compare)
    means = mean_by_role(expected, batch["role"])
    assert torch.equal(compare.seen, means["sensitive"] + 1.25 * means["benign"])


def test_rows_without_a_subject_pass_whole(splits: RecordSplits) -> None:
    model = tiny_llava()
    callback = NeuralGateCallback(random_gate(model), "all")
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    blank: Any = {"subject": ["", "passport"], "subject_mask": torch.tensor([[False, False], [False, True]])}
    callback.on_train_batch_start(trainer, None, blank, 0)  # type: ignore[arg-type]
    batch = callback._batch
    assert batch is not None
    gate_values = batch.gate_values({"passport": torch.zeros(3, dtype=torch.bool)})
    gated = gated_gradient(torch.ones(2, 2, 3), batch.positions, gate_values)
    assert gated.tolist() == [[[1.0] * 3] * 2, [[0.0] * 3] * 2]


def test_hooks_are_gone_after_fit_and_after_an_exception(splits: RecordSplits) -> None:
    model = tiny_llava()
    seen: list[int] = []

    class Count(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            seen.append(hooks_of(model))

    callback = NeuralGateCallback(random_gate(model))
    train(SomebodysModule(model), datamodule(splits), callback, Count())
    assert (seen, hooks_of(model)) == ([1], 0)

    class Fails(SomebodysModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        train(Fails(model), datamodule(splits), callback)
    assert hooks_of(model) == 0
    assert callback._batch is None


def adapted(model: nn.Module, dora: bool, dropout: float = 0.0) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        target_modules=r".*language_model\.layers\.1\.mlp\.down_proj",
        use_dora=dora,
        lora_dropout=dropout,
    )
    return get_peft_model(model, config)  # type: ignore[arg-type]


class AdapterModule(SomebodysModule):
    """Trains what peft has added, and nothing else."""

    def __init__(self, wrapped: nn.Module, lr: float = 0.5) -> None:
        LightningModule.__init__(self)
        self.network, self.lr = wrapped, lr


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_rows_of_an_adapter_obey_the_gate(splits: RecordSplits, dora: bool, dropout: float) -> None:
    model = tiny_llava()
    gate = random_gate(model, subjects=("passport",))
    wrapped: Any = adapted(model, dora, dropout)
    splits = splits._replace(edit=[record for record in splits.edit if record.subject == "passport"])
    before = find_decoder(wrapped).output_projection(1).base_layer.weight.detach().clone()
    train(AdapterModule(wrapped), datamodule(splits, pairs_per_batch=2), NeuralGateCallback(gate, "all"), max_steps=3)
    projection: Any = find_decoder(wrapped).output_projection(1)
    changed = projection.get_delta_weight("default").abs().sum(1) > 0
    assert torch.equal(changed, gate.mask("passport", 1))
    merged = find_decoder(wrapped.merge_and_unload()).output_projection(1).weight.detach()
    closed = ~gate.mask("passport", 1)
    assert torch.allclose(merged[closed], before[closed], rtol=1e-6, atol=0)
    assert not torch.isclose(merged[~closed], before[~closed], rtol=1e-6).all(1).any()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_gradients_of_an_adapter_equal_those_of_a_loss_without_closed_parts(splits: RecordSplits, dora: bool) -> None:
    """What the adapter adds in closed dimensions of gated positions is a constant to the plain loss."""
    model = tiny_llava()
    gate = random_gate(model)
    wrapped: Any = adapted(model, dora)
    projection: Any = find_decoder(wrapped).output_projection(1)
    nn.init.normal_(projection.lora_B["default"].weight, std=0.1)  # or the first factor has no gradient
    spy = Gradients()
    train(AdapterModule(wrapped, lr=0.0), datamodule(splits), NeuralGateCallback(gate, "subject", tau=0.5), spy)
    batch = spy.batches[0]
    positions = scope_positions("subject", batch["subject_mask"])
    masks = torch.stack([gate.mask(subject, 1, 0.5) for subject in batch["subject"]])
    closed = positions[:, :, None] & ~masks[:, None, :]

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        own = projection.base_layer(args[0])
        added = output - own
        return own + torch.where(closed, added.detach(), added)

    wrapped.zero_grad()
    handle = projection.register_forward_hook(cut)
    means = mean_by_role(batch_nll(wrapped, batch), batch["role"])
    (means["sensitive"] + 1.25 * means["benign"]).backward()
    handle.remove()
    found = {name: grad for name, grad in spy.grads[0].items() if "lora_" in name}
    assert len(found) == (3 if dora else 2)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            assert relative_error(found[f"network.{name}"], parameter.grad) < 1e-5


def test_a_bias_obeys_the_gate(splits: RecordSplits) -> None:
    model = tiny_llava()
    mlp: Any = find_decoder(model).layer(1).mlp
    with_bias = nn.Linear(48, 32)
    with_bias.load_state_dict({"weight": mlp.down_proj.weight, "bias": torch.zeros(32)})
    mlp.down_proj = with_bias
    gate = random_gate(model, subjects=("passport",))
    splits = splits._replace(edit=[record for record in splits.edit if record.subject == "passport"])
    module = SomebodysModule(model)
    with_bias.weight.requires_grad_(False)
    train(module, datamodule(splits, pairs_per_batch=2), NeuralGateCallback(gate, "all"), max_steps=2)
    assert torch.equal(with_bias.bias != 0, gate.mask("passport", 1))


def test_a_soft_gate_weighs_by_activity_rate(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    spy = Gradients()
    train(
        SomebodysModule(model, lr=0.0),
        datamodule(splits, pairs_per_batch=2),
        NeuralGateCallback(gate, "from_subject", soft=True),
        spy,
        accumulate_grad_batches=2,
    )
    assert len(spy.batches) == 2
    projection = find_decoder(model).output_projection(1)
    expected = torch.zeros_like(projection.weight)
    for batch in spy.batches:
        rates = [[gate.rates(subject, 1) for subject in batch["subject"]]]
        positions = scope_positions("from_subject", batch["subject_mask"])
        expected += plain_gated_gradient(model, batch, [projection], positions, rates)[0] / len(spy.batches)  # type: ignore[list-item]
    assert relative_error(spy.grads[0][f"network.{find_decoder(model).projection_path(1)}.weight"], expected) < 1e-5


def test_a_gate_of_another_model_is_refused(splits: RecordSplits) -> None:
    other = tiny_llava(seed=1)
    with pytest.raises(GateMismatchError, match=r"located in another model .*checksum"):
        train(SomebodysModule(tiny_llava()), datamodule(splits), NeuralGateCallback(random_gate(other)))


def test_a_subject_without_a_gate_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    with pytest.raises(GateMismatchError, match="'receipt', the gate knows passport"):
        train(
            SomebodysModule(model), datamodule(splits), NeuralGateCallback(random_gate(model, subjects=("passport",)))
        )


def test_a_layer_that_does_not_train_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    with pytest.raises(UnsupportedSetupError, match=r"nothing at model.language_model.layers.1.mlp.down_proj trains"):
        train(SomebodysModule(model, layers=(0,)), datamodule(splits), NeuralGateCallback(random_gate(model)))


def test_a_batch_without_subject_positions_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    with pytest.raises(UnsupportedSetupError, match=r"needs 'where' in the training batch, found .*subject_mask"):
        train(
            SomebodysModule(model), datamodule(splits), NeuralGateCallback(random_gate(model), subject_mask_key="where")
        )


def test_half_precision_compute_gates_alike(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    name = f"network.{find_decoder(model).projection_path(1)}.weight"

    def gradient(gated: bool, precision: str) -> Tensor:
        spy = Gradients()
        callbacks = [NeuralGateCallback(gate, "from_subject"), spy] if gated else [spy]
        train(SomebodysModule(model, lr=0.0), datamodule(splits), *callbacks, precision=precision)
        return spy.grads[0][name]

    mixed = gradient(True, "bf16-mixed")
    assert mixed.dtype == torch.float32
    rounding = relative_error(gradient(False, "bf16-mixed"), gradient(False, "32-true"))
    assert 0 < rounding < 0.1
    assert relative_error(mixed, gradient(True, "32-true")) < 2 * rounding
    assert relative_error(mixed, gradient(False, "32-true")) > 3 * rounding


def test_a_gate_that_is_bypassed_is_noticed(splits: RecordSplits) -> None:
    model = tiny_llava()
    mlp = find_decoder(model).layer(1).mlp

    def forward(x: Tensor) -> Tensor:
        return nn.functional.linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)

    mlp.forward = forward
    with pytest.raises(UnsupportedSetupError, match="its forward hook never ran, so the gate was not applied"):
        train(SomebodysModule(model), datamodule(splits), NeuralGateCallback(random_gate(model)))


def test_training_goes_on_with_the_same_gate_after_a_resume(splits: RecordSplits, tmp_path: Path) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    module = SomebodysModule(model)
    model.requires_grad_(True)  # all weights move, also those that tell checkpoints apart
    trainer = train(module, datamodule(splits), NeuralGateCallback(gate))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(GateMismatchError):
        gate.check_fits(model)
    resumed = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[NeuralGateCallback(gate)]
    )
    fresh = SomebodysModule(tiny_llava())
    fresh.network.requires_grad_(True)
    resumed.fit(fresh, datamodule=datamodule(splits), ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    assert resumed.global_step == 2


def test_a_mask_of_another_length_is_refused(splits: RecordSplits) -> None:
    model = tiny_llava()

    class Shorter(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batch["subject_mask"] = batch["subject_mask"][:, 1:]

    with pytest.raises(UnsupportedSetupError, match="give the mask for the image-expanded sequence"):
        train(SomebodysModule(model), datamodule(splits), Shorter(), NeuralGateCallback(random_gate(model)))


def test_resuming_with_another_gate_is_refused(splits: RecordSplits, tmp_path: Path) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    trainer = train(SomebodysModule(model), datamodule(splits), NeuralGateCallback(gate))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    rates = {subject: {1: 1 - gate.rates(subject, 1)} for subject in gate.subjects}
    other = NeuralGate(rates, gate.model, gate.records)
    resumed = Trainer(max_steps=2, accelerator="cpu", logger=False, callbacks=[NeuralGateCallback(other)])
    with pytest.raises(GateMismatchError, match=gate.fingerprint):
        resumed.fit(SomebodysModule(model), datamodule=datamodule(splits), ckpt_path=tmp_path / "one.ckpt")


def test_bad_arguments_are_refused() -> None:
    gate = random_gate(tiny_llava())
    with pytest.raises(ValueError, match="tau"):
        NeuralGateCallback(gate, tau=1.5)
    with pytest.raises(GateMismatchError, match=r"no layers \[2\]; it covers \[1\]"):
        NeuralGateCallback(gate, layers=[2])


@pytest.mark.parametrize("trained", ["full", "lora", "dora"])
@pytest.mark.parametrize("scope", ["subject", "all"])
def test_what_passes_and_what_is_blocked_is_logged(
    splits: RecordSplits, tmp_path: Path, trained: str, scope: Scope
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    model = tiny_llava()
    gate = random_gate(model)
    if trained == "full":
        module = SomebodysModule(model, lr=0.0)
        projection: Any = find_decoder(model).output_projection(1)
    else:
        module = AdapterModule(adapted(model, dora=trained == "dora"), lr=0.0)
        projection = find_decoder(model).output_projection(1)
        nn.init.normal_(projection.lora_B["default"].weight, std=0.1)
    spy = Gradients()
    logger = CSVLogger(tmp_path, "", "")
    train(
        module,
        datamodule(splits, pairs_per_batch=2),
        NeuralGateCallback(gate, scope, tau=0.5),
        spy,
        max_steps=2,
        logger=logger,
        log_every_n_steps=1,
    )
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert len(rows) == 2
    # the gradient before and behind the gate, from the output's gradient seen outside of it
    last = {"full": projection, "lora": None, "dora": None}[trained]
    if last is None:
        last = projection.lora_magnitude_vector["default"] if trained == "dora" else projection.lora_B["default"]
    for row, batch in zip(rows, spy.batches, strict=True):
        seen: dict[str, Tensor] = {}

        def keep(part: nn.Module, args: Any, output: Tensor, seen: dict[str, Tensor] = seen) -> None:
            if output.ndim == 3:
                seen["x"] = args[0].detach()
                output.register_hook(lambda grad: seen.__setitem__("grad", grad))

        handle = last.register_forward_hook(keep)
        means = mean_by_role(batch_nll(module.network, batch), batch["role"])
        (means["sensitive"] + 1.25 * means["benign"]).backward()
        handle.remove()
        positions = scope_positions(scope, batch["subject_mask"])
        masks = torch.stack([gate.mask(subject, 1, 0.5) for subject in batch["subject"]])
        whole = torch.einsum("btd,btk->dk", seen["grad"], seen["x"])
        shut = torch.where(positions[:, :, None] & ~masks[:, None, :], seen["grad"], 0.0)
        blocked = torch.einsum("btd,btk->dk", shut, seen["x"])
        assert float(row["gate/layer_1/blocked"]) == pytest.approx(float(blocked.norm() / whole.norm()), rel=1e-4)
        assert float(row["gate/layer_1/passed"]) == pytest.approx(
            float((whole - blocked).norm() / whole.norm()), rel=1e-4
        )


def gradient_of_a_step(splits: RecordSplits, prepare: Callable[[Any], object]) -> Tensor:
    model = tiny_llava()
    gate, module = random_gate(model), SomebodysModule(model, lr=0.0)
    spy = Gradients()
    prepare(model)
    train(module, datamodule(splits), NeuralGateCallback(gate, "from_subject", tau=0.5), spy)
    return spy.grads[0][f"network.{find_decoder(model).projection_path(1)}.weight"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gates_alike(splits: RecordSplits, reentrant: bool) -> None:
    runs: list[int] = []

    def checkpointed(model: Any) -> None:
        model.train()  # transformers checkpoints in training mode alone
        enable_checkpointing(model, reentrant)
        find_decoder(model).layer(1).mlp.register_forward_pre_hook(lambda *_: runs.append(1))

    assert torch.equal(
        gradient_of_a_step(splits, checkpointed), gradient_of_a_step(splits, lambda model: model.train())
    )
    assert len(runs) == 2, "the layer was not run again in the backward pass"


def test_compiled_models_gate_alike(splits: RecordSplits) -> None:
    """Over batches of other subjects and lengths; the backend is the one that needs no compiler."""
    weights = []
    for compiled in (False, True):
        model = tiny_llava()
        if compiled:
            model.compile(backend="aot_eager")
        module = SomebodysModule(model)
        train(module, datamodule(splits, pairs_per_batch=1), NeuralGateCallback(random_gate(model), "all"), max_steps=4)
        weights.append(find_decoder(model).output_projection(1).weight.detach())
    base: Any = find_decoder(tiny_llava()).output_projection(1).weight
    assert relative_error(weights[1], weights[0]) < 1e-6
    assert relative_error(weights[0], base) > 1e-2


def test_two_gates_on_a_layer_are_refused(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    with pytest.raises(UnsupportedSetupError, match="is gated by another NeuralGateCallback already"):
        train(
            SomebodysModule(model),
            datamodule(splits),
            NeuralGateCallback(gate),
            NeuralGateCallback(gate, "all", tau=0.5),
        )
    assert hooks_of(model) == 0


def test_hooks_of_others_keep_their_gradients(splits: RecordSplits) -> None:
    class Scaled(SomebodysModule):
        def __init__(self, network: nn.Module) -> None:
            super().__init__(network, lr=0.0)
            self.scale = nn.Parameter(torch.tensor(0.5))
            projection = find_decoder(network).output_projection(1)
            projection.register_forward_hook(lambda module, args, output: output * self.scale)

    gradients = []
    for gated in (True, False):
        model = tiny_llava()
        spy = Gradients()
        callbacks = [NeuralGateCallback(random_gate(model), "all")] if gated else []
        train(Scaled(model), datamodule(splits), *callbacks, spy)
        gradients.append(spy.grads[0]["scale"])
    assert gradients[0].abs() > 1e-3
    assert torch.allclose(gradients[0], gradients[1])


def test_a_gate_that_is_bypassed_later_is_noticed(splits: RecordSplits) -> None:
    model = tiny_llava()
    mlp = find_decoder(model).layer(1).mlp

    class Patched(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                mlp.forward = lambda x: nn.functional.linear(
                    mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight
                )

    data = datamodule(splits, pairs_per_batch=1)
    with pytest.raises(UnsupportedSetupError, match="its forward hook never ran"):
        train(SomebodysModule(model), data, NeuralGateCallback(random_gate(model)), Patched(), max_steps=3)


@pytest.mark.parametrize("settings", [{"tau": 0.4}, {"scope": "all"}, {"soft": True}])
def test_a_checkpoint_knows_its_gate_whatever_the_settings(
    splits: RecordSplits, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    module = SomebodysModule(model)
    model.requires_grad_(True)
    train(module, datamodule(splits), NeuralGateCallback(gate)).save_checkpoint(tmp_path / "one.ckpt")
    rates = {subject: {1: 1 - gate.rates(subject, 1)} for subject in gate.subjects}
    other = NeuralGate(rates, gate.model, gate.records)

    def resume(chosen: NeuralGate) -> Trainer:
        fresh = SomebodysModule(tiny_llava())
        fresh.network.requires_grad_(True)
        trainer = Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            callbacks=[NeuralGateCallback(chosen, **settings)],
        )  # fmt: skip
        trainer.fit(fresh, datamodule=datamodule(splits), ckpt_path=tmp_path / "one.ckpt", weights_only=False)
        return trainer

    assert resume(gate).global_step == 2
    with pytest.raises(GateMismatchError, match=gate.fingerprint):
        resume(other)


def test_a_callback_that_was_resumed_once_checks_its_next_model(splits: RecordSplits, tmp_path: Path) -> None:
    model = tiny_llava()
    callback = NeuralGateCallback(random_gate(model))
    train(SomebodysModule(model), datamodule(splits), callback).save_checkpoint(tmp_path / "one.ckpt")
    resumed = Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback])
    resumed.fit(
        SomebodysModule(tiny_llava()),
        datamodule=datamodule(splits),
        ckpt_path=tmp_path / "one.ckpt",
        weights_only=False,
    )
    with pytest.raises(GateMismatchError, match="located in another model"):
        train(SomebodysModule(tiny_llava(seed=1)), datamodule(splits), callback)
