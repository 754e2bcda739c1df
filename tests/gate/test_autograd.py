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
from lightning_neuralgate.gate.autograd import GradientMask
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.positions import SUBJECT_SCOPES, Scope, scope_positions
from lightning_neuralgate.hf.decoder import find_decoder
from lightning_neuralgate.hf.identity import ModelIdentity
from tests.helpers.reference import plain_gated_gradient, relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import (
    SUBJECTS,
    Gradients,
    UserModule,
    datamodule,
    enable_checkpointing,
    loss_of,
    random_gate,
    train,
)


@pytest.mark.parametrize("scope", SUBJECT_SCOPES)
@pytest.mark.parametrize(("padding_side", "layers"), [("left", (1,)), ("right", (1,)), ("left", (0, 1))])
def test_gradient_equals_the_reference(
    splits: RecordSplits, scope: Scope, padding_side: str, layers: tuple[int, ...]
) -> None:
    model = tiny_llava()
    gate = random_gate(model, layers)
    spy = Gradients()
    train(
        UserModule(model, layers, lr=0.0), datamodule(splits, padding_side=padding_side),
        NeuralGateCallback(gate, scope, tau=0.5), spy,
    )  # fmt: skip
    batch = spy.batches[0]
    assert set(batch["subject"]) == set(SUBJECTS), "the batch has to mix subjects"
    layout = find_decoder(model)
    masks = [[gate.mask(subject, layer, 0.5) for subject in batch["subject"]] for layer in layers]
    expected = plain_gated_gradient(
        model, batch, [layout.output_projection(layer) for layer in layers],
        scope_positions(scope, batch["subject_mask"]), masks,
    )  # fmt: skip
    ungated = Gradients()
    train(UserModule(model, layers, lr=0.0), datamodule(splits, padding_side=padding_side), ungated)
    for layer, gradient in zip(layers, expected, strict=True):
        name = f"network.{layout.projection_path(layer)}.weight"
        assert relative_error(spy.grads[0][name], gradient) < 1e-5
        assert relative_error(ungated.grads[0][name], gradient) > 1e-2


def test_a_gate_of_ones_changes_nothing(splits: RecordSplits) -> None:
    model = tiny_llava()
    identity = ModelIdentity.of(model)
    gate = NeuralGate({s: {1: torch.ones(32)} for s in SUBJECTS}, identity, dict.fromkeys(SUBJECTS, 1))
    with_gate, without = Gradients(), Gradients()
    train(UserModule(model, lr=0.0), datamodule(splits), NeuralGateCallback(gate, "all"), with_gate)
    train(UserModule(model, lr=0.0), datamodule(splits), without)
    for name, gradient in without.grads[0].items():
        assert relative_error(with_gate.grads[0][name], gradient) < 1e-6


def test_forward_values_never_change(splits: RecordSplits) -> None:
    model = tiny_llava()
    data = datamodule(splits)
    expected = loss_of(model, next(iter(data.pairs_dataloader()))).detach()

    class Compare(Callback):
        seen: Tensor

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.seen = outputs["loss"]

    compare = Compare()
    train(UserModule(model, lr=0.0), data, NeuralGateCallback(random_gate(model), "all"), compare)
    assert torch.equal(compare.seen, expected)


def test_rows_without_a_subject_are_not_gated(splits: RecordSplits) -> None:
    model = tiny_llava()
    callback = NeuralGateCallback(random_gate(model), "all")
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    blank: Any = {"subject": ["", "passport"], "subject_mask": torch.tensor([[False, False], [False, True]])}
    callback.on_train_batch_start(trainer, None, blank, 0)  # type: ignore[arg-type]
    batch = callback.batch
    assert batch is not None
    gate_values = batch.gate_values({"passport": torch.zeros(3, dtype=torch.bool)})
    gated = GradientMask(batch.positions, gate_values).apply(torch.ones(2, 2, 1), torch.ones(2, 2, 3))
    assert gated.tolist() == [[[1.0] * 3] * 2, [[0.0] * 3] * 2]


