"""Rows that the gate closed do not move, not by one bit, whatever the optimizer carries along."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_neuralgate.data.records import RecordSplits
from lightning_neuralgate.errors import UnsupportedSetupError
from lightning_neuralgate.gate.autograd import gated_places
from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.neural_gate import NeuralGate
from lightning_neuralgate.gate.rows import ClosedRows, _local_rows
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import SomebodysModule, datamodule, random_gate, train

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def of_passports(splits: RecordSplits) -> RecordSplits:
    return splits._replace(edit=[record for record in splits.edit if record.subject == "passport"])


def with_momentum(parameters: list[Tensor], optimizer: str) -> torch.optim.Optimizer:
    """An optimizer that has taken a step before there was a gate, and would carry every row on."""
    made: torch.optim.Optimizer = OPTIMIZERS[optimizer](parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    made.zero_grad()
    return made


class Resumed(SomebodysModule):
    """Goes on with an optimizer that has momentum."""

    def __init__(self, network: Any, optimizer: str) -> None:
        super().__init__(network)
        self.chosen = with_momentum([p for p in network.parameters() if p.requires_grad], optimizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.chosen


class Manual(Resumed):
    """Manual optimization; `raw` steps the torch optimizer itself, of which Lightning hears nothing."""

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
def test_closed_rows_stay_bit_identical(splits: RecordSplits, optimizer: str, kind: str) -> None:
    model = tiny_llava()
    gate = random_gate(model, subjects=("passport",))
    options = {"accumulated": {"accumulate_grad_batches": 2}, "clipped": {"gradient_clip_val": 0.1}}.get(kind, {})
    manual = kind in ("manual", "raw")
    module = Manual(model, optimizer, kind == "raw") if manual else Resumed(model, optimizer)
    projection: Any = find_decoder(model).output_projection(1)
    before = projection.weight.detach().clone()
    data = datamodule(of_passports(splits), pairs_per_batch=1)
    # Lightning counts no raw steps, so a limit of steps would never be reached
    train(module, data, NeuralGateCallback(gate, "all"), max_steps=-1, max_epochs=1, limit_train_batches=4, **options)
    closed = ~gate.mask("passport", 1)
    assert torch.equal(projection.weight[closed], before[closed])
    assert (projection.weight != before)[~closed].any(1).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_the_callback_they_would_move(splits: RecordSplits, optimizer: str) -> None:
    """The optimizers of these tests do what the guarantee is about."""
    model = tiny_llava()
    weight: Any = find_decoder(model).output_projection(1).weight
    module = Resumed(model, optimizer)
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    module.chosen.step()
    assert (weight != before).any(1).all()


def test_open_rows_move_as_they_would_without_a_gate(splits: RecordSplits) -> None:
    """Putting closed rows back leaves the others to the optimizer."""
    model, plain = tiny_llava(), tiny_llava()
    gate = random_gate(model, subjects=("passport",))
    data = {"pairs_per_batch": 2}
    train(Resumed(model, "adamw"), datamodule(of_passports(splits), **data), NeuralGateCallback(gate, "all"))
    train(Resumed(plain, "adamw"), datamodule(of_passports(splits), **data))
    rows = gate.mask("passport", 1)
    gated, ungated = (find_decoder(m).output_projection(1).weight[rows] for m in (model, plain))  # type: ignore[index]
    assert torch.allclose(gated, ungated, rtol=1e-5, atol=1e-7)


def test_each_subject_opens_its_own_rows(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate = random_gate(model)
    module = Resumed(model, "adamw")
    projection: Any = find_decoder(model).output_projection(1)
    before = projection.weight.detach().clone()
    train(module, datamodule(splits), NeuralGateCallback(gate, "all"))
    opened = gate.mask("passport", 1) | gate.mask("receipt", 1)
    assert torch.equal((projection.weight != before).any(1), opened)


def test_the_optimizer_is_let_go_of(splits: RecordSplits) -> None:
    model = tiny_llava()
    module = Resumed(model, "adamw")
    train(module, datamodule(splits), NeuralGateCallback(random_gate(model), "all"))
    weight: Any = find_decoder(model).output_projection(1).weight
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    module.chosen.step()
    assert (weight != before).any(1).all()


def test_a_step_that_is_skipped_is_forgotten() -> None:
    """A GradScaler skips steps whose gradients overflow; what they opened is not open in the next one."""
    model = tiny_llava().requires_grad_(False)
    projection: Any = find_decoder(model).output_projection(1)
    projection.requires_grad_(True)
    optimizer = with_momentum([projection.weight], "sgd")
    (place,) = gated_places(projection, "here")
    rows = ClosedRows({"here": place}, optimizer)
    before = projection.weight.detach().clone()
    rows.saw("here", torch.ones(2, 32, dtype=torch.bool))
    rows.begin_step()  # and no step
    half = torch.zeros(2, 32, dtype=torch.bool)
    half[1, :16] = True
    rows.saw("here", half)
    rows.begin_step()
    projection.weight.grad = torch.zeros_like(projection.weight)
    optimizer.step()
    assert torch.equal(projection.weight[16:], before[16:])
    assert (projection.weight[:16] != before[:16]).any(1).all()


class TwoOptimizers(SomebodysModule):
    """One optimizer a layer, stepped in turn."""

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


def test_each_optimizer_keeps_its_own_rows(splits: RecordSplits) -> None:
    model = tiny_llava()
    gate: NeuralGate = random_gate(model, (0, 1), ("passport",))
    layout = find_decoder(model)
    module: LightningModule = TwoOptimizers(model)
    weights: list[Any] = [layout.output_projection(layer).weight for layer in (0, 1)]
    seen: list[Tensor] = []

    class Before(NeuralGateCallback):
        def on_train_start(self, *args: Any) -> None:
            super().on_train_start(*args)
            seen.extend(weight.detach().clone() for weight in weights)  # the optimizers have stepped by now

    train(module, datamodule(of_passports(splits), pairs_per_batch=2), Before(gate, "all"), max_steps=2)
    for layer, weight, before in zip((0, 1), weights, seen, strict=True):
        assert torch.equal((weight != before).any(1), gate.mask("passport", layer))


def test_weights_that_are_not_sharded_by_rows_are_refused() -> None:
    from torch.distributed.tensor import Replicate, Shard

    by_column = SimpleNamespace(placements=(Replicate(), Shard(1)))
    with pytest.raises(UnsupportedSetupError, match=r"Leave tensor parallelism off"):
        _local_rows(torch.ones(4, dtype=torch.bool), by_column)
