from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.autograd import gated_modules
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.rows import MaskedRowRestorer, _local_rows
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import UserModule, datamodule, random_gate, train

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def passports_only(splits: RecordSplits) -> RecordSplits:
    return splits._replace(edit=[record for record in splits.edit if record.subject == "passport"])


def with_momentum(parameters: list[Tensor], optimizer: str) -> torch.optim.Optimizer:
    """Return an optimizer with momentum from an earlier step, which moves every row."""
    stepped: torch.optim.Optimizer = OPTIMIZERS[optimizer](parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    stepped.step()
    stepped.zero_grad()
    return stepped


class WithMomentum(UserModule):
    """Trains with an optimizer that has momentum already."""

    def __init__(self, network: Any, optimizer: str) -> None:
        super().__init__(network)
        self.optimizer_with_momentum = with_momentum([p for p in network.parameters() if p.requires_grad], optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_with_momentum


class Manual(WithMomentum):
    """Manual optimization; `raw` steps the torch optimizer itself, without Lightning's hooks."""

    def __init__(self, network: Any, optimizer: str, raw: bool) -> None:
        super().__init__(network, optimizer)
        self.automatic_optimization, self.raw = False, raw

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=not self.raw)
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["automatic", "accumulated", "clipped", "manual", "raw"])
def test_masked_rows_stay_bit_identical(splits: RecordSplits, optimizer: str, kind: str) -> None:
    model = tiny_llava()
    gate = random_gate(model, subjects=("passport",))
    options = {"accumulated": {"accumulate_grad_batches": 2}, "clipped": {"gradient_clip_val": 0.1}}.get(kind, {})
    manual = kind in ("manual", "raw")
    module = Manual(model, optimizer, kind == "raw") if manual else WithMomentum(model, optimizer)
    projection: Any = find_decoder(model).output_projection(1)
    before = projection.weight.detach().clone()
    data = datamodule(passports_only(splits), pairs_per_batch=1)
    # Lightning does not count raw steps, so max_steps would never be reached
    train(module, data, NeuralGateCallback(gate, "all"), max_steps=-1, max_epochs=1, limit_train_batches=4, **options)
    masked = ~gate.mask("passport", 1)
    assert torch.equal(projection.weight[masked], before[masked])
    assert (projection.weight != before)[~masked].any(1).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trained", [False, True])
def test_without_the_callback_all_rows_move(splits: RecordSplits, optimizer: str, trained: bool) -> None:
    """The optimizers of these tests move rows without a gradient, and the callback's hooks are removed after a training."""
    model = tiny_llava()
    weight: Any = find_decoder(model).output_projection(1).weight
    module = WithMomentum(model, optimizer)
    if trained:
        train(module, datamodule(splits), NeuralGateCallback(random_gate(model), "all"))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    module.optimizer_with_momentum.step()
    assert (weight != before).any(1).all()


def test_unmasked_rows_move_as_without_a_gate(splits: RecordSplits) -> None:
    model, plain = tiny_llava(), tiny_llava()
    gate = random_gate(model, subjects=("passport",))
    data = {"pairs_per_batch": 2}
    train(WithMomentum(model, "adamw"), datamodule(passports_only(splits), **data), NeuralGateCallback(gate, "all"))
    train(WithMomentum(plain, "adamw"), datamodule(passports_only(splits), **data))
    rows = gate.mask("passport", 1)
    gated, ungated = (find_decoder(m).output_projection(1).weight[rows] for m in (model, plain))  # type: ignore[index]
    assert torch.allclose(gated, ungated, rtol=1e-5, atol=1e-7)


def test_each_subject_unmasks_its_rows(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    module = WithMomentum(model, "adamw")
    projection: Any = find_decoder(model).output_projection(1)
    before = projection.weight.detach().clone()
    train(module, datamodule(splits), NeuralGateCallback(gate, "all"))
    unmasked = gate.mask("passport", 1) | gate.mask("receipt", 1)
    assert torch.equal((projection.weight != before).any(1), unmasked)


def test_rows_of_a_skipped_step_are_masked_in_the_next() -> None:
    """A GradScaler skips steps whose gradients overflow; rows unmasked there are not unmasked in the next step."""
    model = tiny_llava().requires_grad_(False)
    projection: Any = find_decoder(model).output_projection(1)
    projection.requires_grad_(True)
    optimizer = with_momentum([projection.weight], "sgd")
    (module,) = gated_modules(projection, "layer")
    rows = MaskedRowRestorer({"layer": module}, optimizer)
    before = projection.weight.detach().clone()
    rows.record("layer", torch.ones(2, 32, dtype=torch.bool))
    rows.start_step()  # skipped
    half = torch.zeros(2, 32, dtype=torch.bool)
    half[1, :16] = True
    rows.record("layer", half)
    rows.start_step()
    projection.weight.grad = torch.zeros_like(projection.weight)
    optimizer.step()
    assert torch.equal(projection.weight[16:], before[16:])
    assert (projection.weight[:16] != before[:16]).any(1).all()


class TwoOptimizers(UserModule):
    """One optimizer per layer."""

    def __init__(self, network: Any) -> None:
        super().__init__(network, layers=(0, 1))
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        layout = find_decoder(self.network)
        return [with_momentum([layout.output_projection(layer).weight], "adamw") for layer in (0, 1)]  # type: ignore[list-item]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in optimizers:
            optimizer.step()


def test_masked_rows_with_one_optimizer_per_layer(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate: NeuralGate = random_gate(model, (0, 1), ("passport",))
    layout = find_decoder(model)
    module: LightningModule = TwoOptimizers(model)
    weights: list[Any] = [layout.output_projection(layer).weight for layer in (0, 1)]
    seen: list[Tensor] = []

    class Before(NeuralGateCallback):
        def on_train_start(self, *args: Any) -> None:
            super().on_train_start(*args)
            seen.extend(weight.detach().clone() for weight in weights)  # after the step in `with_momentum`

    train(module, datamodule(passports_only(splits), pairs_per_batch=2), Before(gate, "all"), max_steps=2)
    for layer, weight, before in zip((0, 1), weights, seen, strict=True):
        assert torch.equal((weight != before).any(1), gate.mask("passport", layer))


def test_weights_that_are_not_sharded_by_rows_are_refused() -> None:
    from torch.distributed.tensor import Replicate, Shard

    by_column = SimpleNamespace(placements=(Replicate(), Shard(1)))
    with pytest.raises(UnsupportedSetupError, match=r"Leave tensor parallelism off"):
        _local_rows(torch.ones(4, dtype=torch.bool), by_column)
