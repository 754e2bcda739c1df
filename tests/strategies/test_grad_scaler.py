from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neuralgate.gate.callback import NeuralGateCallback
from lightning_neuralgate.gate.positions import Scope, scope_positions
from lightning_neuralgate.hf.decoder import find_decoder
from tests.helpers.reference import relative_error
from tests.helpers.tiny_llava import tiny_llava
from tests.helpers.training import loss_of, random_gate, train
from tests.strategies.runs import (
    LAYER,
    TAU,
    detached,
    make_optimizer,
    micro_batches,
    trainable_model,
    trained_weights,
)

HUGE = 2.0**40
"""Every float16 gradient overflows at this scale."""


def make_scaler() -> torch.amp.GradScaler:
    """Return a scaler that overflows in the first step, continues with a scale that fits, and grows."""
    return torch.amp.GradScaler("cpu", init_scale=HUGE, backoff_factor=2.0**-30, growth_interval=2)


class Outcome(NamedTuple):
    """Result of a training run."""

    weights: dict[str, Tensor]
    scales: list[float]
    steps: int


def batches_of(folder: Path, accumulate: int) -> list[dict[str, Any]]:
    """Return batches in which only the skipped first step has receipts."""
    batches = micro_batches(folder)
    receipts, passports = ([b for b in batches if set(b["subject"]) == {name}] for name in ("receipt", "passport"))
    assert len(receipts) >= accumulate
    assert len(passports) >= 2
    return receipts[:accumulate] + [passports[i % len(passports)] for i in range(3 * accumulate)]


class Scaled(LightningModule):
    """Record the scale after each optimizer step, and count the steps that were not skipped."""

    def __init__(self, network: nn.Module, scaler: torch.amp.GradScaler) -> None:
        super().__init__()
        self.network, self.scaler = network, scaler
        self.scales: list[float] = []
        self.steps = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer([p for p in self.parameters() if p.requires_grad])
        optimizer.register_step_post_hook(self.count)
        return optimizer

    def count(self, *_: Any) -> None:
        self.steps += 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.scales.append(self.scaler.get_scale())


def with_callback(trainable: str, scope: Scope, accumulate: int, clip: float | None, folder: Path) -> Outcome:
    scaler = make_scaler()
    module = Scaled(trainable_model(trainable), scaler)
    train(
        module,
        DataLoader(batches_of(folder, accumulate), batch_size=None),  # type: ignore[arg-type]
        NeuralGateCallback(random_gate(tiny_llava(), (LAYER,)), scope, TAU),
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        max_steps=-1,
        max_epochs=1,
    )
    return Outcome(trained_weights(module.network, module.network.state_dict()), module.scales, module.steps)


def train_plain_loop(trainable: str, scope: Scope, accumulate: int, clip: float | None, folder: Path) -> Outcome:
    scaler, network = make_scaler(), trainable_model(trainable)
    gate = random_gate(tiny_llava(), (LAYER,))
    projection: Any = find_decoder(network).output_projection(LAYER)
    rows = projection.lora_B["default"].weight if trainable == "lora" else projection.weight
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters)
    batches, scales, steps = batches_of(folder, accumulate), list[float](), 0
    for first in range(0, len(batches), accumulate):
        unmasked = torch.zeros(32, dtype=torch.bool)
        optimizer.zero_grad()
        for batch in batches[first : first + accumulate]:
            masks = torch.stack([gate.mask(subject, LAYER, TAU) for subject in batch["subject"]])
            unmasked |= masks.any(0)
            masked = scope_positions(scope, batch["subject_mask"])[:, :, None] & ~masks[:, None, :]
            with torch.autocast("cpu", torch.float16), detached(projection, trainable, masked):
                loss = loss_of(network, batch)
            scaler.scale(loss / accumulate).backward()
        scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        copy, before = rows.detach().clone(), scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        steps += scales[-1] >= before
        if scope == "all":
            with torch.no_grad():
                rows[~unmasked] = copy[~unmasked]
    return Outcome(trained_weights(network, network.state_dict()), scales, steps)


@pytest.mark.parametrize("clip", [None, 0.05], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("scope", ["subject_last", "all"])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_equals_the_plain_loop(
    tmp_path: Path, trainable: str, scope: Scope, accumulate: int, clip: float | None
) -> None:
    before = trainable_model(trainable).state_dict()
    expected = train_plain_loop(trainable, scope, accumulate, clip, tmp_path)
    found = with_callback(trainable, scope, accumulate, clip, tmp_path)
    fitting = HUGE * 2.0**-30
    assert found.scales == expected.scales == [fitting, fitting, 2 * fitting, 2 * fitting]
    assert found.steps == expected.steps == 3, "the first step is skipped, the others are not"
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert relative_error(weight, before[name]) > 1e-3, "the weights have to change"
        assert relative_error(found.weights[name] - before[name], weight - before[name]) < 2e-3  # rounding of float16


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_masked_rows_stay_bit_identical(tmp_path: Path, trainable: str, accumulate: int) -> None:
    """Including rows that only the skipped step would have unmasked."""
    before = trainable_model(trainable).state_dict()
    found = with_callback(trainable, "all", accumulate, None, tmp_path)
    (name,) = (name for name in found.weights if not name.endswith("lora_A.default.weight"))
    gate = random_gate(tiny_llava(), (LAYER,))
    receipt, passport = (gate.mask(subject, LAYER, TAU) for subject in ("receipt", "passport"))
    assert bool((receipt & ~passport).any())
    assert torch.equal((found.weights[name] != before[name]).any(1), passport)