def test_a_soft_gate_scales_by_activity_rate(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    spy = Gradients()
    train(
        UserModule(model, lr=0.0),
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


def test_bf16_mixed_applies_the_same_gate(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    name = f"network.{find_decoder(model).projection_path(1)}.weight"

    def gradient(gated: bool, precision: str) -> Tensor:
        spy = Gradients()
        callbacks = [NeuralGateCallback(gate, "from_subject"), spy] if gated else [spy]
        train(UserModule(model, lr=0.0), datamodule(splits), *callbacks, precision=precision)
        return spy.grads[0][name]

    mixed = gradient(True, "bf16-mixed")
    assert mixed.dtype == torch.float32
    rounding = relative_error(gradient(False, "bf16-mixed"), gradient(False, "32-true"))
    assert 0 < rounding < 0.1
    assert relative_error(mixed, gradient(True, "32-true")) < 2 * rounding
    assert relative_error(mixed, gradient(False, "32-true")) > 3 * rounding


def gradient_of_a_step(splits: RecordSplits, prepare: Callable[[Any], object]) -> Tensor:
    model = tiny_llava()
    gate, module = random_gate(model), UserModule(model, lr=0.0)
    spy = Gradients()
    prepare(model)
    train(module, datamodule(splits), NeuralGateCallback(gate, "from_subject", tau=0.5), spy)
    return spy.grads[0][f"network.{find_decoder(model).projection_path(1)}.weight"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_applies_the_same_gate(splits: RecordSplits, reentrant: bool) -> None:
    runs: list[int] = []

    def checkpointed(model: Any) -> None:
        model.train()  # transformers checkpoints activations in training mode only
        enable_checkpointing(model, reentrant)
        find_decoder(model).layer(1).mlp.register_forward_pre_hook(lambda *_: runs.append(1))

    assert torch.equal(
        gradient_of_a_step(splits, checkpointed), gradient_of_a_step(splits, lambda model: model.train())
    )
    assert len(runs) == 2, "the layer was not recomputed in the backward pass"


@pytest.mark.slow
def test_compiled_models_apply_the_same_gate(splits: RecordSplits) -> None:
    """With batches of different subjects and lengths, and a backend that needs no compiler."""
    weights = []
    for compiled in (False, True):
        model = tiny_llava()
        if compiled:
            model.compile(backend="aot_eager")
        module = UserModule(model)
        train(module, datamodule(splits, pairs_per_batch=1), NeuralGateCallback(random_gate(model), "all"), max_steps=4)
        weights.append(find_decoder(model).output_projection(1).weight.detach())
    base: Any = find_decoder(tiny_llava()).output_projection(1).weight
    assert relative_error(weights[1], weights[0]) < 1e-6
    assert relative_error(weights[0], base) > 1e-2


def test_other_hooks_keep_their_gradients(splits: RecordSplits) -> None:
    class Scaled(UserModule):
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


def with_adapter(model: nn.Module, dora: bool, dropout: float = 0.0) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4,
        target_modules=r".*language_model\.layers\.1\.mlp\.down_proj",
        use_dora=dora,
        lora_dropout=dropout,
    )
    return get_peft_model(model, config)  # type: ignore[arg-type]


class AdapterModule(UserModule):
    """Trains only the parameters that peft has added."""

    def __init__(self, wrapped: nn.Module, lr: float = 0.5) -> None:
        LightningModule.__init__(self)
        self.network, self.lr = wrapped, lr


def test_only_unmasked_entries_of_a_bias_change(splits: RecordSplits) -> None:
    model = tiny_llava()
    mlp: Any = find_decoder(model).layer(1).mlp
    with_bias = nn.Linear(48, 32)
    with_bias.load_state_dict({"weight": mlp.down_proj.weight, "bias": torch.zeros(32)})
    mlp.down_proj = with_bias
    gate = random_gate(model, subjects=("passport",))
    splits = splits._replace(edit=[record for record in splits.edit if record.subject == "passport"])
    module = UserModule(model)
    with_bias.weight.requires_grad_(False)
    train(module, datamodule(splits, pairs_per_batch=2), NeuralGateCallback(gate, "all"), max_steps=2)
    assert torch.equal(with_bias.bias != 0, gate.mask("passport", 1))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_only_unmasked_rows_of_an_adapter_change(splits: RecordSplits, dora: bool, dropout: float) -> None:
    model = tiny_llava()
    gate = random_gate(model, subjects=("passport",))
    wrapped: Any = with_adapter(model, dora, dropout)
    splits = splits._replace(edit=[record for record in splits.edit if record.subject == "passport"])
    before = find_decoder(wrapped).output_projection(1).base_layer.weight.detach().clone()
    train(AdapterModule(wrapped), datamodule(splits, pairs_per_batch=2), NeuralGateCallback(gate, "all"), max_steps=3)
    projection: Any = find_decoder(wrapped).output_projection(1)
    changed = projection.get_delta_weight("default").abs().sum(1) > 0
    assert torch.equal(changed, gate.mask("passport", 1))
    merged = find_decoder(wrapped.merge_and_unload()).output_projection(1).weight.detach()
    masked = ~gate.mask("passport", 1)
    assert torch.allclose(merged[masked], before[masked], rtol=1e-6, atol=0)
    assert not torch.isclose(merged[~masked], before[~masked], rtol=1e-6).all(1).any()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapter_gradients_equal_those_with_masked_outputs_detached(splits: RecordSplits, dora: bool) -> None:
    """In the plain loss, the adapter's output is a constant in masked dimensions of gated positions."""
    model = tiny_llava()
    gate = random_gate(model)
    wrapped: Any = with_adapter(model, dora)
    projection: Any = find_decoder(wrapped).output_projection(1)
    nn.init.normal_(projection.lora_B["default"].weight, std=0.1)  # otherwise the first factor has no gradient
    spy = Gradients()
    train(AdapterModule(wrapped, lr=0.0), datamodule(splits), NeuralGateCallback(gate, "subject", tau=0.5), spy)
    batch = spy.batches[0]
    positions = scope_positions("subject", batch["subject_mask"])
    masks = torch.stack([gate.mask(subject, 1, 0.5) for subject in batch["subject"]])
    masked = positions[:, :, None] & ~masks[:, None, :]

    def detach_masked(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        base = projection.base_layer(args[0])
        added = output - base
        return base + torch.where(masked, added.detach(), added)

    wrapped.zero_grad()
    handle = projection.register_forward_hook(detach_masked)
    loss_of(wrapped, batch).backward()
    handle.remove()
    found = {name: grad for name, grad in spy.grads[0].items() if "lora_" in name}
    assert len(found) == (3 if dora else 2)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            assert relative_error(found[f"network.{name}"], parameter.grad) < 1e-5


@pytest.mark.parametrize("trained", ["full", "lora", "dora"])
@pytest.mark.parametrize("scope", ["subject", "all"])
def test_logs_the_passed_and_the_blocked_share_of_the_gradient(
    splits: RecordSplits, tmp_path: Path, trained: str, scope: Scope
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    model = tiny_llava()
    gate = random_gate(model)
    if trained == "full":
        module = UserModule(model, lr=0.0)
        last: Any = find_decoder(model).output_projection(1)
    else:
        module = AdapterModule(with_adapter(model, dora=trained == "dora"), lr=0.0)
        projection: Any = find_decoder(model).output_projection(1)
        nn.init.normal_(projection.lora_B["default"].weight, std=0.1)
        last = projection.lora_magnitude_vector["default"] if trained == "dora" else projection.lora_B["default"]
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
    # the gradient before and after the gate, computed from the output's gradient
    for row, batch in zip(rows, spy.batches, strict=True):
        seen: dict[str, Tensor] = {}

        def keep(part: nn.Module, args: Any, output: Tensor, seen: dict[str, Tensor] = seen) -> None:
            if output.ndim == 3:
                seen["x"] = args[0].detach()
                output.register_hook(lambda grad: seen.__setitem__("grad", grad))

        handle = last.register_forward_hook(keep)
        loss_of(module.network, batch).backward()
        handle.remove()
        positions = scope_positions(scope, batch["subject_mask"])
        masks = torch.stack([gate.mask(subject, 1, 0.5) for subject in batch["subject"]])
        full = torch.einsum("btd,btk->dk", seen["grad"], seen["x"])
        blocked_grad = torch.where(positions[:, :, None] & ~masks[:, None, :], seen["grad"], 0.0)
        blocked = torch.einsum("btd,btk->dk", blocked_grad, seen["x"])
        assert float(row["gate/layer_1/blocked"]) == pytest.approx(float(blocked.norm() / full.norm()), rel=1e-4)
        assert float(row["gate/layer_1/passed"]) == pytest.approx(
            float((full - blocked).norm() / full.norm()), rel=1e-4
        )
